"""TensorRT's RNNv2 vocabulary. Oracles: numbers worked by hand, and torch.nn on the same weights;
NvInfer.h gives TensorRT's equations, written down once more here.
"""

import io
import os
import re
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from looprnn import importers, parity, reference
from looprnn.errors import SpecError, WeightsError
from looprnn.importers import rnnv2
from looprnn.importers.rnnv2 import (
    RNNDirection,
    RNNGateType,
    RNNInputMode,
    RNNOperation,
    RNNv2,
)
from looprnn.spec import Activation, Range
from looprnn.variants import load_spec
from looprnn.weights import load_weights

if os.environ.get("CI"):
    import torch  # in CI a missing oracle is an error, not a skip
else:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; type: make torch")

ROOT = Path(__file__).resolve().parent.parent
# The order in which PyTorch stacks them: what a script that moved weights to TensorRT cut apart.
TORCH_ORDER = {"RELU": ["INPUT"], "TANH": ["INPUT"], "LSTM": ["INPUT", "FORGET", "CELL", "OUTPUT"],
               "GRU": ["RESET", "UPDATE", "HIDDEN"]}  # fmt: skip
INPUT, HIDDEN, BATCH, TIME = 5, 7, 3, 6


def gates(op):
    return [RNNGateType[name] for name in TORCH_ORDER[op]]


def of_ones(op, *, input_size=7, hidden_size=5):
    layer = RNNv2(input_size, 1, hidden_size, 4, RNNOperation[op])
    for gate in gates(op):
        layer.set_weights_for_gate(0, gate, True, np.ones((hidden_size, input_size), np.float32))
        layer.set_weights_for_gate(0, gate, False, np.ones((hidden_size, hidden_size), np.float32))
        for is_w in (True, False):
            layer.set_bias_for_gate(0, gate, is_w, np.zeros(hidden_size, np.float32))
    layer.hidden_state = np.ones((3, 1, hidden_size), np.float32)
    return layer


def drawn(op, *, layers=1, both=False, skip=False, flat=False, seed=0, size=(INPUT, HIDDEN)):
    """An RNNv2 with random weights, and each array by (layer index, gate's name, part)."""
    rng = np.random.default_rng(seed)
    inputs, hidden = size
    layer, arrays = RNNv2(inputs, layers, hidden, TIME, RNNOperation[op]), {}
    directions = 2 if both else 1
    for index in range(layers * directions):
        columns = inputs if index < directions else directions * hidden
        for name in TORCH_ORDER[op]:
            parts = {
                "W": (hidden, columns),
                "R": (hidden, hidden),
                "Wb": (hidden,),
                "Rb": (hidden,),
            }
            if skip and index < directions:
                del parts["W"]
            for part, shape in parts.items():
                array = rng.uniform(-0.6, 0.6, shape).astype(np.float32)
                arrays[index, name, part] = array
                setter = layer.set_bias_for_gate if part[1:] else layer.set_weights_for_gate
                setter(index, RNNGateType[name], part[0] == "W", array.ravel() if flat else array)
    if both:
        layer.direction = RNNDirection.BIDIRECTION
    if skip:
        layer.input_mode = RNNInputMode.SKIP
    return layer, arrays


def by_torch(op, arrays, inputs, *, layers=1, both=False, size=(INPUT, HIDDEN)):
    """torch.nn in float64 with the same arrays, stacked here."""
    kind = {"LSTM": torch.nn.LSTM, "GRU": torch.nn.GRU}.get(op, torch.nn.RNN)
    more = {"nonlinearity": op.lower()} if kind is torch.nn.RNN else {}
    module = kind(*size, layers, batch_first=True, bidirectional=both, **more).double()
    names = {"W": "weight_ih", "R": "weight_hh", "Wb": "bias_ih", "Rb": "bias_hh"}
    state = {}
    for index in range(layers * (1 + both)):
        k, backward = divmod(index, 2) if both else (index, 0)
        for part, name in names.items():
            stack = np.concatenate([arrays[index, gate, part] for gate in TORCH_ORDER[op]])
            state[f"{name}_l{k}" + "_reverse" * backward] = torch.from_numpy(stack)
    module.load_state_dict(state)

    def start(name):
        return torch.from_numpy(inputs[name].astype(np.float64).swapaxes(0, 1).copy())

    x = torch.from_numpy(inputs["input"].astype(np.float64))
    with torch.inference_mode():
        output, last = module(x, (start("h_0"), start("c_0")) if op == "LSTM" else start("h_0"))
    lasts = zip(("h_n", "c_n"), last if op == "LSTM" else (last,), strict=False)
    return {"output": output.numpy()} | {n: h.numpy().swapaxes(0, 1) for n, h in lasts}


