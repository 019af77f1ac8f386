"""Torch's modules, what they compute, and their files: what the tests of the importer share."""

import copy
import itertools
import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from looprnn import importers, reference

if os.environ.get("CI"):
    import torch  # in CI a missing oracle is an error, not a skip
else:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; type: make torch")


INPUT, HIDDEN, PROJECTED, BATCH, TIME = 5, 7, 3, 4, 6  # no two agree
MODULES = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}
CELLS = {"rnn": torch.nn.RNNCell, "lstm": torch.nn.LSTMCell, "gru": torch.nn.GRUCell}
STACKS = [
    {"kind": kind, "num_layers": layers, "bidirectional": both, "bias": bias}
    | ({"proj_size": PROJECTED} if projected else {})
    for kind, layers, both, bias, projected in itertools.product(
        MODULES, (1, 2, 3), (False, True), (True, False), (False, True)
    )
    if kind == "lstm" or not projected
]


def named(options):
    words = [options["kind"], f"{options['num_layers']}_layers"]
    words += ["both_ways"] if options["bidirectional"] else []
    words += ["projected"] if "proj_size" in options else []
    return "_".join(words + ([] if options["bias"] else ["without_bias"]))


def made(kind, *, input_size=INPUT, hidden_size=HIDDEN, seed=0, **options):
    torch.manual_seed(seed)
    return MODULES[kind](input_size, hidden_size, batch_first=True, **options).eval()


def saved(state, path):
    """A state_dict as the suffix of path says."""
    if path.suffix == ".safetensors":
        save_file({name: tensor.detach().numpy() for name, tensor in state.items()}, path)
    else:
        torch.save(state, path)
    return path


def read(state, path, **choice):
    return importers.read(saved(state, path), name="net", **choice)


def ask_torch(module, inputs):
    """What torch.nn answers in float64, under this project's names and shapes."""

    def state(name):
        return torch.from_numpy(inputs[name].astype(np.float64).swapaxes(0, 1).copy())

    x = torch.from_numpy(inputs["input"].astype(np.float64))
    start = (state("h_0"), state("c_0")) if "c_0" in inputs else state("h_0")
    lengths = inputs.get("lengths")
    module = copy.deepcopy(module).double()
    with torch.inference_mode():
        if lengths is None:
            output, last = module(x, start)
        else:
            packed = torch.nn.utils.rnn.pack_padded_sequence(
                x, torch.from_numpy(lengths), batch_first=True, enforce_sorted=False
            )
            packed, last = module(packed, start)
            output, _ = torch.nn.utils.rnn.pad_packed_sequence(
                packed, batch_first=True, total_length=x.shape[1]
            )
    lasts = last if isinstance(last, tuple) else (last,)
    named = zip(("h_n", "c_n"), lasts, strict=False)
    return {"output": output.numpy()} | {n: h.numpy().swapaxes(0, 1) for n, h in named}


def ask_cell(cell, inputs):
    """The same for a Cell, stepped through time by hand."""
    x = torch.from_numpy(inputs["input"].astype(np.float64))
    state = [
        torch.from_numpy(inputs[n][:, 0].astype(np.float64)) for n in ("h_0", "c_0") if n in inputs
    ]
    outputs = []
    cell = copy.deepcopy(cell).double()
    with torch.inference_mode():
        for t in range(x.shape[1]):
            after = cell(x[:, t], tuple(state) if len(state) > 1 else state[0])
            state = list(after) if isinstance(after, tuple) else [after]
            outputs.append(state[0])
    lasts = {n: h.numpy()[:, None] for n, h in zip(("h_n", "c_n"), state, strict=False)}
    return {"output": torch.stack(outputs, 1).numpy()} | lasts


def assert_same(spec, weights, inputs, want):
    got = reference.run(spec, weights, inputs)
    assert got.keys() == want.keys()
    for name, array in want.items():
        assert np.isfinite(array).all()
        np.testing.assert_allclose(got[name], array, rtol=0, atol=1e-12, err_msg=name)
