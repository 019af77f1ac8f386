"""The server model alone, against a double of Triton's pb_utils: batches are formed here as the
test wants them.
"""

import dataclasses
import importlib
import json
import sys
from contextlib import ExitStack
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
from conftest import VARIANTS

from looprnn import parity
from looprnn.build import build_variant, buildable
from looprnn.engines.onnxruntime import OnnxSession
from looprnn.weights import load_weights

SPEC = VARIANTS["lstm"]
WITHOUT_LENGTHS = dataclasses.replace(SPEC, lengths=False, streaming=False)


# What imports Triton's pb_utils: each test imports it anew, with the double.
ON_TRITON = ("looprnn.metrics", "looprnn.triton_model")


class Tensor:
    def __init__(self, name, array):
        self._name, self._array = name, array

    def name(self):
        return self._name

    def as_numpy(self):
        return self._array


class Request:
    cancelled = False

    def __init__(self, inputs, wanted=SPEC.output_names):
        self.inputs_, self.wanted = inputs, wanted

    def inputs(self):
        return [Tensor(name, array) for name, array in self.inputs_.items()]

    def requested_output_names(self):
        return set(self.wanted)

    def is_cancelled(self):
        return self.cancelled


class TritonError:
    INVALID_ARG, INTERNAL, CANCELLED = "INVALID_ARG", "INTERNAL", "CANCELLED"

    def __init__(self, message, code):
        self.message, self.code = message, code


class Response:
    def __init__(self, tensors=(), error=None):
        self.error = error
        self.arrays = {t._name: t.as_numpy() for t in tensors}


class MetricFamily:
    """Triton's, as far as it goes: a counter only grows. values: a name and its labels but those
    every metric has, to the value.
    """

    COUNTER, GAUGE = "counter", "gauge"
    values: ClassVar[dict[tuple[str, ...], float]] = {}

    def __init__(self, *, name, description, kind):
        self.name, self.kind = name, kind

    def Metric(self, labels):
        own = [v for k, v in labels.items() if k not in ("model", "version", "instance")]
        assert len(labels) - len(own) == 3
        return Metric(self, (self.name, *own))


class Metric:
    def __init__(self, family, key):
        self.family, self.key = family, key
        family.values[key] = 0

    def increment(self, value):
        assert self.family.kind == MetricFamily.GAUGE or value > 0
        self.family.values[self.key] += value

    def set(self, value):
        assert self.family.kind == MetricFamily.GAUGE
        self.family.values[self.key] = value


