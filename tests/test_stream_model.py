"""The stream model alone, against a double of Triton's pb_utils: chunks meet here as the test wants
them, and the engine is a double whose every number says which steps of which stream it has seen.
"""

import importlib
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import VARIANTS
from hypothesis import given
from hypothesis import strategies as st
from triton_double import ON_TRITON as BASE
from triton_double import PB_UTILS, MetricFamily, Request, TritonError, arguments

from looprnn.build import build_variant, buildable
from looprnn.errors import EngineError
from looprnn.slots import SlotTable
from looprnn.states import HostStates

SPEC = VARIANTS["lstm"]
CAPACITY = 5
START, END = 1, 2
ON_TRITON = (*BASE, "looprnn.stream_metrics", "looprnn.stream_model")


class Error(TritonError):
    UNAVAILABLE = "UNAVAILABLE"


DOUBLE = SimpleNamespace(
    **{**vars(PB_UTILS), "TritonError": Error},
    TRITONSERVER_REQUEST_FLAG_SEQUENCE_START=START,
    TRITONSERVER_REQUEST_FLAG_SEQUENCE_END=END,
)


class Chunk(Request):
    def __init__(self, stream, x, flags=0, wanted=SPEC.output_names, **more):
        inputs = {"input": np.asarray(x, np.float32), **more}
        super().__init__({n: np.asarray(a) for n, a in inputs.items()}, wanted)
        self.stream, self.flag_bits = stream, flags

    def correlation_id(self):
        return self.stream

    def flags(self):
        return self.flag_bits


def step(h, x):
    """Exact in float32, other for every history; the same for h and c but for where they begin."""
    return (31 * h + x + 1) % 1009


class Session:
    """An engine: h and c step by the input's first feature; output is h."""

    def __init__(self):
        self.runs, self.fails = [], False

    def run(self, inputs, wanted=None):
        self.runs.append(inputs["input"].shape[:2])
        if self.fails:
            raise RuntimeError("out of memory")
        x, lengths = inputs["input"][..., :1], inputs["lengths"]
        states = {s: inputs[f"{s}_0"][:, 0].copy() for s in "hc"}
        output = np.zeros((*x.shape[:2], 5), np.float32)
        for t in range(x.shape[1]):
            on = t < lengths
            for s in "hc":
                states[s][on] = step(states[s][on], x[on, t])
            output[on, t] = states["h"][on]
        every = {"output": output, **{f"{s}_n": a[:, np.newaxis] for s, a in states.items()}}
        return {name: every[name] for name in wanted}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository")
    build_variant(SPEC, buildable(["onnxruntime"])[0], folder, progress=lambda *_: None)
    return folder


@pytest.fixture(scope="module")
def load(built):
    """load() is a stream model of CAPACITY slots, its engine a double unless told otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "triton_python_backend_utils", DOUBLE)
        for name in ON_TRITON:
            patch.delitem(sys.modules, name, raising=False)
        module = importlib.import_module("looprnn.stream_model")
        loaded = []

        def load(session=None, **changed):
            found = arguments(built)
            found["model_name"], found["model_instance_name"] = "lstm_stream", "lstm_stream_0_0"
            found["model_repository"] = str(built / "lstm_stream")
            config = json.loads(found["model_config"])
            kept = {"stream_capacity": str(CAPACITY), "stream_idle_s": "1000", **changed}
            for key, value in kept.items():
                config["parameters"][key] = {"string_value": value}
            model = module.TritonPythonModel()
            model.initialize({**found, "model_config": json.dumps(config)})
            model._session = session or Session()
            model._states = HostStates(model._session, SPEC, CAPACITY)
            loaded.append(model)
            return model

        yield load
        for model in loaded:
            if hasattr(model, "_runs"):  # not by the test itself
                model.finalize()
    for name in ON_TRITON:
        sys.modules.pop(name, None)


@pytest.fixture
def model(load):
    return load()


def steps(stream, count, first=0):
    """[1, T, I]: what a stream sends at its steps first, first + 1, …"""
    x = np.zeros((1, count, 7), np.float32)
    x[0, :, 0] = 50 * stream + np.arange(first, first + count)
    return x


def truth(stream, count, h_0=1.0):
    """[T]: h after each step of a stream that begins at h_0; the variant's own is 1."""
    found = []
    for t in range(count):
        h_0 = step(h_0, 50 * stream + t)
        found.append(h_0)
    return np.array(found)


