"""PyTorch as an outside oracle: our reference and the CPU engine agree with torch.nn.

Installed by `make oracles`, and always in CI.
"""

from dataclasses import replace

import numpy as np
import pytest
from cases import CASES
from conftest import VARIANTS, needs

from looprnn import engines, parity, reference
from looprnn.spec import Activation, Layer
from looprnn.weights import load_weights

torch = needs("torch", "make oracles")
rnn = torch.nn.utils.rnn
RANDOM = [spec for spec in VARIANTS.values() if spec.name.endswith(("_random", "tanh_rnn"))]


def ask_torch(spec, weights, inputs):
    """torch.nn.RNN, LSTM or GRU with our weights as its state_dict: the names are PyTorch's own."""
    layer = spec.layers[0]
    kind = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[layer.cell]
    options = {"proj_size": layer.proj_size or 0} if layer.cell == "lstm" else {}
    if layer.cell == "rnn":
        options["nonlinearity"] = layer.activations[0].kind
    module = kind(
        spec.input_size, layer.hidden_size, len(spec.layers), batch_first=True, bias=layer.bias,
        bidirectional=layer.direction == "bidirectional", **options,
    )  # fmt: skip
    module.double().load_state_dict({n: torch.from_numpy(a) for n, a in weights.items()})

    def state(name):
        return torch.from_numpy(inputs[name].transpose(1, 0, 2).astype(np.float64))

    states = [state(f"{s}_0") for s in spec.states]
    x = torch.from_numpy(inputs["input"].astype(np.float64))
    if spec.lengths:
        lengths = torch.from_numpy(inputs["lengths"])
        x = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    with torch.inference_mode():
        output, last = module(x, tuple(states) if layer.cell == "lstm" else states[0])
    if spec.lengths:
        steps = inputs["input"].shape[1]
        output, _ = rnn.pad_packed_sequence(output, batch_first=True, total_length=steps)
    lasts = last if layer.cell == "lstm" else (last,)
    return {"output": output.numpy()} | {
        f"{s}_n": h.numpy().transpose(1, 0, 2) for s, h in zip(spec.states, lasts, strict=True)
    }


def torch_has(case):
    """PyTorch's layers: one kind in a stack, no reverse alone, and none of the finer options."""
    if case.options or len(set(case.layers)) > 1:
        return False
    options = {"bias": case.layers[0].bias, "proj_size": case.layers[0].proj_size}
    plain = Layer(cell=case.layers[0].cell, hidden_size=case.layers[0].hidden_size, **options)
    return case.layers[0] in (
        plain,
        replace(plain, direction="bidirectional"),
        *([relu(plain)] if plain.cell == "rnn" else []),
    )


def relu(layer):
    only = (Activation("relu"),)
    return replace(layer, activations=only, activations_reverse=only)


def assert_agree(got, want, atol):
    assert got.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_allclose(got[name], array, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("spec", RANDOM, ids=lambda s: s.name)
def test_the_reference_agrees_with_torch(spec):
    weights, inputs = load_weights(spec), parity.draw_inputs(spec, 3, 17)
    want = ask_torch(spec, weights, inputs)
    assert_agree(reference.run(spec, weights, inputs), want, atol=1e-12)


@pytest.mark.parametrize("case", [c for c in CASES if torch_has(c)], ids=lambda c: c.name)
def test_the_reference_agrees_with_torch_on_every_case(case):
    want = ask_torch(case.spec, case.weights, case.inputs)
    assert_agree(reference.run(case.spec, case.weights, case.inputs), want, atol=1e-12)


@pytest.mark.parametrize("spec", RANDOM, ids=lambda s: s.name)
def test_the_cpu_engine_agrees_with_torch(spec, tmp_path):
    weights, inputs = load_weights(spec), parity.draw_inputs(spec, 3, 17)
    engine, path = engines.get("onnxruntime"), tmp_path / "model.onnx"
    engine.build(spec, weights, path, progress=lambda *_: None, workspace=0)
    with engine.session(path, spec) as session:
        assert_agree(session.run(inputs), ask_torch(spec, weights, inputs), atol=1e-5)
