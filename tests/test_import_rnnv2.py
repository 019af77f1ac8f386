"""TensorRT's RNNv2 vocabulary. Oracles: numbers worked by hand, and torch.nn on the same weights;
NvInfer.h gives TensorRT's equations, written down once more here.
"""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rnnv2_layers import (
    BATCH,
    HIDDEN,
    INPUT,
    TIME,
    TORCH_ORDER,
    assert_same,
    by_torch,
    drawn,
    npz_of,
    of_ones,
    run_defaults,
    torch,
)

from looprnn import importers, parity, reference
from looprnn.importers import rnnv2
from looprnn.importers.rnnv2 import (
    RNNGateType,
    RNNOperation,
    RNNv2,
)
from looprnn.spec import Activation, Range
from looprnn.variants import load_spec
from looprnn.weights import load_weights

ROOT = Path(__file__).resolve().parent.parent


def test_relu_of_ones_is_12_67_342_1717():
    """7 ones and 5 ones of h: 12; 7 + 5·12 = 67; 7 + 5·67 = 342; 7 + 5·342 = 1717."""
    found = of_ones("RELU").to_imported("ones")
    got = run_defaults(found, np.ones((3, 4, 7)))
    np.testing.assert_array_equal(got["output"][1, :, 2], [12, 67, 342, 1717])
    np.testing.assert_array_equal(got["h_n"], np.full((3, 1, 5), 1717.0))


def test_lstm_of_ones_is_what_pencil_and_paper_say():
    """Every gate sees 7 + 5·h: c = σc + σ·tanh, h = σ·tanh(c), from h = 1 and c = 0."""
    layer = of_ones("LSTM")
    layer.cell_state = np.zeros((3, 1, 5), np.float32)
    got = run_defaults(layer.to_imported("ones"), np.ones((3, 4, 7)))
    h, c = 1.0, 0.0
    for t in range(4):
        gate = 1 / (1 + np.exp(-(7 + 5 * h)))
        c = gate * c + gate * np.tanh(7 + 5 * h)
        h = gate * np.tanh(c)
        np.testing.assert_allclose(got["output"][:, t], h, rtol=0, atol=1e-14)
    np.testing.assert_allclose(got["c_n"], c, rtol=0, atol=1e-14)
    assert round(c, 6) == 3.999906  # and this is the number TensorRT printed


@pytest.mark.parametrize("flat", [False, True], ids=["two_dimensional", "flat"])
@pytest.mark.parametrize("both", [False, True], ids=["forward", "both_ways"])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("op", TORCH_ORDER)
def test_no_gate_layer_or_direction_is_swapped(op, layers, both, flat):
    layer, arrays = drawn(op, layers=layers, both=both, flat=flat)
    found = layer.to_imported("net")
    inputs = parity.draw_inputs(found.spec, BATCH, TIME)
    assert_same(found, inputs, by_torch(op, arrays, inputs, layers=layers, both=both))


