"""The PyTorch importer. The oracle is torch.nn itself, in float64, on the weights that the file
held.
"""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from torch_modules import (
    BATCH,
    CELLS,
    HIDDEN,
    INPUT,
    MODULES,
    STACKS,
    TIME,
    ask_cell,
    ask_torch,
    assert_same,
    made,
    named,
    read,
    torch,
)

from looprnn import importers, parity
from looprnn.errors import WeightsError
from looprnn.importers import torch as importer
from looprnn.importers import torch_file
from looprnn.spec import Activation
from looprnn.variants import load_spec
from looprnn.weights import load_weights


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("options", STACKS, ids=named)
def test_a_stack_computes_what_it_did_in_torch(options, suffix, tmp_path):
    module = made(**options)
    found = read(module.state_dict(), tmp_path / f"net{suffix}")
    inputs = parity.draw_inputs(found.spec, BATCH, TIME)
    assert_same(found.spec, found.weights, inputs, ask_torch(module, inputs))


@pytest.mark.parametrize("options", STACKS, ids=named)
def test_a_reverse_direction_begins_at_the_rows_end_and_not_in_the_padding(options):
    module = made(**options)
    found = importer.from_torch(module, name="net")
    spec = dataclasses.replace(found.spec, lengths=True)
    inputs = parity.draw_inputs(spec, BATCH, TIME)
    inputs["lengths"] = np.array([3, TIME, 1, 4], np.int32)  # not sorted: rows must come back
    assert_same(spec, found.weights, inputs, ask_torch(module, inputs))


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "without_bias"])
@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_computes_what_it_did_in_torch(kind, bias, tmp_path):
    torch.manual_seed(3)
    cell = CELLS[kind](INPUT, HIDDEN, bias=bias)
    found = read({f"model.step.{n}": t for n, t in cell.state_dict().items()}, tmp_path / "net.pt")
    assert importer.from_torch(cell, name="net").spec == found.spec
    inputs = parity.draw_inputs(found.spec, BATCH, TIME)
    assert_same(found.spec, found.weights, inputs, ask_cell(cell, inputs))


@pytest.mark.parametrize("both", [False, True], ids=["forward", "both_ways"])
def test_a_relu_rnn_is_no_tanh_rnn(both, tmp_path):
    module = made("rnn", nonlinearity="relu", num_layers=2, bidirectional=both)
    live = importer.from_torch(module, name="net")
    inputs = parity.draw_inputs(live.spec, BATCH, TIME)
    assert live.notes == ()
    assert_same(live.spec, live.weights, inputs, ask_torch(module, inputs))
    cell = importer.from_torch(torch.nn.RNNCell(2, 3, nonlinearity="relu"), name="net")
    assert cell.spec.layers[0].activations == (Activation("relu"),)

    stored = read(module.state_dict(), tmp_path / "net.safetensors")
    assert stored.spec.layers[0].activations == (Activation("tanh"),)
    (note,) = stored.notes
    assert 'activations = ["relu"]' in note  # and doing what it says gives the same network
    toml = importers.write(stored, tmp_path)
    toml.write_text('activations = ["relu"]\n' + toml.read_text())
    changed = load_spec(toml)
    assert_same(changed, load_weights(changed), inputs, ask_torch(module, inputs))


def test_lstm_and_gru_come_without_notes(tmp_path):
    for kind in ("lstm", "gru"):
        assert read(made(kind).state_dict(), tmp_path / f"{kind}.pt").notes == ()
        assert importer.from_torch(made(kind), name="net").notes == ()


@settings(max_examples=40)
@given(
    kind=st.sampled_from(sorted(MODULES)),
    sizes=st.tuples(st.integers(1, 6), st.integers(2, 6)),
    layers=st.integers(1, 3),
    both=st.booleans(),
    bias=st.booleans(),
    projected=st.booleans(),
    prefix=st.sampled_from(["", "rnn.", "module._orig_mod.encoder.0."]),
    suffix=st.sampled_from([".pt", ".safetensors"]),
    steps=st.tuples(st.integers(1, 3), st.integers(1, 5)),
    seed=st.integers(0, 2**31 - 1),
)
def test_from_torch_through_a_file_and_back(
    tmp_path_factory, kind, sizes, layers, both, bias, projected, prefix, suffix, steps, seed
):
    size = {"input_size": sizes[0], "hidden_size": sizes[1], "num_layers": layers}
    options = {"bidirectional": both, "bias": bias}
    if projected and kind == "lstm":
        options["proj_size"] = sizes[1] - 1
    module = made(kind, seed=seed, **size, **options)
    folder = tmp_path_factory.mktemp("round")
    state = {prefix + name: tensor for name, tensor in module.state_dict().items()}
    spec = load_spec(importers.write(read(state, folder / f"stored{suffix}"), folder))
    weights = load_weights(spec)
    for name, tensor in module.state_dict().items():
        np.testing.assert_array_equal(weights[name], tensor.numpy())
    assert len(weights) == len(state)
    inputs = parity.draw_inputs(spec, *steps, seed=seed)
    assert_same(spec, weights, inputs, ask_torch(module, inputs))