def assert_same(found, inputs, want):
    got = reference.run(found.spec, found.weights, inputs)
    assert got.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_allclose(got[name], array, rtol=0, atol=1e-12, err_msg=name)


def run_defaults(found, x):
    inputs = {"input": x} | found.spec.defaults(*x.shape[:2])
    return reference.run(found.spec, found.weights, inputs)


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


def npz_of(layer, arrays, op):
    keys = {"op": op, "layer_count": layer.num_layers, "hidden_size": layer.hidden_size}
    keys |= {"max_seq_length": layer.max_seq_length, "direction": layer.direction.name}
    if layer.input_mode:
        keys["input_mode"] = layer.input_mode.name
    if layer.hidden_state is not None:
        keys["hidden_state"] = layer.hidden_state
    ends = {"W": "W", "R": "R", "Wb": "W_bias", "Rb": "R_bias"}
    return keys | {f"l{k}/{gate}/{ends[part]}": a for (k, gate, part), a in arrays.items()}


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


# refusals


def without(*lost):
    def change(layer):
        for key in lost:
            del layer._arrays[key]

    return change


def put(index, gate, is_w, array, *, bias=False):
    def change(layer):
        setter = layer.set_bias_for_gate if bias else layer.set_weights_for_gate
        setter(index, gate, is_w, array)

    return change


def assign(**attributes):
    def change(layer):
        for name, value in attributes.items():
            setattr(layer, name, value)

    return change


