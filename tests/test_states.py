"""States that last from one run to the next: in host memory, on a GPU, and the GPU's kernels, their
own text, on a CPU. One body for all of them.
"""

from contextlib import ExitStack

import cuda_on_cpu
import numpy as np
import pytest
from conftest import cannot_run_here

from looprnn import engines, parity, reference
from looprnn.engines import fused_source
from looprnn.errors import EngineError
from looprnn.spec import Head, Layer, Profile, Range, RNNSpec, WeightSource
from looprnn.states import HostStates, beside
from looprnn.weights import load_weights

CAPACITY, ROWS, STEPS = 6, 5, 9


def spec(*layers, input_size=5, precision="fp32", **options):
    return RNNSpec(
        name="streamed",
        input_size=input_size,
        layers=layers,
        lengths=True,
        streaming=True,
        precision=precision,
        profile=Profile(batch=Range(1, 1, ROWS), time=Range(1, 4, STEPS)),
        weights=WeightSource(seed=3),
        **options,
    )


SPECS = {
    "two_layers": spec(*2 * [Layer(cell="lstm", hidden_size=11)], h_0=0.25, c_0=-0.5),
    "h_and_c_of_other_sizes": spec(Layer(cell="lstm", hidden_size=11, proj_size=7), c_0=0.75),
    "one_state": spec(Layer(cell="gru", hidden_size=13), h_0=-0.25, head=Head(size=3, on="last")),
    "ids": spec(Layer(cell="rnn", hidden_size=130), vocabulary=9),
}
# Whose states a persistent kernel rounds and moves, two layers of them in the last.
LARGE = {
    "fp16": spec(Layer(cell="lstm", hidden_size=256), input_size=64, precision="fp16", h_0=0.1),
    "bf16": spec(Layer(cell="gru", hidden_size=512), input_size=64, precision="bf16"),
    "stack": spec(*2 * [Layer(cell="lstm", hidden_size=128)], input_size=32, c_0=0.3),
    "grid": spec(Layer(cell="lstm", hidden_size=1024), input_size=64, precision="fp16"),
}


class Opener:
    """opened(spec) → States of CAPACITY slots, of one kind."""

    def __init__(self, engine, kind, folder, closing):
        self._engine, self._kind, self._folder, self._closing = engine, kind, folder, closing

    def __call__(self, one, kind=None):
        kind, weights = kind or self._kind, load_weights(one)
        if kind == "kernels":
            return cuda_on_cpu.SlotsOnCpu(one, weights, CAPACITY)
        session = self.session(one)
        if kind == "host":
            return HostStates(session, one, CAPACITY)
        states = self._closing.enter_context(beside(session, one, CAPACITY))
        assert states.place == "the memory of GPU 0"
        return states

    def session(self, one):
        engine, path = engines.get(self._engine), self._folder / "engine"
        weights = load_weights(one)
        engine.build(one, weights, path, progress=lambda *_: None, workspace=0)
        return self._closing.enter_context(engine.session(path, one))


KINDS = [
    ("onnxruntime", "host"),
    pytest.param(
        ("fused", "kernels"),
        marks=pytest.mark.skipif(cuda_on_cpu.missing() is not None, reason="no g++ here"),
    ),
    pytest.param(("fused", "host"), marks=pytest.mark.gpu),
    pytest.param(("fused", "device"), marks=pytest.mark.gpu),
]


@pytest.fixture(params=KINDS, ids=lambda p: f"{p[0]}_{p[1]}")
def opened(request, tmp_path):
    engine, kind = request.param
    reason = None if kind == "kernels" else cannot_run_here(engine)
    if reason and request.config.getoption("--require") != engine:
        pytest.skip(reason)
    with ExitStack() as closing:
        yield Opener(engine, kind, tmp_path, closing)