def swap_first_gates(arrays):
    a = arrays["weight_hh_l0"]
    first, second, *rest = np.split(a, a.shape[0] // a.shape[1])
    return arrays | {"weight_hh_l0": np.concatenate([second, first, *rest])}


def forget_the_recurrent_bias(arrays):
    return arrays | {"bias_hh_l0": np.zeros_like(arrays["bias_hh_l0"])}


def swap_directions(arrays):
    return arrays | {"weight_hh_l0": arrays["weight_hh_l0_reverse"]}


def transpose_each_gate(arrays):
    a = arrays["weight_hh_l0"]
    gates = np.split(a, a.shape[0] // a.shape[1])
    return arrays | {"weight_hh_l0": np.concatenate([gate.T for gate in gates])}


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.parametrize(
    "mutant",
    [swap_first_gates, forget_the_recurrent_bias, swap_directions, transpose_each_gate],
)
def test_the_comparison_notices(mutant, kind):
    module = made(kind, bidirectional=True)
    found = importer.from_torch(module, name="net")
    inputs = parity.draw_inputs(found.spec, BATCH, TIME)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        assert_same(found.spec, mutant(dict(found.weights)), inputs, ask_torch(module, inputs))


# dtypes


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_every_floating_type_is_read_exactly_or_says_so(dtype, suffix, tmp_path):
    from safetensors.torch import save_file as save_torch

    state = {n: t.to(dtype) for n, t in made("lstm").state_dict().items()}
    state["weight_ih_l0"][0, :3] = torch.tensor([0.0, -0.0, 2**-20], dtype=dtype)
    path = tmp_path / f"net{suffix}"
    (save_torch if suffix == ".safetensors" else torch.save)(state, path)
    found = importers.read(path, name="net")
    for name, tensor in state.items():
        assert found.weights[name].dtype == np.float32
        np.testing.assert_array_equal(found.weights[name], tensor.float().numpy())
    assert ("rounded to float32" in " ".join(found.notes)) == (dtype == torch.float64)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_what_float32_cannot_hold_is_no_infinity(suffix, tmp_path):
    state = {n: t.double() for n, t in made("lstm").state_dict().items()}
    state["weight_hh_l0"][2, 3] = 1e39
    with pytest.raises(WeightsError, match="weight_hh_l0 holds .* beyond float32"):
        read(state, tmp_path / f"net{suffix}")


@settings(max_examples=60)
@given(
    tensors=st.dictionaries(
        st.text(st.characters(codec="utf-8"), max_size=12).map(lambda s: f"x.{s}"),
        st.tuples(
            st.sampled_from(["float16", "float32", "float64"]),
            st.lists(st.integers(0, 3), max_size=3),
        ),
        max_size=5,
    ),
    seed=st.integers(0, 2**32 - 1),
)
def test_our_reader_of_safetensors_agrees_with_the_library(tmp_path_factory, tensors, seed):
    rng = np.random.default_rng(seed)
    arrays = {n: rng.standard_normal(shape).astype(kind) for n, (kind, shape) in tensors.items()}
    path = tmp_path_factory.mktemp("read") / "some.safetensors"
    save_file(arrays, path, metadata={"format": "pt"})
    found = torch_file.in_safetensors(path)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name].read(), array.astype(np.float32))


# live modules


def test_a_live_module_is_as_in_eval_mode():
    module = made("lstm", num_layers=2, dropout=0.25).train()
    found = importer.from_torch(module, name="net")
    assert found.notes == ("dropout = 0.25 acts in training only: left out",)
    inputs = parity.draw_inputs(found.spec, BATCH, TIME)
    assert_same(found.spec, found.weights, inputs, ask_torch(module.eval(), inputs))


def test_what_is_imported_does_not_change_with_the_module():
    module = made("lstm")
    found = importer.from_torch(module, name="net")
    before = found.weights["weight_ih_l0"].copy()
    with torch.no_grad():
        module.weight_ih_l0.zero_()
    np.testing.assert_array_equal(found.weights["weight_ih_l0"], before)


def test_other_live_modules_are_refused_with_what_is_inside():
    net = torch.nn.Sequential(torch.nn.Linear(2, 5), made("gru"))
    with pytest.raises(WeightsError, match="Sequential is no nn.RNN.*Inside it: 1; pass one"):
        importer.from_torch(net, name="net")
    with pytest.raises(WeightsError, match="int is no nn.RNN"):
        importer.from_torch(3, name="net")

    class Own(torch.nn.LSTM):
        def forward(self, x):
            return super().forward(x) + 1

    assert importer.from_torch(Own(5, 7), name="net").notes == (
        "Own has a forward of its own: only its weights were taken",
    )
