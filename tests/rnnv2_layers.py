"""Layers as TensorRT's IRNNv2Layer had them, and what they compute."""

import os

import numpy as np
import pytest

from looprnn import reference
from looprnn.importers.rnnv2 import (
    RNNDirection,
    RNNGateType,
    RNNInputMode,
    RNNOperation,
    RNNv2,
)

if os.environ.get("CI"):
    import torch  # in CI a missing oracle is an error, not a skip
else:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; type: make torch")

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


def npz_of(layer, arrays, op):
    keys = {"op": op, "layer_count": layer.num_layers, "hidden_size": layer.hidden_size}
    keys |= {"max_seq_length": layer.max_seq_length, "direction": layer.direction.name}
    if layer.input_mode:
        keys["input_mode"] = layer.input_mode.name
    if layer.hidden_state is not None:
        keys["hidden_state"] = layer.hidden_state
    ends = {"W": "W", "R": "R", "Wb": "W_bias", "Rb": "R_bias"}
    return keys | {f"l{k}/{gate}/{ends[part]}": a for (k, gate, part), a in arrays.items()}
