"""The server model alone, on a double of Triton: which requests share a run of the engine, and what
each of them gets.
"""

import dataclasses
import sys

import numpy as np
import pytest
from conftest import VARIANTS
from triton_double import SPEC, MetricFamily, Request, assert_right, drawn, on_the_wire, serving

from looprnn.engines.onnxruntime import OnnxSession

WITHOUT_LENGTHS = dataclasses.replace(SPEC, lengths=False, streaming=False)


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """serve(spec) builds it for the CPU and loads it."""
    with serving(tmp_path, monkeypatch) as serve:
        yield serve


@pytest.fixture
def model(serve):
    return serve(SPEC)


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


@pytest.mark.parametrize("name", ["padded_gru", "tokens"])
def test_rows_of_many_lengths_with_and_without_saying_so_share_a_run(serve, name):
    spec = VARIANTS[name]
    requests = [drawn(2, 5, seed, spec) for seed in range(3)]
    del requests[1]["lengths"]  # every row is T long
    names = spec.output_names
    answers = serve(spec).execute([Request(on_the_wire(r), names) for r in requests])
    for answer, inputs in zip(answers, requests, strict=True):
        assert_right(answer, inputs, spec)
