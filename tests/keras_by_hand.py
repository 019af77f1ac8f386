"""Files of Keras 2, written with h5py alone: model_weights/LAYER/PATH/kernel:0 and its kin."""

import json
import os

import numpy as np
import pytest

if os.environ.get("CI"):
    import h5py  # in CI a missing reader is an error, not a skip
else:
    h5py = pytest.importorskip("h5py", reason="no h5py; type: pip install 'looprnn[keras]'")

I, H = 5, 2  # noqa: E741
RNG = np.random.default_rng(3)
GATES = {"LSTM": 4, "GRU": 3, "SimpleRNN": 1, "CuDNNLSTM": 4, "CuDNNGRU": 3}


def drawn(kind, inputs=I, bias=None):
    rows = GATES[kind] * H
    shapes = [(inputs, rows), (H, rows), bias or (rows,)]
    return [RNG.uniform(-1, 1, shape).astype(np.float32) for shape in shapes]


def layer(kind, name, **config):
    return {"class_name": kind, "config": {"name": name, **config}}


def rnn(kind, name, **config):
    return layer(kind, name, units=H, **config)


def called(entry, *sources):
    """The entry of a Functional model of Keras 2."""
    calls = [[[name, 0, 0, {}] for name in sources]] if sources else []
    return {**entry, "name": entry["config"]["name"], "inbound_nodes": calls}


def write(path, layers, weights, version=b"2.2.4", kind="Sequential"):
    """model.save of Keras 2: `weights` is path, as in weight_names, → array, by layer."""
    config = {"name": "net", "layers": layers}
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": kind, "config": config}).encode()
        file.attrs["keras_version"] = version
        file.attrs["backend"] = b"tensorflow"
        root = file.create_group("model_weights")
        root.attrs["layer_names"] = [e["config"]["name"].encode() for e in layers]
        for name, arrays in weights.items():
            group = root.create_group(name)
            group.attrs["weight_names"] = [each.encode() for each in arrays]
            for each, array in arrays.items():
                group[each] = array
    return path


def named(prefix, arrays):
    names = (f"{prefix}/{name}:0" for name in ("kernel", "recurrent_kernel", "bias"))
    return dict(zip(names, arrays, strict=True))