G = RNNGateType


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(
            without((1, G.CELL, "R"), (1, G.CELL, "W_bias")),
            "not set: layer 1, gate CELL, R; layer 1, gate CELL, W_bias$",
            id="lost",
        ),
        pytest.param(assign(num_layers=10**12), "not set: layer 2, .* and more", id="huge_count"),
        pytest.param(
            put(0, G.INPUT, True, np.ones((INPUT, HIDDEN))),
            r"layer 0, gate INPUT, W is \[5, 7\], wanted \[7, 5\] or \[35\]",
            id="transposed",
        ),
        pytest.param(
            put(1, G.OUTPUT, True, np.ones((HIDDEN, INPUT))),
            r"layer 1, gate OUTPUT, W is \[7, 5\], wanted \[7, 7\]",
            id="above_reads_the_layer_below",
        ),
        pytest.param(
            put(0, G.FORGET, False, np.ones(1), bias=True),
            r"layer 0, gate FORGET, R_bias is \[1\], wanted \[7\]",
            id="bias_for_one",
        ),
        pytest.param(
            put(0, G.INPUT, True, np.ones((HIDDEN, INPUT), int)), "wanted floating", id="integers"
        ),
        pytest.param(put(0, G.RESET, True, np.ones(3)), "LSTM has no gate RESET; it has INPUT, F",
                     id="gate_of_another_op"),
        pytest.param(put(0, "CARRY", True, np.ones(3)), "no RNNGateType", id="no_gate"),
        pytest.param(put(-1, G.CELL, True, np.ones(3)), "layer index -1", id="index_from_the_end"),
        pytest.param(put(0, G.CELL, True, np.full((7, 5), np.nan)), "ih_l0 holds NaN", id="nan"),
        pytest.param(put(0, G.CELL, True, np.full((7, 5), 1e39)), "beyond float32", id="beyond"),
        pytest.param(
            put(2, G.CELL, True, np.ones(3)),
            "layer 2, gate CELL, W set, but 2 UNIDIRECTION layers",
            id="one_layer_too_many",
        ),
        pytest.param(
            assign(direction=RNNDirection.BIDIRECTION), "not set: layer 2", id="half_of_both_ways"
        ),
        pytest.param(assign(direction="LEFT"), "no RNNDirection", id="no_direction"),
        pytest.param(
            assign(hidden_state=np.ones((3, 1, 7))),
            r"hidden_state is \[3, 1, 7\], wanted \[..., 2, 7\]",
            id="states_of_one_layer",
        ),
        pytest.param(assign(hidden_state=np.inf), "NaN or Inf", id="infinite_state"),
        pytest.param(assign(hidden_state=object()), "must be constants", id="a_tensor_for_a_state"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named(change, words):
    layer, _ = drawn("LSTM", layers=2)
    with pytest.raises(WeightsError, match=words):
        change(layer)
        layer.to_imported("net")


def test_skip_takes_no_weights_and_equal_sizes():
    layer, _ = drawn("GRU", layers=2, size=(HIDDEN, HIDDEN))
    layer.input_mode = RNNInputMode.SKIP
    with pytest.raises(WeightsError, match="layer 0, gate UPDATE, W; .*input mode SKIP have no"):
        layer.to_imported("net")
    other, _ = drawn("GRU", skip=True, size=(INPUT, HIDDEN))
    with pytest.raises(SpecError, match="input and hidden size equal, got 5 and 7"):
        other.to_imported("net")


def test_only_an_lstm_has_a_cell_state():
    layer, _ = drawn("GRU")
    layer.cell_state = 0.0
    with pytest.raises(WeightsError, match="only an LSTM has a cell_state, this is GRU"):
        layer.to_imported("net")


@pytest.mark.parametrize("wrong", [0, -1, 1.0, True, None, "7"])
def test_sizes_are_whole_numbers(wrong):
    with pytest.raises(WeightsError, match="hidden_size must be a whole number of at least 1"):
        RNNv2(7, 1, wrong, 4, RNNOperation.LSTM)


# .npz


def saved(path, change=(), *, op="GRU"):
    layer, arrays = drawn(op)
    keys = npz_of(layer, arrays, op) | dict(change)
    np.savez(path, **{key: value for key, value in keys.items() if value is not None})
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"l0/UPDATE/R": None}, "not set: layer 0, gate UPDATE, R"),
        ({"op": None}, "lacks op"),
        ({"l0/UPDATE/V": np.ones(3)}, "l0/UPDATE/V not understood; wanted keys such as l0/INPUT/W"),
        ({"hidden": 3}, "hidden not understood"),
        ({"l0/CELL/W": np.ones(3)}, "GRU has no gate CELL"),
        ({"l0/CARRY/W": np.ones(3)}, "no RNNGateType"),
        ({"l0/RESET/R": np.ones((3, 4))}, r"layer 0, gate RESET, R is \[3, 4\], wanted \[7, 7\]"),
        ({"op": "LSTMP"}, "'LSTMP' is no RNNOperation; there are RELU, TANH, LSTM, GRU"),
        ({"op": ["GRU", "GRU"]}, r"op is \[2\], wanted one value"),
        ({"hidden_size": 7.0}, "hidden_size must be a whole number"),
        ({"layer_count": 10**12}, "not set: layer 1, .* and more"),
        ({"l0/RESET/W": np.ones(35)}, "say input_size, or store it"),
        ({"l0/RESET/W": np.ones((7, 5), complex)}, "holds complex128"),
        ({"l9999999/RESET/W": np.ones(3)}, "not understood"),
    ],
    ids=str,
)
def test_a_key_that_does_not_fit_is_named(change, words, tmp_path):
    path = saved(tmp_path / "net.npz", change)
    with pytest.raises(WeightsError, match=words) as caught:
        importers.read(path, name="net")
    assert str(caught.value).startswith(f"{path}: ")


def test_flat_weights_and_skip_are_read_from_an_npz(tmp_path):
    layer, arrays = drawn("LSTM", skip=True, size=(HIDDEN, HIDDEN))
    np.savez(tmp_path / "skip.npz", **npz_of(layer, arrays, "LSTM"), seq_lengths=True)
    found = importers.read(tmp_path / "skip.npz", name="net")
    assert (found.spec.input_size, found.spec.lengths) == (HIDDEN, True)
    flat = {"input_size": INPUT, "l0/RESET/W": np.ones(35, np.float32)}
    assert importers.read(saved(tmp_path / "flat.npz", flat), name="net").spec.input_size == INPUT


def test_an_npz_holds_one_layer(tmp_path):
    with pytest.raises(WeightsError, match="leave out --layer encoder"):
        importers.read(saved(tmp_path / "net.npz"), name="net", layer="encoder")


