"""The oracle against numbers worked by hand, and against laws that any recurrent layer obeys."""

import math
from dataclasses import replace

import numpy as np
import pytest
from cases import CASES
from hypothesis import given
from hypothesis import strategies as st

from looprnn import reference
from looprnn.parity import draw_inputs
from looprnn.spec import Activation, Layer, RNNSpec, WeightSource
from looprnn.weights import load_weights


def seed_inputs(steps: int) -> dict[str, np.ndarray]:
    """The seed's: three rows, inputs of seven ones, five hidden units that start at one."""
    return {
        "input": np.ones((3, steps, 7)),
        "h_0": np.ones((3, 1, 5)),
        "c_0": np.zeros((3, 1, 5)),
    }


def seed_spec(cell: str, **fields: object) -> RNNSpec:
    layer = Layer(cell=cell, hidden_size=5, **fields)
    return RNNSpec(name="seed", input_size=7, layers=(layer,), weights=WeightSource(constant=1.0))


def test_relu_rnn_of_ones_by_hand():
    spec = seed_spec("rnn", activations=(Activation("relu"),))
    got = reference.run(spec, load_weights(spec), seed_inputs(4))
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
    got = reference.run(spec, load_weights(spec), seed_inputs(4))
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


def one_unit(cell, **options):
    """One unit whose input is 1, with R and the biases 0: the gates' sums are W itself."""
    layer = Layer(cell=cell, hidden_size=1, **options)
    rows = len(layer.gates)
    w = {
        "weight_ih_l0": np.arange(1.0, rows + 1)[:, np.newaxis],
        "weight_hh_l0": np.zeros((rows, 1)),
        "bias_ih_l0": np.zeros(rows),
        "bias_hh_l0": np.zeros(rows),
    }
    return RNNSpec(name="unit", input_size=1, layers=(layer,), weights=WeightSource(seed=0)), w


def sigma(x):
    return 1 / (1 + math.exp(-x))


def test_lstm_gates_by_hand_where_each_has_its_own_weight():
    spec, w = one_unit("lstm")  # sums: i=1 f=2 g=3 o=4
    inputs = {
        "input": np.ones((1, 1, 1)),
        "h_0": np.zeros((1, 1, 1)),
        "c_0": np.full((1, 1, 1), 0.5),
    }
    got = reference.run(spec, w, inputs)
    c_1 = sigma(2) * 0.5 + sigma(1) * math.tanh(3)
    assert got["c_n"].item() == pytest.approx(c_1, abs=1e-15)
    assert got["h_n"].item() == pytest.approx(sigma(4) * math.tanh(c_1), abs=1e-15)


@pytest.mark.parametrize("reset", ["after", "before"])
def test_gru_gates_by_hand_where_each_has_its_own_weight(reset):
    spec, w = one_unit("gru", reset=reset)  # sums: r=1 z=2 n=3
    w["weight_hh_l0"][2], w["bias_hh_l0"][2] = 0.7, 0.1
    got = reference.run(spec, w, {"input": np.ones((1, 1, 1)), "h_0": np.full((1, 1, 1), 0.5)})
    recurrent = sigma(1) * (0.7 * 0.5 + 0.1) if reset == "after" else 0.7 * (sigma(1) * 0.5) + 0.1
    h_1 = (1 - sigma(2)) * math.tanh(3 + recurrent) + sigma(2) * 0.5
    assert got["h_n"].item() == pytest.approx(h_1, abs=1e-15)


def test_peepholes_by_hand_see_the_old_cell_and_o_the_new():
    spec, w = one_unit("lstm", peepholes=True)
    w["weight_p_l0"] = np.array([0.1, 0.2, 0.3])  # i f o
    inputs = {
        "input": np.ones((1, 1, 1)),
        "h_0": np.zeros((1, 1, 1)),
        "c_0": np.full((1, 1, 1), 0.5),
    }
    got = reference.run(spec, w, inputs)
    c_1 = sigma(2 + 0.2 * 0.5) * 0.5 + sigma(1 + 0.1 * 0.5) * math.tanh(3)
    assert got["c_n"].item() == pytest.approx(c_1, abs=1e-15)
    assert got["h_n"].item() == pytest.approx(sigma(4 + 0.3 * c_1) * math.tanh(c_1), abs=1e-15)