PB_UTILS = SimpleNamespace(
    MetricFamily=MetricFamily,
    Tensor=Tensor,
    TritonError=TritonError,
    TritonModelException=RuntimeError,
    InferenceResponse=Response,
    Logger=SimpleNamespace(log_info=lambda message: None),
)


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """serve(spec) builds it for the CPU and loads it."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", PB_UTILS)
    for name in ON_TRITON:
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("looprnn.triton_model")
    module.SHOWN_EVERY_S = 1000.0  # tests show metrics when they want to see them
    MetricFamily.values.clear()
    with ExitStack() as loaded:

        def serve(spec):
            build_variant(spec, buildable(["onnxruntime"])[0], tmp_path, progress=lambda *_: None)
            model = module.TritonPythonModel()
            model.initialize(arguments(tmp_path, spec))
            loaded.callback(model.finalize)
            return model

        yield serve
    for name in ON_TRITON:
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.fixture
def model(serve):
    return serve(SPEC)


def arguments(repository, spec=SPEC, engine="auto"):
    return {
        "model_name": spec.name,
        "model_version": "1",
        "model_repository": str(repository / spec.name),
        "model_instance_name": f"{spec.name}_0_0",
        "model_instance_kind": "CPU",
        "model_instance_device_id": "0",
        "model_config": json.dumps({"parameters": {"engine": {"string_value": engine}}}),
    }


def drawn(rows, time, seed, spec=SPEC):
    return parity.draw_inputs(spec, rows, time, seed)


def assert_right(response, inputs, spec=SPEC):
    assert response.error is None
    full = {**spec.defaults(*inputs["input"].shape[:2]), **inputs}
    found = parity.differences(spec, load_weights(spec), full, response.arrays)
    assert all(parity.agrees(value) for value in found.values()), found


def test_one_bad_request_spoils_its_own_answer_only(model):
    good = [drawn(2, 4, seed=k) for k in range(3)]
    nan = drawn(1, 4, seed=9)
    nan["input"][0, 2, 3] = np.nan
    wrong_state = {**drawn(1, 4, seed=8), "h_0": np.zeros((1, 2, 5), np.float32)}
    answers = model.execute([Request(i) for i in (good[0], nan, good[1], wrong_state, good[2])])
    for k, inputs in zip((0, 2, 4), good, strict=True):
        assert_right(answers[k], inputs)
    assert answers[1].error.message == (
        "bad input: input holds nan at [0, 2, 3]; only finite numbers are served"
    )
    assert answers[3].error.message == "bad input: h_0 has the shape [1, 2, 5], wanted [1, 1, 5]"
    assert {answers[k].error.code for k in (1, 3)} == {"INVALID_ARG"}


@pytest.fixture
def runs(monkeypatch):
    """The input's shape and the wanted outputs of each run of the engine."""
    seen = []
    right = OnnxSession.run

    def run(self, inputs, wanted=None):
        if wanted is not None:  # else it is the build's own
            seen.append((inputs["input"].shape, set(wanted)))
        return right(self, inputs, wanted)

    monkeypatch.setattr(OnnxSession, "run", run)
    return seen


def test_without_lengths_requests_of_one_T_are_one_run(serve, runs):
    spec = WITHOUT_LENGTHS
    requests = [drawn(2, 4, 0, spec), drawn(1, 6, 1, spec), drawn(3, 4, 2, spec)]
    answers = serve(spec).execute([Request(r) for r in requests])
    for answer, inputs in zip(answers, requests, strict=True):
        assert_right(answer, inputs, spec)
    assert sorted(shape for shape, _ in runs) == [(1, 6, 7), (5, 4, 7)]


@pytest.mark.parametrize("name", ["padded_gru", "tokens"])
def test_with_lengths_requests_of_any_T_share_runs_and_get_their_own_steps(serve, runs, name):
    spec = VARIANTS[name]
    requests = [drawn(b, t, t, spec) for b, t in ((2, 2), (1, 9), (1, 1), (3, 8), (1, 2))]
    names = spec.output_names
    answers = serve(spec).execute([Request(on_the_wire(r), names) for r in requests])
    for answer, inputs in zip(answers, requests, strict=True):
        assert_right(answer, inputs, spec)
    assert [shape[:2] for shape, _ in runs] == [(7, 9), (1, 1)]


@pytest.mark.parametrize("name", ["lstm_random", "padded_gru", "tokens"])
def test_an_answer_is_the_same_alone_and_among_others(serve, name):
    """Here to the last bit; an ONNX Runtime with another product for another number of rows may
    round otherwise, and the smallest mistake is 0.01.
    """
    spec = VARIANTS[name]
    model = serve(spec)
    sizes = [(1, 32), (2, 31), (1, 30), (1, 29), (1, 7), (1, 6), (1, 1)]
    asked = [Request(on_the_wire(drawn(b, t, t, spec)), spec.output_names) for b, t in sizes]
    together = model.execute(asked)
    for request, among in zip(asked, together, strict=True):
        (alone,) = model.execute([request])
        for output in spec.output_names:
            np.testing.assert_allclose(
                among.arrays[output], alone.arrays[output], rtol=0, atol=1e-6
            )


def test_more_rows_than_the_profile_are_more_runs(model, runs):
    most = SPEC.profile.batch.max
    rows = (most, 3, 2 * most + 1, most - 3, 1)
    requests = [drawn(count, 4, seed=count) for count in rows]
    for answer, inputs in zip(model.execute([Request(r) for r in requests]), requests, strict=True):
        assert_right(answer, inputs)
    assert sum(shape[0] for shape, _ in runs) == sum(rows)