def hidden(answer):
    """[T]: h after each step of the chunk."""
    assert answer.error is None, answer.error.message
    return answer.arrays["output"][0, :, 0]


def state(answer):
    assert answer.error is None, answer.error.message
    return float(answer.arrays["h_n"].flat[0]), float(answer.arrays["c_n"].flat[0])


def export(model, stream, flags=0):
    (answer,) = model.execute(
        [Chunk(stream, steps(0, 1), flags, ["h_n", "c_n"], lengths=np.zeros((1, 1), np.int32))]
    )
    return state(answer)


def refused(answer):
    assert answer.error is not None
    return answer.error.message


# A script is a list of executes, each a list of (stream, steps of its chunk, flags).


def play(model, script):
    """Whether every chunk of the script was answered with its stream's next steps."""
    done = {}
    for together in script:
        requests, wanted = [], []
        for stream, count, flags in together:
            first = 0 if flags & START else done[stream]
            done[stream] = first + count
            requests.append(Chunk(stream, steps(stream, count, first), flags))
            wanted.append(truth(stream, done[stream])[first:])
        for want, answer in zip(wanted, model.execute(requests), strict=True):
            if answer.error or not np.array_equal(hidden(answer), want):
                return False
    return True


@st.composite
def scripts(draw):
    """Streams of random chunks, interleaved at random, at most CAPACITY of them at a time."""
    waiting = list(range(1, draw(st.integers(1, 12)) + 1))
    left, script = {}, []
    while waiting or left:
        while waiting and len(left) < CAPACITY:
            left[waiting.pop()] = [draw(st.integers(1, 4)), True]
        ready = draw(st.lists(st.sampled_from(sorted(left)), min_size=1, unique=True))
        together = []
        for stream in ready:
            chunks, first = left[stream]
            last = chunks == 1
            flags = (START if first else 0) | (END if last else 0)
            together.append((stream, draw(st.integers(1, 9)), flags))
            left[stream] = [chunks - 1, False]
            if last:
                del left[stream]
        script.append(together)
    return script


@given(script=scripts())
def test_streams_cut_and_interleaved_at_will_are_the_whole_sequences(load, script):
    model = load()
    assert play(model, script)
    assert len(model._table) == 0


# Mutants


def nothing_scattered(patch, model):
    patch.setattr(HostStates, "_scatter", lambda self, outputs, end: None)


def rows_permuted(patch, model):
    right = HostStates._scatter
    patch.setattr(HostStates, "_scatter", lambda self, out, end: right(self, out, end[::-1]))


def rows_permuted_going_in(patch, model):
    right = HostStates._gather
    patch.setattr(HostStates, "_gather", lambda self, x, begin: right(self, x, begin[::-1]))


def start_ignored(patch, model):
    """The first chunk goes on from what the slot's last stream left."""
    right = type(model)._admit

    def admit(self, request):
        chunk = right(self, request)
        chunk.start = False
        return chunk

    patch.setattr(type(model), "_admit", admit)


def end_frees_nothing(patch, model):
    patch.setattr(SlotTable, "end", lambda self, stream: None)


def a_live_stream_gives_way(patch, model):
    right = SlotTable.admit

    def admit(self, stream, *, start, end):
        if start and stream not in self._live and not self._free:
            self.end(next(iter(self._live)))
        return right(self, stream, start=start, end=end)

    patch.setattr(SlotTable, "admit", admit)


ROUND_ROBIN = [
    [(s, 3, START) for s in (1, 2, 3)],
    [(s, n, 0) for s, n in ((3, 2), (1, 3), (2, 3))],
    [(2, 1, END), (3, 1, 0), (1, 2, END)],
    [(s, 1, START) for s in (4, 5, 6, 7)],
    [(s, 2, END) for s in (7, 3, 6, 5, 4)],
    [(8, 4, START)],
]