def test_the_gru_resets_after_the_product_and_its_bias():
    """h[t] := tanh(Wh·x + r*(Rh·h + Rbh) + Wbh), H := (1 - z)*h + z*H: NvInfer.h of TensorRT 5 to
    8, RNNOperation.
    """
    layer, a = drawn("GRU")
    found = layer.to_imported("net")
    inputs = parity.draw_inputs(found.spec, 1, 1)
    x, before = inputs["input"][0, 0].astype(float), inputs["h_0"][0, 0].astype(float)

    def seen(gate, part, vector):
        return a[0, gate, part].astype(float) @ vector + a[0, gate, f"{part}b"]

    z = 1 / (1 + np.exp(-seen("UPDATE", "W", x) - seen("UPDATE", "R", before)))
    r = 1 / (1 + np.exp(-seen("RESET", "W", x) - seen("RESET", "R", before)))
    new = np.tanh(seen("HIDDEN", "W", x) + r * seen("HIDDEN", "R", before))
    got = reference.run(found.spec, found.weights, inputs)
    want = (1 - z) * new + z * before
    np.testing.assert_allclose(got["output"][0, 0], want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("both", [False, True], ids=["forward", "both_ways"])
@pytest.mark.parametrize("op", TORCH_ORDER)
def test_skip_is_linear_with_the_identity_and_only_in_the_first_layer(op, both):
    size = (HIDDEN, HIDDEN)
    skipping, arrays = drawn(op, layers=2, both=both, skip=True, size=size)
    found = skipping.to_imported("net")
    assert [layer.skip_input for layer in found.spec.layers] == [True, False]
    for gate in TORCH_ORDER[op]:
        for index in range(1 + both):
            arrays[index, gate, "W"] = np.eye(HIDDEN, dtype=np.float32)
    inputs = parity.draw_inputs(found.spec, BATCH, TIME)
    assert_same(found, inputs, by_torch(op, arrays, inputs, layers=2, both=both, size=size))


@settings(max_examples=40)
@given(
    op=st.sampled_from(sorted(TORCH_ORDER)),
    layers=st.integers(1, 3),
    both=st.booleans(),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    compressed=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_calls_npz_and_variant_are_one(tmp_path_factory, op, layers, both, size, compressed, seed):
    folder = tmp_path_factory.mktemp("round")
    layer, arrays = drawn(op, layers=layers, both=both, size=size, seed=seed)
    layer.hidden_state = 0.25
    keys = npz_of(layer, arrays, op)
    (np.savez_compressed if compressed else np.savez)(folder / "net.npz", **keys)
    called, read = layer.to_imported("net"), importers.read(folder / "net.npz", name="net")
    assert (called.spec, called.notes) == (read.spec, read.notes)
    spec = load_spec(importers.write(read, folder))
    weights = load_weights(spec)
    assert weights.keys() == called.weights.keys()
    for name, array in called.weights.items():
        np.testing.assert_array_equal(weights[name], array)
    inputs = parity.draw_inputs(spec, 2, 3, seed=seed)
    want = by_torch(op, arrays, inputs, layers=layers, both=both, size=size)
    assert_same(importers.Imported(spec, weights), inputs, want)


# settings


def test_settings_land_in_the_spec():
    layer, _ = drawn("LSTM", layers=2, both=True)
    layer.hidden_state = np.full((1, 9, 4, 7), 0.5)
    layer.cell_state = -2.0
    layer.seq_lengths = object()  # once a tensor
    found = layer.to_imported("net")
    assert found.notes == ()
    assert (found.spec.h_0, found.spec.c_0, found.spec.lengths) == (0.5, -2.0, True)
    assert found.spec.profile.time == Range(1, TIME, TIME)
    assert {one.direction for one in found.spec.layers} == {"bidirectional"}
    relu = of_ones("RELU").to_imported("net")
    assert relu.spec.layers[0].activations == (Activation("relu"),)
    assert not relu.spec.lengths


def test_constants_that_differ_are_sent_with_the_request():
    layer, arrays = drawn("LSTM")
    layer.hidden_state = np.arange(21.0).reshape(3, 1, 7)
    found = layer.to_imported("net")
    assert found.spec.h_0 == 0.0
    (note,) = found.notes
    assert note.startswith("hidden_state is not one number throughout")
    assert note.endswith("Send h_0 [B, 1, 7] with each request")
    inputs = parity.draw_inputs(found.spec, 3, TIME) | {"h_0": layer.hidden_state}
    assert_same(found, inputs, by_torch("LSTM", arrays, inputs))


def test_enums_of_tensorrt_itself_and_names_are_understood():
    class Theirs:
        name = "GRU"

    assert RNNv2(2, 1, 3, 4, Theirs()).op is RNNOperation.GRU
    assert RNNv2(2, 1, 3, 4, "LSTM").op is RNNOperation.LSTM
    assert RNNv2(2, 1, 3, 4, 0).op is RNNOperation.RELU
    assert [e.value for e in RNNGateType] == [0, 1, 2, 3, 4, 5, 6]
    assert [e.name for e in RNNGateType][:3] == ["INPUT", "OUTPUT", "FORGET"]  # NvInfer.h's order


def test_an_array_set_may_be_used_again():
    layer, buffer = of_ones("TANH"), np.full((5, 7), 0.5, np.float32)
    layer.set_weights_for_gate(0, RNNGateType.INPUT, True, buffer)
    buffer[:] = 9
    assert layer.to_imported("net").weights["weight_ih_l0"].max() == 0.5


def test_half_precision_is_widened():
    layer, _ = drawn("TANH")
    half = np.full((HIDDEN, INPUT), 0.1, np.float16)
    layer.set_weights_for_gate(0, RNNGateType.INPUT, True, torch.from_numpy(half))
    found = layer.to_imported("net").weights["weight_ih_l0"]
    np.testing.assert_array_equal(found, half.astype(np.float32))


# docs/migrating-from-rnnv2.md

PAGE = (ROOT / "docs/migrating-from-rnnv2.md").read_text(encoding="utf-8")


def test_the_page_does_what_it_shows(tmp_path, monkeypatch, capsys):
    before, after = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert "add_rnn_v2" in before
    rng = np.random.default_rng(0)
    shapes = {"W": (5, 7), "R": (5, 5), "W_bias": (5,), "R_bias": (5,)}
    trained = {
        f"{gate}/{part}": rng.uniform(-0.5, 0.5, shape).astype(np.float32)
        for gate in TORCH_ORDER["LSTM"]
        for part, shape in shapes.items()
    }
    np.savez(tmp_path / "trained.npz", **trained)
    monkeypatch.chdir(tmp_path)
    exec(after, {})
    assert capsys.readouterr().out.strip() == ""  # no notes
    spec = load_spec(tmp_path / "variants/migrated.toml")
    found = importers.Imported(spec, load_weights(spec))
    assert (spec.h_0, spec.c_0, spec.profile.time.max) == (1.0, 0.0, 4)
    inputs = parity.draw_inputs(spec, 3, 4)
    parts = {"W": "W", "R": "R", "W_bias": "Wb", "R_bias": "Rb"}
    arrays = {(0, *key.split("/")): array for key, array in trained.items()}
    arrays = {(k, gate, parts[part]): array for (k, gate, part), array in arrays.items()}
    assert_same(found, inputs, by_torch("LSTM", arrays, inputs, size=(7, 5)))


def test_the_page_names_every_setting_and_member():
    for word in (*rnnv2.SETTINGS, *(e.name for kind in (RNNGateType, RNNOperation) for e in kind)):
        assert word in PAGE, word