@pytest.fixture
def on_gpu(request, tmp_path):
    reason = cannot_run_here("fused")
    if reason and request.config.getoption("--require") != "fused":
        pytest.skip(reason)
    with ExitStack() as closing:
        yield Opener("fused", "device", tmp_path, closing)


def play(states, one, seed=0, streams=9, rounds=60):
    """Streams that come and go, cut at random, some at once: [(inputs, outputs)] of each, whole.

    Some begin with states of their own, some last one chunk and need no slot, chunks have padding.
    """
    rng = np.random.default_rng(seed)
    free, live, done = list(range(CAPACITY)), {}, []
    waiting = [draw(one, rng) for _ in range(streams)]
    for _ in range(rounds):
        while waiting and free and rng.random() < 0.6:
            live[free.pop(rng.integers(len(free)))] = {**waiting.pop(), "at": 0, "got": []}
        count = min(len(live), int(rng.integers(1, ROWS + 1)))
        slots = [int(k) for k in rng.permutation(sorted(live))[:count]]
        if not slots:
            continue
        advance(states, one, rng, live, slots)
        for slot in slots:
            if live[slot]["at"] == live[slot]["input"].shape[1]:
                done.append(live.pop(slot))
                free.append(slot)
    assert not live
    assert not waiting
    return done


def draw(one, rng):
    """A stream: input [1, T, …], and perhaps states that it begins with."""
    inputs = parity.draw_inputs(one, 1, int(rng.integers(1, 4 * STEPS)), int(rng.integers(1 << 30)))
    own = {n: a for n, a in inputs.items() if n.endswith("_0")} if rng.random() < 0.4 else {}
    return {"input": inputs["input"], "own": own}


def advance(states, one, rng, live, slots):
    """One run: a chunk of each of these streams."""
    rows = [live[slot] for slot in slots]
    steps = [
        min(int(rng.integers(0, STEPS + 1)), row["input"].shape[1] - row["at"]) for row in rows
    ]
    time = min(STEPS, max(steps) + int(rng.integers(0, 2)) or 1)
    size = (len(rows), *one.shapes(1, time)["input"][1:])
    inputs = {
        "input": np.zeros(size, one.dtype("input")),
        "lengths": np.array(steps, np.int32),
    }
    begin, end = [], []
    for b, (slot, row, n) in enumerate(zip(slots, rows, steps, strict=True)):
        inputs["input"][b, :n] = row["input"][0, row["at"] : row["at"] + n]
        first = row["at"] == 0 and not row["got"]
        last = row["at"] + n == row["input"].shape[1]
        begin.append(slot if not first else -1 if row["own"] else CAPACITY)
        end.append(-1 if last else slot)
    if -1 in begin:
        inputs |= one.defaults(len(rows), time) | inputs
        for b, row in enumerate(rows):
            if begin[b] == -1:
                for name, array in row["own"].items():
                    inputs[name][b] = array[0]
    wanted = one.output_names if rng.random() < 0.5 else ("output", f"{one.states[-1]}_n")
    outputs = states.run(inputs, wanted, begin, end)
    for b, (row, n) in enumerate(zip(rows, steps, strict=True)):
        assert not outputs["output"][b, n:].any(), "past a chunk's length"
        row["got"].append(outputs["output"][b, :n].copy())
        row["last"] = {name: outputs[name][b].copy() for name in wanted if name.endswith("_n")}
        row["at"] += n


def worst(one, done):
    """The largest difference of any stream from the reference of its whole sequence."""
    found, weights = [], load_weights(one)
    for row in done:
        inputs = {**one.defaults(*row["input"].shape[:2]), "input": row["input"], **row["own"]}
        want = reference.run(one, weights, inputs)
        found.append(parity.difference(np.concatenate(row["got"]), want["output"][0]))
        found += [parity.difference(array, want[name][0]) for name, array in row["last"].items()]
    assert len(found) > len(done) > 3
    return max(found)


