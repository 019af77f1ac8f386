"""PyTorch as an outside oracle: our reference and the CPU engine agree with torch.nn.

Installed by `make torch`, and always in CI.
"""

import os

import numpy as np
import pytest
from cases import CASES
from conftest import VARIANTS

from looprnn import engines, parity
from looprnn.weights import load_weights

if os.environ.get("CI"):
    import torch  # in CI a missing oracle is an error, not a skip
else:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; type: make torch")

RANDOM = [spec for spec in VARIANTS.values() if spec.weights.seed is not None]


def ask_torch(spec, weights, inputs):
    """torch.nn.RNN or LSTM with our weights as its state_dict: the names are PyTorch's own."""
    options = {"batch_first": True, "bidirectional": spec.direction == "bidirectional"}
    if spec.cell == "rnn":
        module = torch.nn.RNN(
            spec.input_size, spec.hidden_size, nonlinearity=spec.activation, **options
        )
    else:
        module = torch.nn.LSTM(spec.input_size, spec.hidden_size, **options)
    module.double().load_state_dict({n: torch.from_numpy(a) for n, a in weights.items()})

    def state(name):
        return torch.from_numpy(inputs[name].transpose(1, 0, 2).astype(np.float64))

    states = [state(name) for name in spec.input_names[1:]]
    with torch.inference_mode():
        output, last = module(
            torch.from_numpy(inputs["input"].astype(np.float64)),
            tuple(states) if spec.cell == "lstm" else states[0],
        )
    lasts = last if spec.cell == "lstm" else (last,)
    return {"output": output.numpy()} | {
        f"{s}_n": h.numpy().transpose(1, 0, 2) for s, h in zip(spec.states, lasts, strict=True)
    }


def assert_agree(got, want, atol):
    assert got.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_allclose(got[name], array, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("spec", RANDOM, ids=lambda s: s.name)
def test_the_reference_agrees_with_torch(spec):
    weights, inputs = load_weights(spec), parity.draw_inputs(spec, 3, 17)
    want = ask_torch(spec, weights, inputs)
    assert_agree(parity.run_reference(spec, weights, inputs), want, atol=1e-12)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.direction != "reverse"], ids=lambda c: c.name
)
def test_the_reference_agrees_with_torch_on_every_case(case):
    want = ask_torch(case.spec, case.weights, case.inputs)
    assert_agree(parity.run_reference(case.spec, case.weights, case.inputs), want, atol=1e-12)


@pytest.mark.parametrize("spec", RANDOM, ids=lambda s: s.name)
def test_the_cpu_engine_agrees_with_torch(spec, tmp_path):
    weights, inputs = load_weights(spec), parity.draw_inputs(spec, 3, 17)
    engine, path = engines.get("onnxruntime"), tmp_path / "model.onnx"
    engine.build(spec, weights, path, progress=lambda *_: None, workspace=0)
    with engine.session(path, spec) as session:
        assert_agree(session.run(inputs), ask_torch(spec, weights, inputs), atol=1e-5)
