"""What the server model alone, on a double of Triton, refuses, and in which words."""

import numpy as np
import pytest
from conftest import VARIANTS
from triton_double import SPEC, Request, arguments, assert_right, drawn, on_the_wire, serving


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """serve(spec) builds it for the CPU and loads it."""
    with serving(tmp_path, monkeypatch) as serve:
        yield serve


@pytest.fixture
def model(serve):
    return serve(SPEC)


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


@pytest.mark.parametrize(
    ("engine", "words"),
    [("tensorrt", "asks for the engine 'tensorrt'"), ("tensort", "asks for the engine 'tensort'")],
)
def test_a_named_engine_that_is_not_there_fails_the_load(model, tmp_path, engine, words):
    with pytest.raises(RuntimeError, match=words) as caught:
        type(model)().initialize(arguments(tmp_path, engine=engine))
    assert str(caught.value).startswith("lstm: ")