def test_what_nobody_asked_for_is_not_computed(model, runs):
    first, second = model.execute(
        [Request(drawn(1, 4, 0), ["h_n"]), Request(drawn(1, 4, 1), ["c_n", "h_n"])]
    )
    assert (set(first.arrays), set(second.arrays)) == ({"h_n"}, {"c_n", "h_n"})
    assert [wanted for _, wanted in runs] == [{"h_n", "c_n"}]


def test_requests_with_and_without_states_share_a_run(model):
    with_states, without = drawn(2, 4, 0), {"input": drawn(1, 4, 1)["input"]}
    for answer, inputs in zip(
        model.execute([Request(with_states), Request(without)]), (with_states, without), strict=True
    ):
        assert_right(answer, inputs)


def test_only_what_is_asked_for_is_sent(model):
    (answer,) = model.execute([Request(drawn(1, 4, 0), wanted=["c_n"])])
    assert set(answer.arrays) == {"c_n"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"input": np.zeros((1, 4), np.float32)}, "[1, 4], wanted [B, T, 7]"),
        ({"input": np.zeros((1, 4, 6), np.float32)}, "[1, 4, 6], wanted [1, 4, 7]"),
        ({"input": np.zeros((0, 4, 7), np.float32)}, "no rows, B = 0"),
        ({"input": np.zeros((1, 0, 7), np.float32)}, "T = 0 steps, this engine takes 1 to 64"),
        ({"input": np.zeros((1, 65, 7), np.float32)}, "T = 65 steps"),
        ({"input": np.zeros((1, 4, 7))}, "input is float64, wanted float32"),
        ({"input": np.full((1, 4, 7), np.inf, np.float32)}, "holds inf at [0, 0, 0]"),
        ({"c_0": np.zeros((2, 1, 5), np.float32)}, "c_0 has the shape [2, 1, 5], wanted [1, 1, 5]"),
        ({"c_0": np.full((1, 1, 5), np.nan, np.float32)}, "c_0 holds nan"),
    ],
)
def test_a_bad_input_is_answered_in_words(model, change, words):
    (answer,) = model.execute([Request({**drawn(1, 4, 0), **change})])
    assert answer.error.message.startswith("bad input: ")
    assert words in answer.error.message


def test_an_engine_that_fails_answers_every_request_of_its_run(serve, monkeypatch):
    spec = WITHOUT_LENGTHS
    model = serve(spec)

    def failing(self, inputs, wanted=None):
        if inputs["input"].shape[1] == 4:
            raise RuntimeError("out of memory")
        return right(self, inputs, wanted)

    right = OnnxSession.run
    monkeypatch.setattr(OnnxSession, "run", failing)
    requests = [drawn(1, 4, 0, spec), drawn(1, 5, 1, spec), drawn(1, 4, 2, spec)]
    first, second, third = model.execute([Request(r) for r in requests])
    assert first.error.message == third.error.message == "engine failed: out of memory"
    assert_right(second, requests[1], spec)


@pytest.fixture
def long_ago(model, monkeypatch):
    """The model as if every request had waited for others before it."""
    monkeypatch.setattr(sys.modules[type(model).__module__], "ASK_AFTER_S", -1.0)
    return model


def test_what_was_cancelled_while_it_waited_is_not_computed(long_ago, runs):
    waiting, beside, alone = (Request(drawn(1, time, time)) for time in (4, 4, 9))
    waiting.cancelled = alone.cancelled = True
    answers = long_ago.execute([waiting, beside, alone])
    for k in (0, 2):
        assert (answers[k].error.message, answers[k].error.code) == ("cancelled", "CANCELLED")
    assert_right(answers[1], beside.inputs_)
    assert [shape[:2] for shape, _ in runs] == [(1, 4)]