def test_the_round_robin_is_right(model):
    assert play(model, ROUND_ROBIN)


@pytest.mark.parametrize(
    "mutant",
    [nothing_scattered, rows_permuted, rows_permuted_going_in, start_ignored, end_frees_nothing],
)
def test_the_round_robin_notices(model, monkeypatch, mutant):
    mutant(monkeypatch, model)
    assert not play(model, ROUND_ROBIN)


def full(model):
    """Whether a START beyond capacity is refused, and every live stream then goes on."""
    every = range(1, CAPACITY + 1)
    assert play(model, [[(s, 2, START) for s in every]])
    (answer,) = model.execute([Chunk(9, steps(9, 1), START)])
    lives = [model.execute([Chunk(s, steps(s, 1, 2))])[0] for s in every]
    went_on = all(
        answer.error is None and hidden(answer) == truth(s, 3)[2]
        for s, answer in zip(every, lives, strict=True)
    )
    return bool(answer.error) and went_on and answer.error.code == "UNAVAILABLE"


def test_a_start_beyond_capacity_is_refused_and_no_live_stream_gives_way(model):
    assert full(model)


def test_a_model_in_which_one_gives_way_is_noticed(model, monkeypatch):
    a_live_stream_gives_way(monkeypatch, model)
    assert not full(model)


# The rules, one by one


def test_chunks_of_many_streams_are_one_run(model):
    model.execute([Chunk(s, steps(s, 4), START) for s in (1, 2, 3)])
    model.execute([Chunk(s, steps(s, t, 4)) for s, t in ((1, 4), (2, 3), (3, 4))])
    assert model._session.runs == [(3, 4), (3, 4)]


def test_a_start_on_a_live_stream_resets_and_counts(model):
    model.execute([Chunk(1, steps(1, 3), START)])
    (answer,) = model.execute([Chunk(1, steps(1, 2), START)])
    np.testing.assert_array_equal(hidden(answer), truth(1, 2))
    assert (model._table.reset, len(model._table)) == (1, 1)


def test_an_end_frees(model):
    model.execute([Chunk(1, steps(1, 3), START)])
    model.execute([Chunk(1, steps(1, 1, 3), END)])
    (answer,) = model.execute([Chunk(1, steps(1, 1, 4))])
    assert refused(answer).startswith("stream 1: unknown: ")
    assert answer.error.code == "INVALID_ARG"
    assert len(model._table) == 0


def test_a_stream_of_one_chunk_is_answered_even_where_no_slot_is_free(model):
    model.execute([Chunk(s, steps(s, 1), START) for s in range(1, CAPACITY + 1)])
    (answer,) = model.execute([Chunk(9, steps(9, 4), START | END)])
    np.testing.assert_array_equal(hidden(answer), truth(9, 4))


def test_a_state_is_exported_without_a_step_and_restored_with_start(model):
    (answer,) = model.execute([Chunk(1, steps(1, 3), START)])
    h, c = export(model, 1)
    assert (h, c) == state(answer) == export(model, 1)
    states = {"h_0": np.full((1, 1, 5), h, np.float32), "c_0": np.full((1, 1, 5), c, np.float32)}
    export(model, 1, END)
    (answer,) = model.execute([Chunk("moved", steps(1, 2, 3), START, **states)])
    np.testing.assert_array_equal(hidden(answer), truth(1, 5)[3:])


def test_a_state_is_restored_without_a_step_too(model):
    states = {"h_0": np.full((1, 1, 5), 7, np.float32), "c_0": np.full((1, 1, 5), 8, np.float32)}
    none = np.zeros((1, 1), np.int32)
    (answer,) = model.execute([Chunk(1, steps(1, 1), START, lengths=none, **states)])
    assert state(answer) == export(model, 1) == (7, 8)


