"""The oracle against numbers worked by hand, and against laws that any recurrent layer obeys."""

import math

import numpy as np
import pytest
from cases import CASES
from hypothesis import given
from hypothesis import strategies as st

from looprnn import reference
from looprnn.parity import draw_inputs, run_reference
from looprnn.spec import RNNSpec, WeightSource
from looprnn.weights import load_weights


def seed_inputs(steps: int) -> dict[str, np.ndarray]:
    """The seed's: three rows, inputs of seven ones, five hidden units that start at one."""
    return {
        "input": np.ones((3, steps, 7)),
        "h_0": np.ones((3, 1, 5)),
        "c_0": np.zeros((3, 1, 5)),
    }


def seed_spec(cell: str, **fields: str) -> RNNSpec:
    return RNNSpec(
        name="seed",
        cell=cell,
        input_size=7,
        hidden_size=5,
        weights=WeightSource(constant=1.0),
        **fields,
    )


def test_relu_rnn_of_ones_by_hand():
    spec = seed_spec("rnn", activation="relu")
    got = run_reference(spec, load_weights(spec), seed_inputs(4))
    # Seven inputs of 1 and five units of 1: h_1 = 7 + 5·1 = 12. Then h_2 = 7 + 5·12 = 67.
    h_1 = 7 * 1 + 5 * 1
    h_2 = 7 * 1 + 5 * h_1
    assert (h_1, h_2) == (12, 67)
    h_3 = 7 + 5 * h_2
    h_4 = 7 + 5 * h_3
    assert (h_3, h_4) == (342, 1717)
    for step, value in enumerate([h_1, h_2, h_3, h_4]):
        np.testing.assert_array_equal(got["output"][:, step], np.full((3, 5), value))
    np.testing.assert_array_equal(got["h_n"], np.full((3, 1, 5), 1717))


def test_lstm_of_ones_by_hand():
    spec = seed_spec("lstm")
    got = run_reference(spec, load_weights(spec), seed_inputs(4))
    # Step 1: every gate's sum is 7·1 + 5·1 = 12.
    gate = 1 / (1 + math.exp(-12))
    assert gate == pytest.approx(0.99999386, abs=5e-9)
    c_1 = gate * 0 + gate * math.tanh(12)
    h_1 = gate * math.tanh(c_1)
    # Step 2: every gate's sum is 7 + 5·h_1 = 10.8079.
    gate = 1 / (1 + math.exp(-(7 + 5 * h_1)))
    assert gate == pytest.approx(0.99997976, abs=5e-9)
    c_2 = gate * c_1 + gate * math.tanh(7 + 5 * h_1)
    assert c_2 == pytest.approx(1.99995338, abs=5e-8)
    h_2 = gate * math.tanh(c_2)
    np.testing.assert_allclose(got["output"][:, 0], h_1, rtol=0, atol=1e-15)
    np.testing.assert_allclose(got["output"][:, 1], h_2, rtol=0, atol=1e-15)
    # And what the seed printed, in float32.
    printed = [0.76158684, 0.96400476, 0.99504673, 0.99932283]
    np.testing.assert_allclose(got["output"][0, :, 0], printed, rtol=0, atol=2e-7)
    np.testing.assert_allclose(got["h_n"], 0.99932283, rtol=0, atol=2e-7)
    np.testing.assert_allclose(got["c_n"], 3.999906, rtol=0, atol=5e-7)


def test_gates_by_hand_where_each_has_its_own_weight():
    # One unit, one input of 1, R and biases 0: the gate sums are W itself, i=1 f=2 g=3 o=4.
    w = np.array([[1.0], [2.0], [3.0], [4.0]])
    zero_r, zero_b = np.zeros((4, 1)), np.zeros(4)
    h, c = reference.lstm_step(np.ones(1), np.zeros(1), np.array([0.5]), w, zero_r, zero_b, zero_b)
    c_1 = 0.5 / (1 + math.exp(-2)) + math.tanh(3) / (1 + math.exp(-1))
    assert c[0] == pytest.approx(c_1, abs=1e-15)
    assert h[0] == pytest.approx(math.tanh(c_1) / (1 + math.exp(-4)), abs=1e-15)


def test_backward_half_of_constant_input_is_the_forward_half_reversed():
    spec = seed_spec("lstm", direction="bidirectional")
    inputs = {"input": np.ones((3, 4, 7)), "h_0": np.ones((3, 2, 5)), "c_0": np.zeros((3, 2, 5))}
    output = run_reference(spec, load_weights(spec), inputs)["output"]
    np.testing.assert_array_equal(output[..., 5:], output[:, ::-1, :5])


def test_sigmoid_has_its_limits():
    # pytest turns the warnings that a naive formula gives here into errors.
    np.testing.assert_array_equal(reference.sigmoid(np.array([-1e4, 0.0, 1e4])), [0.0, 0.5, 1.0])


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_reverse_is_forward_on_flipped_time(case):
    got = run_reference(case.spec, case.weights, case.inputs)
    for k, direction in enumerate(case.spec.directions):
        if direction != "reverse":
            continue
        weights = {
            n.removesuffix("_reverse"): a for n, a in case.weights.items() if "_reverse" in n
        }
        flipped = {n: a[:, k : k + 1] for n, a in case.inputs.items() if n != "input"}
        flipped["input"] = case.inputs["input"][:, ::-1]
        alone = reference.run(case.cell, ("forward",), weights, flipped, activation=case.activation)
        half = slice(k * case.H, (k + 1) * case.H)
        np.testing.assert_array_equal(alone["output"][:, ::-1], got["output"][..., half])
        np.testing.assert_array_equal(alone["h_n"][:, 0], got["h_n"][:, k])


@given(cut=st.integers(1, 11), seed=st.integers(0, 2**32 - 1))
def test_cut_in_two(cut, seed):
    spec = RNNSpec(
        name="cut", cell="lstm", input_size=3, hidden_size=4, weights=WeightSource(seed=seed)
    )
    weights = load_weights(spec)
    inputs = draw_inputs(spec, 2, 12, seed)
    whole = run_reference(spec, weights, inputs)
    first = run_reference(spec, weights, {**inputs, "input": inputs["input"][:, :cut]})
    carried = {"input": inputs["input"][:, cut:], "h_0": first["h_n"], "c_0": first["c_n"]}
    second = run_reference(spec, weights, carried)
    joined = np.concatenate([first["output"], second["output"]], axis=1)
    np.testing.assert_array_equal(joined, whole["output"])
    np.testing.assert_array_equal(second["c_n"], whole["c_n"])


@given(seed=st.integers(0, 2**32 - 1))
def test_permuting_the_batch_permutes_the_answer(seed):
    spec = RNNSpec(
        name="rows",
        cell="rnn",
        input_size=3,
        hidden_size=4,
        direction="bidirectional",
        weights=WeightSource(seed=seed),
    )
    inputs = draw_inputs(spec, 5, 4, seed)
    order = np.random.default_rng(seed).permutation(5)
    straight = run_reference(spec, load_weights(spec), inputs)
    permuted = run_reference(spec, load_weights(spec), {n: a[order] for n, a in inputs.items()})
    for name in spec.output_names:
        np.testing.assert_array_equal(permuted[name], straight[name][order])