def test_who_has_not_waited_is_not_asked_whether_it_was_cancelled(model):
    request = Request(drawn(1, 4, 0))
    request.is_cancelled = None  # to call it is an error
    assert_right(model.execute([request])[0], request.inputs_)


def test_metrics_tell_rows_padding_and_the_engine(serve):
    spec = VARIANTS["padded_gru"]
    model = serve(spec)
    values = MetricFamily.values
    assert values["looprnn_engine_info", "onnxruntime"] == 1
    sizes = [(2, 1), (1, 10), (3, 7)]  # 1 + 3 rows of 10 steps, and 2 of 1
    model.execute([Request(on_the_wire(drawn(b, t, t, spec)), ["h_n"]) for b, t in sizes])
    for _ in range(2):  # what was told is not told again
        model._runs.show()
        assert values["looprnn_batch_rows_count",] == 2
        assert values["looprnn_batch_rows_sum",] == 6
        rows = {key[1]: v for key, v in values.items() if key[0] == "looprnn_batch_rows_bucket"}
        assert rows == {"1": 0, "2": 1, "4": 2, "8": 2, "+Inf": 2}
        assert values["looprnn_padding_waste_sum",] == pytest.approx((40 - 10 - 21) / 40)
        assert values["looprnn_padding_waste_bucket", "0"] == 1
        assert values["looprnn_padding_waste_bucket", "0.2"] == 1
        assert values["looprnn_padding_waste_bucket", "0.3"] == 2
        assert values["looprnn_engine_seconds_count",] == 2
        assert values["looprnn_engine_seconds_sum",] > 0


@pytest.mark.parametrize(
    ("engine", "words"),
    [("tensorrt", "asks for the engine 'tensorrt'"), ("tensort", "asks for the engine 'tensort'")],
)
def test_a_named_engine_that_is_not_there_fails_the_load(model, tmp_path, engine, words):
    with pytest.raises(RuntimeError, match=words) as caught:
        type(model)().initialize(arguments(tmp_path, engine=engine))
    assert str(caught.value).startswith("lstm: ")


def on_the_wire(inputs):
    """Triton's dims cannot be empty: one length a row is [B, 1]."""
    return {n: a[:, np.newaxis] if n == "lengths" else a for n, a in inputs.items()}


@pytest.mark.parametrize("name", ["padded_gru", "tokens"])
def test_rows_of_many_lengths_with_and_without_saying_so_share_a_run(serve, name):
    spec = VARIANTS[name]
    requests = [drawn(2, 5, seed, spec) for seed in range(3)]
    del requests[1]["lengths"]  # every row is T long
    names = spec.output_names
    answers = serve(spec).execute([Request(on_the_wire(r), names) for r in requests])
    for answer, inputs in zip(answers, requests, strict=True):
        assert_right(answer, inputs, spec)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("padded_gru", {"lengths": [[5], [2]]}, "lengths holds 5 at [0]; wanted 0 to 4"),
        ("padded_gru", {"lengths": [[-1], [2]]}, "lengths holds -1 at [0]; wanted 0 to 4"),
        ("padded_gru", {"lengths": [[1]]}, "lengths has the shape [1, 1], wanted [2]"),
        (
            "tokens",
            {"input": [[0, 1, 2, 11], [0, 0, 0, 0]]},
            "input holds 11 at [0, 3]; wanted 0 to 10",
        ),
        ("tokens", {"input": [[0, 1, -2, 3], [0, 0, 0, 0]]}, "input holds -2 at [0, 2]"),
        ("tokens", {"input": [[[0], [1], [2], [3]]]}, "[1, 4, 1], wanted [B, T]"),
    ],
)
def test_a_bad_whole_number_is_answered_in_words(serve, name, change, words):
    spec = VARIANTS[name]
    changed = {n: np.array(v, np.int32) for n, v in change.items()}
    inputs = {**on_the_wire(drawn(2, 4, 0, spec)), **changed}
    (answer,) = serve(spec).execute([Request(inputs, spec.output_names)])
    assert answer.error.message.startswith("bad input: ")
    assert words in answer.error.message