def test_no_step_changes_no_bit_whatever_the_engine_rounds(load):
    class Rounding(Session):
        def run(self, inputs, wanted=None):
            return {n: np.round(a, 1) for n, a in super().run(inputs, wanted).items()}

    model = load(Rounding())
    third = np.full((1, 1, 5), 1 / 3, np.float32)
    none = np.zeros((1, 1), np.int32)
    model.execute([Chunk(1, steps(1, 1), START, lengths=none, h_0=third, c_0=third)])
    assert export(model, 1) == (third.flat[0], third.flat[0])


def test_steps_past_a_chunks_length_do_not_count(model):
    (answer,) = model.execute([Chunk(1, steps(1, 4), START, lengths=np.array([[2]], np.int32))])
    np.testing.assert_array_equal(hidden(answer), [*truth(1, 2), 0, 0])
    (answer,) = model.execute([Chunk(1, steps(1, 1, 2))])
    assert hidden(answer) == truth(1, 3)[2]


def test_two_chunks_of_one_stream_at_once_run_in_their_order(model):
    """Triton's Oldest does not send them so."""
    chunks = [(1, 2, START), (2, 2, START), (1, 3, 0), (1, 1, END), (2, 3, 0)]
    assert play(model, [chunks])
    assert len(model._session.runs) == 3


def test_only_what_is_asked_for_is_sent_and_states_are_kept_all_the_same(model):
    (answer,) = model.execute([Chunk(1, steps(1, 3), START, wanted=["output"])])
    assert set(answer.arrays) == {"output"}
    (answer,) = model.execute([Chunk(1, steps(1, 1, 3))])
    assert hidden(answer) == truth(1, 4)[3]


def test_the_warm_up_which_has_no_stream_is_answered_and_keeps_nothing(model):
    (answer,) = model.execute([Chunk(0, steps(0, 4))])
    assert answer.error is None
    assert len(model._table) == 0


# What goes wrong leaves the states as they were