def state(states, one, slot):
    """What lies in a slot: exported by a row of no step, which changes nothing."""
    inputs = {"input": one_step(one), "lengths": np.zeros(1, np.int32)}
    names = [f"{s}_n" for s in one.states]
    outputs = states.run(inputs, names, [slot], [slot if slot < CAPACITY else -1])
    return {name: outputs[name][0].copy() for name in names}


def one_step(one, value=None):
    x = parity.draw_inputs(one, 1, 1, 8)["input"]
    return x if value is None else np.full_like(x, value)


def filled(states, one):
    """Something else in every slot."""
    for slot in range(CAPACITY):
        inputs = {"input": one_step(one), "lengths": np.zeros(1, np.int32)}
        for s in one.states:
            inputs[f"{s}_0"] = np.random.default_rng(slot).standard_normal(
                (1, *one.state_dims(s)), np.float32
            )
        states.run(inputs, [], [-1], [slot])
    return [state(states, one, slot) for slot in range(CAPACITY)]


def same(one, other):
    return all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", SPECS)
def test_streams_cut_and_interleaved_at_will_are_the_whole_sequences(opened, name):
    one = SPECS[name]
    assert parity.agrees(worst(one, play(opened(one), one)))


def test_a_state_goes_in_and_out_to_the_last_bit(opened):
    one = SPECS["two_layers"]
    states = opened(one)
    found = filled(states, one)
    assert all(same(found[k], state(states, one, k)) for k in range(CAPACITY))
    want = np.random.default_rng(2).standard_normal((1, *one.state_dims("h")), np.float32)
    np.testing.assert_array_equal(found[2]["h_n"], want[0])
    assert not same(found[2], found[3])


def test_beyond_the_last_slot_lies_what_the_spec_begins_with(opened):
    one = SPECS["two_layers"]
    found = state(opened(one), one, CAPACITY)
    np.testing.assert_array_equal(found["h_n"], np.full((2, 11), 0.25, np.float32))
    np.testing.assert_array_equal(found["c_n"], np.full((2, 11), -0.5, np.float32))


def test_a_row_changes_its_own_slot_alone(opened):
    one = SPECS["two_layers"]
    states = opened(one)
    before = filled(states, one)
    inputs = {"input": np.repeat(one_step(one), 3, axis=0), "lengths": np.ones(3, np.int32)}
    outputs = states.run(inputs, ["h_n"], [4, 1, CAPACITY], [4, -1, 0])
    after = [state(states, one, slot) for slot in range(CAPACITY)]
    changed = [k for k in range(CAPACITY) if not same(before[k], after[k])]
    assert changed == [0, 4]
    for row, slot in ((0, 4), (2, 0)):
        np.testing.assert_array_equal(after[slot]["h_n"], outputs["h_n"][row])


def test_a_run_that_fails_leaves_every_slot_as_it_was(opened):
    one = SPECS["ids"]
    states = opened(one)
    before = filled(states, one)
    good, bad = one_step(one), one_step(one, 9)  # beyond the vocabulary
    inputs = {"input": np.concatenate([good, bad, good]), "lengths": np.array([1, 1, 0], np.int32)}
    with pytest.raises(Exception, match=r"vocabulary|code 256|indices|idx"):
        states.run(inputs, ["output", "h_n"], [0, 1, CAPACITY], [0, 1, 2])
    assert all(same(before[k], state(states, one, k)) for k in range(CAPACITY))
    inputs["input"] = np.concatenate([good] * 3)
    states.run(inputs, ["output"], [0, 1, CAPACITY], [0, 1, 2])
    after = [state(states, one, k) for k in range(CAPACITY)]
    assert [k for k in range(CAPACITY) if not same(before[k], after[k])] == [0, 1, 2]


