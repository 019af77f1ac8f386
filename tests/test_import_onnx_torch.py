"""What PyTorch's exporter writes: stacks, dropout, initial states, heads; torch is the oracle."""

import warnings

import numpy as np
import pytest

from looprnn import importers, parity, reference

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
T, B, I, H, OUT = 7, 4, 3, 5, 6  # noqa: E741


class Classifier(torch.nn.Module):
    def __init__(self, read, **options):
        super().__init__()
        self.table = torch.nn.Embedding(9, I)
        self.rnn = torch.nn.GRU(I, H, batch_first=True, **options)
        self.linear = torch.nn.Linear(H * (1 + options.get("bidirectional", False)), OUT)
        self.read = read

    def forward(self, ids):
        y, h = self.rnn(self.table(ids))
        return self.linear(y if self.read == "y" else y[:, -1] if self.read == "y[-1]" else h[-1])


def export(module, args, path, axes):
    names = ["x", "h_0", "c_0"][: len(args)]
    flat = args if len(args) < 3 else (args[0], args[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, flat, path, dynamo=False, input_names=names, dynamic_axes=axes, opset_version=17
        )
    return path


def draw(*shape):
    return torch.from_numpy(np.random.default_rng(6).uniform(-1, 1, shape).astype(np.float32))


@pytest.mark.parametrize("kind", ["RNN", "LSTM", "GRU"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "bidirectional"])
@pytest.mark.parametrize("states", [False, True], ids=["zeros", "given"])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_two_layers(kind, bidirectional, states, dynamic, tmp_path):
    torch.manual_seed(0)
    d = 1 + bidirectional
    module = getattr(torch.nn, kind)(
        I, H, num_layers=2, bidirectional=bidirectional, dropout=0.2, batch_first=True
    ).eval()
    x, first = draw(B, T, I), [draw(2 * d, B, H), draw(2 * d, B, H)][: 1 + (kind == "LSTM")]
    args = (x, *(first if states else ()))
    axes = {"x": {0: "batch", 1: "time"}} if dynamic else None
    imported = importers.read(export(module, args, tmp_path / "m.onnx", axes), name="t")
    assert len(imported.spec.layers) == 2
    assert imported.notes == ()
    inputs = imported.spec.defaults(B, T) | {"input": x.numpy()}
    if states:
        for name, state in zip(("h_0", "c_0"), first, strict=False):
            inputs[name] = state.numpy().transpose(1, 0, 2)
    got = reference.run(imported.spec, imported.weights, inputs)
    with torch.no_grad():
        given = (tuple(first) if kind == "LSTM" else first[0],) if states else ()
        y, end = module(x, *given)
    assert parity.agrees(parity.difference(got["output"], y.numpy()))
    ends = end if kind == "LSTM" else (end,)
    for name, state in zip(("h_n", "c_n"), ends, strict=False):
        assert parity.agrees(parity.difference(got[name], state.numpy().transpose(1, 0, 2)))


@pytest.mark.parametrize("read", ["y", "y[-1]", "h[-1]"])
@pytest.mark.parametrize("layers", [1, 2])
def test_a_classifier(read, layers, tmp_path):
    torch.manual_seed(1)
    module = Classifier(read, num_layers=layers).eval()
    ids = torch.from_numpy(np.random.default_rng(2).integers(0, 9, (B, T)))
    path = export(module, (ids,), tmp_path / "m.onnx", {"x": {0: "batch", 1: "time"}})
    imported = importers.read(path, name="t")
    assert (imported.spec.vocabulary, imported.notes) == (9, ())
    assert imported.spec.head.on == ("output" if read == "y" else "last")
    inputs = imported.spec.defaults(B, T) | {"input": ids.numpy()}
    got = reference.run(imported.spec, imported.weights, inputs)["head"]
    with torch.no_grad():
        assert parity.agrees(parity.difference(got, module(ids).numpy()))


def test_both_directions_read_by_the_head(tmp_path):
    module = Classifier("y", num_layers=2, bidirectional=True).eval()
    ids = torch.from_numpy(np.random.default_rng(2).integers(0, 9, (B, T)))
    path = export(module, (ids,), tmp_path / "m.onnx", None)
    imported = importers.read(path, name="t")
    inputs = imported.spec.defaults(B, T) | {"input": ids.numpy()}
    got = reference.run(imported.spec, imported.weights, inputs)["head"]
    with torch.no_grad():
        assert parity.agrees(parity.difference(got, module(ids).numpy()))