BAD = {
    "nan": ({"input": np.full((1, 1, 7), np.nan, np.float32)}, "bad input: input holds nan"),
    "two_rows": ({"input": np.zeros((2, 1, 7), np.float32)}, "bad input: input has B = 2 rows"),
    "too_long": ({"input": np.zeros((1, 65, 7), np.float32)}, "bad input: input has T = 65 steps"),
    "states": ({"h_0": np.zeros((1, 1, 5), np.float32)}, "bad input: h_0 without START"),
    "length": ({"lengths": np.array([[2]], np.int32)}, "bad input: lengths holds 2 at [0]"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_chunk_is_refused_and_the_stream_goes_on(model, bad):
    change, words = BAD[bad]
    model.execute([Chunk(s, steps(s, 3), START) for s in (1, 2)])
    x = change.get("input", steps(1, 1, 3))
    wrong = Chunk(1, x, **{name: a for name, a in change.items() if name != "input"})
    answer, other = model.execute([wrong, Chunk(2, steps(2, 1, 3))])
    assert refused(answer).startswith(words)
    assert hidden(other) == truth(2, 4)[3]
    (answer,) = model.execute([Chunk(1, steps(1, 1, 3))])
    assert hidden(answer) == truth(1, 4)[3]


def test_a_cancelled_chunk_that_came_so_far_is_run_whole(model):
    """Asked or not, at whatever moment: its state is that of after the chunk."""

    class Cancelled(Chunk):
        def is_cancelled(self):
            return True

    model.execute([Chunk(1, steps(1, 3), START)])
    model.execute([Cancelled(1, steps(1, 2, 3)), Chunk(2, steps(2, 2), START)])
    (answer,) = model.execute([Chunk(1, steps(1, 1, 5))])
    assert hidden(answer) == truth(1, 6)[5]


def test_a_bad_start_begins_nothing(model):
    nan = np.full((1, 1, 7), np.nan, np.float32)
    model.execute([Chunk(1, nan, START)])
    (answer,) = model.execute([Chunk(1, steps(1, 1))])
    assert refused(answer).startswith("stream 1: unknown")


@pytest.mark.parametrize("fails", ["input", "engine"])
def test_an_end_frees_whatever_becomes_of_its_chunk(model, fails):
    """Triton has forgotten the stream: nobody could reach its state."""
    model.execute([Chunk(1, steps(1, 3), START)])
    model._session.fails = fails == "engine"
    x = steps(1, 1, 3) if fails == "engine" else np.full((1, 1, 7), np.nan, np.float32)
    (answer,) = model.execute([Chunk(1, x, END)])
    assert answer.error is not None
    assert len(model._table) == 0


def test_an_engine_that_fails_leaves_every_state_as_it_was(model):
    model.execute([Chunk(s, steps(s, 3), START) for s in (1, 2)])
    model._session.fails = True
    both = [Chunk(1, steps(1, 2, 3)), Chunk(2, steps(2, 1), START), Chunk(3, steps(3, 1), START)]
    for answer in model.execute(both):
        assert refused(answer) == "engine failed: out of memory"
        assert answer.error.code == "INTERNAL"
    model._session.fails = False
    one, two, three = model.execute([Chunk(s, steps(s, 1, 3)) for s in (1, 2, 3)])
    assert hidden(one) == truth(1, 4)[3]
    assert hidden(two) == truth(2, 4)[3]  # its START did not happen
    assert refused(three).startswith("stream 3: unknown")
    assert len(model._table) == 2


def test_failed_starts_take_no_slot(model):
    model._session.fails = True
    for s in range(1, 3 * CAPACITY):
        model.execute([Chunk(s, steps(s, 1), START)])
    model._session.fails = False
    assert play(model, [[(s, 1, START) for s in range(1, CAPACITY + 1)]])


def test_a_state_outlives_tritons_interest_in_its_stream(model):
    """Or one that waits in the queue could be let through by Triton and find its state gone."""
    assert model._table.ttl_s >= 2 * 1000


def test_a_stream_that_expired_is_told_so(model):
    model.execute([Chunk(1, steps(1, 1), START)])
    model._table._clock = lambda: float("inf")
    model._sweep()
    (answer,) = model.execute([Chunk(1, steps(1, 1, 1))])
    assert refused(answer).startswith("stream 1: expired after 2000 s without a chunk. Send START")
    assert answer.error.code == "INVALID_ARG"


def test_a_config_that_says_not_how_streams_are_kept_fails_the_load_in_words(load):
    with pytest.raises(
        RuntimeError, match="^lstm_stream: .*python build_engines.py --variant lstm"
    ):
        load(stream_capacity="many")


def test_states_that_cannot_be_had_fail_the_load_in_words(load, monkeypatch):
    def none(*_):
        raise EngineError("states of 5 streams take 9 MiB. Lower capacity")

    monkeypatch.setattr("looprnn.states.HostStates", none)
    with pytest.raises(RuntimeError, match="^lstm_stream: states of 5 .*Lower capacity"):
        load()


def test_metrics_say_what_became_of_the_streams(model):
    every = range(1, CAPACITY + 1)
    model.execute([Chunk(s, steps(s, 1), START) for s in every])
    model.execute([Chunk(9, steps(9, 1), START), Chunk(1, steps(1, 1), START)])
    model.execute([Chunk(2, steps(2, 1), END)])
    model._table._clock = lambda: float("inf")
    model._sweep()
    values = {name: v for (name, *_), v in MetricFamily.values.items() if "streams" in name}
    assert values == {
        "looprnn_streams_live": 0,
        "looprnn_streams_expired_total": CAPACITY - 1,
        "looprnn_streams_refused_total": 1,
        "looprnn_streams_reset_total": 1,
    }


def test_the_sweeper_needs_no_traffic(load, monkeypatch):
    import threading

    swept = threading.Event()
    monkeypatch.setattr(SlotTable, "sweep", lambda self: swept.set())
    load()
    assert swept.wait(30)


def test_finalize_ends_the_sweeper(load):
    import threading

    before = threading.active_count()
    model = load()
    assert threading.active_count() > before
    model.finalize()
    assert threading.active_count() == before