MUTANTS = [  # of slots.cu
    ("o.begin[b] * (long long)width", "o.begin[b] * (long long)o.H"),
    ("(is_c ? o.c_0 : o.h_0)[at]", "(is_c ? o.c : o.h_0)[at]"),
    ("(is_c ? o.c : o.h) + at", "o.h + at"),
    ("|| *o.failed", ""),
    ("o.lengths[e.b] == 0", "true"),
    ("o.end[e.b] >= 0", "o.end[e.b] > 0"),
    ("* (long long)e.width + e.k] = *e.now", "* (long long)e.width + e.k] = e.first"),
]
BODIES = [
    test_a_state_goes_in_and_out_to_the_last_bit,
    test_a_row_changes_its_own_slot_alone,
    test_a_run_that_fails_leaves_every_slot_as_it_was,
]


@pytest.mark.skipif(cuda_on_cpu.missing() is not None, reason="no g++ here")
@pytest.mark.parametrize(("right", "wrong"), MUTANTS)
def test_a_wrong_kernel_is_noticed(right, wrong, monkeypatch, tmp_path):
    read = fused_source._read

    def mutated(which):
        text = read(which)
        assert which != "slots.cu" or right in text
        return text.replace(right, wrong) if which == "slots.cu" else text

    monkeypatch.setattr(fused_source, "_read", mutated)
    opened = Opener("fused", "kernels", tmp_path, None)
    noticed = []
    for body in BODIES:
        try:
            body(opened)
        except BaseException:  # pytest's own failures are no Exception
            noticed.append(body)
    assert noticed


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*SPECS, *LARGE])
def test_the_gpus_slots_and_the_hosts_are_the_same_bits(on_gpu, name):
    one = (SPECS | LARGE)[name]
    device, host = on_gpu(one), on_gpu(one, "host")
    for seed in range(5):
        found, want = (play(states, one, seed) for states in (device, host))
        assert parity.agrees(worst(one, found), one.precision)
        for row, other in zip(found, want, strict=True):
            assert np.array_equal(np.concatenate(row["got"]), np.concatenate(other["got"]))
            assert same(row["last"], other["last"])


@pytest.mark.gpu
@pytest.mark.parametrize("name", LARGE)
def test_no_step_changes_no_bit_though_the_engine_rounds(on_gpu, name):
    one = LARGE[name]
    states = on_gpu(one)
    found = filled(states, one)
    want = np.random.default_rng(3).standard_normal((1, *one.state_dims("h")), np.float32)
    np.testing.assert_array_equal(found[3]["h_n"], want[0])
    assert all(same(found[k], state(states, one, k)) for k in range(CAPACITY))


@pytest.mark.gpu
def test_whole_sequences_between_the_chunks_change_no_slot(on_gpu):
    one = LARGE["stack"]
    session = on_gpu.session(one)
    inputs = parity.draw_inputs(one, 3, 5)
    want = session.run(inputs)
    with session.states(CAPACITY) as states:
        before = filled(states, one)
        again = session.run(inputs)
        assert all(np.array_equal(want[name], again[name]) for name in want)
        assert all(same(before[k], state(states, one, k)) for k in range(CAPACITY))


@pytest.mark.gpu
def test_slots_are_empty_again_when_they_are_opened_again(on_gpu):
    one = LARGE["stack"]
    session = on_gpu.session(one)
    for _ in range(3):
        with session.states(CAPACITY) as states:
            assert not any(a.any() for a in state(states, one, 2).values())
            filled(states, one)
            with pytest.raises(EngineError, match="keeps states already"):
                session.states(CAPACITY).__enter__()
        assert "table" not in session.gpu


@pytest.mark.gpu
def test_more_streams_than_the_gpu_holds_are_refused_in_words(on_gpu):
    one = LARGE["grid"]
    session = on_gpu.session(one)
    with pytest.raises(EngineError, match="MiB of GPU memory.*Lower capacity"):
        session.states(100_000_000).__enter__()
    assert "table" not in session.gpu
    with session.states(CAPACITY) as states:
        assert parity.agrees(worst(one, play(states, one)), one.precision)