def test_layer_norm_by_hand_normalizes_both_products_and_the_cell():
    """One LSTM step of two units; the norms run over all 4·H rows at once, biases stay outside."""
    layer = Layer(cell="lstm", hidden_size=2, layer_norm=True)
    spec = RNNSpec(name="ln", input_size=1, layers=(layer,), weights=WeightSource(seed=8))
    w = {name: np.array(a, np.float64) for name, a in load_weights(spec).items()}
    x, h, c = 0.7, np.array([0.3, -0.4]), np.array([0.2, -0.6])

    def norm(v):
        mean = sum(v) / len(v)
        return (v - mean) / math.sqrt(sum((v - mean) ** 2) / len(v) + 1e-5)

    from_x = norm(w["weight_ih_l0"][:, 0] * x) * w["weight_ln_ih_l0"] + w["bias_ih_l0"]
    from_h = norm(w["weight_hh_l0"] @ h) * w["weight_ln_hh_l0"] + w["bias_hh_l0"]
    i, f, g, o = np.split(from_x + from_h, 4)
    c_1 = np.array([sigma(f[k]) * c[k] + sigma(i[k]) * math.tanh(g[k]) for k in (0, 1)])
    seen = norm(c_1) * w["weight_ln_c_l0"] + w["bias_ln_c_l0"]
    h_1 = [sigma(o[k]) * math.tanh(seen[k]) for k in (0, 1)]
    start = {"h_0": h[None, None], "c_0": c[None, None]}
    got = reference.run(spec, w, {"input": np.full((1, 1, 1), x), **start})
    np.testing.assert_allclose(got["c_n"][0, 0], c_1, rtol=0, atol=1e-14)
    np.testing.assert_allclose(got["h_n"][0, 0], h_1, rtol=0, atol=1e-14)


def test_activations_by_hand():
    x = np.array([-2.0, -0.5, 0.0, 0.5, 2.0])
    for activation, want in (
        (Activation("hard_sigmoid"), [0.1, 0.4, 0.5, 0.6, 0.9]),
        (Activation("hard_sigmoid", 1 / 6), [1 / 6, 5 / 12, 0.5, 7 / 12, 5 / 6]),
        (Activation("leaky_relu"), [-0.02, -0.005, 0, 0.5, 2]),
        (Activation("elu", 2.0), [2 * math.expm1(-2), 2 * math.expm1(-0.5), 0, 0.5, 2]),
        (Activation("softsign"), [-2 / 3, -1 / 3, 0, 1 / 3, 2 / 3]),
        (Activation("softplus"), [math.log1p(math.exp(v)) for v in x]),
        (Activation("thresholded_relu", 0.5), [0, 0, 0, 0, 2]),
        (Activation("scaled_tanh", 2, 3), [2 * math.tanh(3 * v) for v in x]),
        (Activation("affine", 2, 1), [-3, 0, 1, 2, 5]),
    ):
        np.testing.assert_allclose(reference.activate(activation, x), want, rtol=0, atol=1e-15)


def test_backward_half_of_constant_input_is_the_forward_half_reversed():
    spec = seed_spec("lstm", direction="bidirectional")
    inputs = {"input": np.ones((3, 4, 7)), "h_0": np.ones((3, 2, 5)), "c_0": np.zeros((3, 2, 5))}
    output = reference.run(spec, load_weights(spec), inputs)["output"]
    np.testing.assert_array_equal(output[..., 5:], output[:, ::-1, :5])


def test_sigmoid_has_its_limits():
    # pytest turns the warnings that a naive formula gives here into errors.
    np.testing.assert_array_equal(reference.sigmoid(np.array([-1e4, 0.0, 1e4])), [0.0, 0.5, 1.0])


ONE_LAYER = [
    c
    for c in CASES
    if len(c.layers) == 1 and not c.options and "reverse" in c.layers[0].directions
    if c.layers[0].merge == "concat"
]


@pytest.mark.parametrize("case", ONE_LAYER, ids=lambda c: c.name)
def test_reverse_is_forward_on_flipped_time(case):
    got = reference.run(case.spec, case.weights, case.inputs)
    (layer,) = case.layers
    k = layer.directions.index("reverse")
    alone = replace(layer, direction="forward", activations=layer.activations_reverse)
    spec = replace(case.spec, layers=(alone,))
    weights = {n.removesuffix("_reverse"): a for n, a in case.weights.items() if "_reverse" in n}
    flipped = {n: a[:, k : k + 1] for n, a in case.inputs.items() if n != "input"}
    flipped["input"] = case.inputs["input"][:, ::-1]
    half = reference.run(spec, weights, flipped)
    size = layer.state_size("h")
    np.testing.assert_array_equal(
        half["output"][:, ::-1], got["output"][..., k * size : (k + 1) * size]
    )
    np.testing.assert_array_equal(half["h_n"][:, 0], got["h_n"][:, k])