class Touch:
    """What a pickle may do: it runs when it is read."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_inside_is_refused_and_does_not_run(tmp_path):
    mark = tmp_path / "ran"
    path = saved(tmp_path / "net.npz", {"l0/RESET/W": np.array([Touch(mark)], object)})
    with pytest.raises(WeightsError, match="holds object, wanted numbers or a word"):
        importers.read(path, name="net")
    assert not mark.exists()
    with np.load(path, allow_pickle=True) as archive:
        archive["l0/RESET/W"]
    assert mark.exists(), "the file was harmless: it proves nothing"


def npy(shape, data=b"", kind="<f4"):
    """An .npy whose header says what it likes."""
    text = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + data


def rezipped(path, key, content, *, compression=zipfile.ZIP_STORED):
    whole = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w", compression) as new:
        for record in old.infolist():
            if record.filename != f"{key}.npy":
                new.writestr(record.filename, old.read(record))
        new.writestr(f"{key}.npy", content)
    return path


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (npy((25 << 30,)), "107,374,182,528 bytes, but has 128"),
        (npy((1 << 62, 4)), "bytes, but has 128"),
        (npy((-1, -35), b"1234" * 35), "wanted numbers or a word"),
        (npy((1,), b"123456789"), "132 bytes, but has 137"),
        (npy((1,), b"1234", "|O"), "holds object"),
        (npy("(" * 5000), "not a readable .npz"),
        (b"\x93NUMPY\x09\x00" + bytes(200), "version"),
        (b"no array", "not a readable .npz"),
        (b"", "not a readable .npz"),
    ],
    ids=["100_GB", "overflow", "negative", "left_over", "object", "parentheses", "version", "text",
         "nothing"],
)  # fmt: skip
def test_a_hostile_array_is_refused_for_next_to_nothing(content, words, tmp_path):
    path = rezipped(saved(tmp_path / "net.npz"), "l0/RESET/W", content)
    used, said = peak(path)
    assert words in said
    assert used < 4 << 20


def peak(path):
    """The bytes that refusing a file took at most, and the words."""
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError) as caught:
            importers.read(path, name="net")
        return tracemalloc.get_traced_memory()[1], str(caught.value)
    finally:
        tracemalloc.stop()


def test_a_zip_bomb_is_refused_by_its_directory(tmp_path):
    path = saved(tmp_path / "net.npz")
    content = bytearray(path.read_bytes())
    for found in re.finditer(b"PK\x01\x02", bytes(content)):
        content[found.start() + 24 : found.start() + 28] = (0xF0000000).to_bytes(4, "little")
    path.write_bytes(content)
    used, said = peak(path)
    assert "at most 4,294,967,296 are read" in said
    assert used < 4 << 20


@pytest.mark.parametrize("wrong", ["cut", "text", "empty", "twice"])
def test_a_damaged_file_is_refused_in_words(wrong, tmp_path):
    path = saved(tmp_path / "net.npz")
    whole = path.read_bytes()
    if wrong == "twice":
        with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("op.npy", npy((1,), b"1234"))
    else:
        path.write_bytes({"cut": whole[:-30], "text": b"PK not", "empty": b""}[wrong])
    with pytest.raises(WeightsError, match="has a key twice|not a readable .npz"):
        importers.read(path, name="net")


CHILD = """
import re, sys
from pathlib import Path
from looprnn import importers
from looprnn.importers import rnnv2

def status(field):
    return int(re.search(field + r":\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) << 10

Path("/proc/self/clear_refs").write_text("5")          # the peak begins here
before = status("VmRSS")
found = importers.read(Path(sys.argv[1]), name="big")
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_a_file_of_100_MB_peaks_under_two_and_a_half_times_its_size(tmp_path):
    layer, arrays = drawn("LSTM", size=(1770, 1770))
    np.savez(tmp_path / "big.npz", **npz_of(layer, arrays, "LSTM"))
    size = (tmp_path / "big.npz").stat().st_size
    assert size >= 100_000_000
    answer = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "big.npz")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert size < int(answer.stdout) < 2.5 * size


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
    for word in (*rnnv2.SETTINGS, *(e.name for kind in (G, RNNOperation) for e in kind)):
        assert word in PAGE, word