RAGGED = [c for c in CASES if c.options.get("lengths")]


@pytest.mark.parametrize("case", RAGGED, ids=lambda c: c.name)
def test_a_padded_row_answers_as_the_same_row_alone(case):
    inputs = case.inputs
    got = reference.run(case.spec, case.weights, inputs)
    for row, n in enumerate(inputs["lengths"]):
        alone = {name: a[row : row + 1] for name, a in inputs.items()}
        if n == 0:
            for s in case.spec.states:
                np.testing.assert_array_equal(got[f"{s}_n"][row], inputs[f"{s}_0"][row])
            continue
        alone |= {"input": alone["input"][:, :n], "lengths": np.array([n], np.int32)}
        want = reference.run(case.spec, case.weights, alone)
        for name in case.spec.output_names:
            timed = want[name].ndim == 3 and name not in ("h_n", "c_n")
            mine = got[name][row : row + 1, :n] if timed else got[name][row : row + 1]
            np.testing.assert_allclose(mine, want[name], rtol=0, atol=1e-14)


@pytest.mark.parametrize("case", RAGGED, ids=lambda c: c.name)
def test_what_stands_past_a_rows_length_is_the_conventions(case):
    got = reference.run(case.spec, case.weights, case.inputs)
    for row, n in enumerate(case.inputs["lengths"]):
        past = got["output"][row, n:]
        if case.spec.padding == "zero":
            np.testing.assert_array_equal(past, 0)
        else:
            size = case.layers[-1].state_size("h")
            last = got["output"][row, n - 1, :size] if n else 0.0
            np.testing.assert_array_equal(past[:, :size], np.broadcast_to(last, (len(past), size)))
            np.testing.assert_array_equal(past[:, size:], 0)


def test_padding_changes_nothing():
    case = next(c for c in CASES if c.name == "ragged")
    inputs = case.inputs
    past = np.arange(case.T)[None, :, None] >= inputs["lengths"][:, None, None]
    other = {**inputs, "input": np.where(past, 1e3, inputs["input"]).astype(np.float32)}
    one, two = (reference.run(case.spec, case.weights, i) for i in (inputs, other))
    for name in case.spec.output_names:
        np.testing.assert_array_equal(one[name], two[name])


@given(cut=st.integers(1, 11), seed=st.integers(0, 2**32 - 1))
def test_cut_in_two(cut, seed):
    layers = (Layer(cell="lstm", hidden_size=4, proj_size=3), Layer(cell="gru", hidden_size=5))
    spec = RNNSpec(name="cut", input_size=3, layers=layers, weights=WeightSource(seed=seed))
    weights = load_weights(spec)
    inputs = draw_inputs(spec, 2, 12, seed)
    whole = reference.run(spec, weights, inputs)
    first = reference.run(spec, weights, {**inputs, "input": inputs["input"][:, :cut]})
    carried = {"input": inputs["input"][:, cut:], "h_0": first["h_n"], "c_0": first["c_n"]}
    second = reference.run(spec, weights, carried)
    joined = np.concatenate([first["output"], second["output"]], axis=1)
    np.testing.assert_array_equal(joined, whole["output"])
    np.testing.assert_array_equal(second["c_n"], whole["c_n"])


@given(seed=st.integers(0, 2**32 - 1))
def test_permuting_the_batch_permutes_the_answer(seed):
    layer = Layer(cell="gru", hidden_size=4, direction="bidirectional")
    spec = RNNSpec(name="rows", input_size=3, layers=(layer,), weights=WeightSource(seed=seed))
    inputs = draw_inputs(spec, 5, 4, seed)
    order = np.random.default_rng(seed).permutation(5)
    straight = reference.run(spec, load_weights(spec), inputs)
    permuted = reference.run(spec, load_weights(spec), {n: a[order] for n, a in inputs.items()})
    for name in spec.output_names:
        np.testing.assert_array_equal(permuted[name], straight[name][order])
