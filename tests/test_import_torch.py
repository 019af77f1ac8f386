"""The PyTorch importer. The oracle is torch.nn itself, in float64, on the weights that the file
held.

Every refusal is a WeightsError in words; no pickle runs; a hostile file costs next to no memory.
"""

import contextlib
import copy
import dataclasses
import itertools
import json
import os
import pickle
import re
import struct
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from looprnn import importers, parity, reference
from looprnn.errors import LoopRNNError, SpecError, WeightsError
from looprnn.importers import torch as importer
from looprnn.importers import torch_file
from looprnn.spec import Activation
from looprnn.variants import load_spec
from looprnn.weights import load_weights

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


# which module


def test_several_modules_are_listed_with_what_to_type(tmp_path):
    net = torch.nn.ModuleDict(
        {
            "encoder": torch.nn.LSTM(5, 7, 2, bidirectional=True),
            "decoder": torch.nn.GRUCell(3, 6, bias=False),
            "small": torch.nn.LSTM(5, 7, proj_size=3),
        }
    )
    path = saved(net.state_dict(), tmp_path / "net.pt")
    with pytest.raises(WeightsError) as caught:
        importers.read(path, name="net")
    assert [line.strip() for line in str(caught.value).splitlines()] == [
        f"{path}: 3 recurrent layers; choose one:",
        "--layer encoder   LSTM, input 5, hidden 7, 2 layers, bidirectional",
        "--layer decoder   GRUCell, input 3, hidden 6, 1 layer, forward, without bias",
        "--layer small   LSTM, input 5, hidden 7, projected to 3, 1 layer, forward",
    ]
    for choice in ("decoder", "decoder."):
        found = importers.read(path, name="net", layer=choice)
        assert (found.spec.layers[0].cell, found.spec.input_size) == ("gru", 3)
        np.testing.assert_array_equal(
            found.weights["weight_hh_l0"], net["decoder"].weight_hh.detach()
        )
    with pytest.raises(WeightsError, match="no recurrent layer 'coder'; there are:\n  --layer enc"):
        importers.read(path, name="net", layer="coder")


def test_what_is_left_out_is_named(tmp_path):
    net = torch.nn.ModuleDict({"rnn": made("lstm"), "fc": torch.nn.Linear(7, 2)})
    found = read(net.state_dict(), tmp_path / "net.pt")
    assert found.notes == ("left out, not part of rnn: fc.weight [2, 7], fc.bias [2]",)
    assert read(net["rnn"].state_dict(), tmp_path / "rnn.pt", layer=".").notes == ()


def test_a_file_without_any_says_what_it_holds(tmp_path):
    with pytest.raises(WeightsError, match="no recurrent layer in it.*found weight, bias"):
        read(torch.nn.Linear(7, 2).state_dict(), tmp_path / "net.pt")


@pytest.mark.parametrize("wrapper", torch_file.WRAPPERS)
def test_a_checkpoint_keeps_its_state_dict_under_a_key(wrapper, tmp_path):
    module = made("gru")
    state = {f"module._orig_mod.{n}": t for n, t in module.state_dict().items()}
    optimizer = torch.optim.Adam(module.parameters()).state_dict()
    path = tmp_path / "net.pth"
    torch.save({"epoch": 3, "step": torch.tensor(9), "optimizer": optimizer, wrapper: state}, path)
    found = importers.read(path, name="net", layer="module._orig_mod")
    assert (found.spec.layers[0].cell, found.notes) == ("gru", ())
    torch.save({"model": state, "state_dict": state}, path)
    with pytest.raises(WeightsError, match="state_dicts under state_dict and model"):
        importers.read(path, name="net")
    torch.save({"weights": state}, path)
    with pytest.raises(WeightsError, match="no state_dict.*its keys: weights"):
        importers.read(path, name="net")
    torch.save([1, 2], path)
    with pytest.raises(WeightsError, match="holds a list, wanted a state_dict"):
        importers.read(path, name="net")


def test_a_file_of_pytorch_before_1_6_is_read_too(tmp_path):
    module = made("lstm")
    torch.save(module.state_dict(), tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    found = importers.read(tmp_path / "old.bin", name="net")
    np.testing.assert_array_equal(found.weights["bias_hh_l0"], module.bias_hh_l0.detach())


def test_a_compressed_zip_is_not_mapped(tmp_path):
    """PyTorch 2.13 maps the compressed bytes as if they were numbers."""
    module = made("lstm", hidden_size=40)
    torch.save(module.state_dict(), tmp_path / "stored.pt")
    with (
        zipfile.ZipFile(tmp_path / "stored.pt") as stored,
        zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for record in stored.infolist():
            small.writestr(record.filename, stored.read(record))
    found = importers.read(tmp_path / "small.pt", name="net")
    np.testing.assert_array_equal(found.weights["weight_ih_l0"], module.weight_ih_l0.detach())


# what is not as PyTorch has it

LSTM = made("lstm", num_layers=2, bidirectional=True).state_dict()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"weight_hh_l1_reverse": None}, "needs rnn.weight_hh_l1_reverse", id="lost"),
        pytest.param({"weight_ih_l0": None}, "needs rnn.weight_ih_l0; found", id="lost_first"),
        pytest.param(
            {n: None for n in LSTM if "_l1" in n}
            | {n.replace("_l1", "_l2"): LSTM[n] for n in LSTM if "_l1" in n},
            "needs rnn.weight_ih_l1; found",
            id="layer_left_out",
        ),
        pytest.param(
            {n: None for n in LSTM if n.endswith("l1_reverse")},
            "needs rnn.weight_ih_l1_reverse",
            id="one_layer_one_way",
        ),
        pytest.param(
            {"bias_ih_l1": None}, "needs rnn.bias_ih_l1", id="one_bias_of_two"
        ),
        pytest.param(
            {"weight_ih_l1": torch.ones(28, 7)},
            r"rnn.weight_ih_l1 is \[28, 7\], wanted \[28, 14\]",
            id="above_reads_one_direction_only",
        ),
        pytest.param(
            {"weight_hh_l0": torch.ones(28, 6)},
            r"rnn.weight_ih_l0 is \[28, 5\], the hidden size 6; wanted 1 \(rnn\) or 3 \(gru\)",
            id="no_ratio",
        ),
        pytest.param(
            {"weight_ih_l0": torch.ones(28)}, r"is \[28\], wanted a matrix", id="no_matrix"
        ),
        pytest.param(
            {"weight_hh_l0": torch.ones(28, 0)}, "the hidden size 0", id="hidden_nothing"
        ),
        pytest.param(
            {"weight_ch_l0": torch.ones(21)},
            r"rnn.weight_ch_l0 \[21\] not understood.*another layer",
            id="peepholes_of_its_own",
        ),
        pytest.param(
            {"norm.weight": torch.ones(7)},
            r"rnn.norm.weight \[7\] not understood",
            id="layer_norm_inside",
        ),
        pytest.param(
            {"weight_ih": torch.ones(28, 5)}, "rnn.weight_ih .* not understood", id="cell_and_stack"
        ),
        pytest.param(
            {"weight_hr_l1": torch.ones(3, 7)}, "rnn.weight_hr_l1 .* not", id="one_projection"
        ),
        pytest.param(
            {"weight_ih_l0": torch.ones(28, 5, dtype=torch.int8)},
            "rnn.weight_ih_l0 is .*8; wanted float64, float32, float16",
            id="quantized",
        ),
        pytest.param(
            {"weight_hh_l0": None, "weight_hh_l0_g": torch.ones(28, 1)},
            "needs rnn.weight_hh_l0.*Undo weight_norm",
            id="weight_norm",
        ),
        pytest.param(
            {"weight_hh_l0": LSTM["weight_hh_l0"] * float("nan")},
            "weight_hh_l0 holds NaN",
            id="diverged",
        ),
        pytest.param(
            {"weight_ih_l999999": torch.ones(28, 14)},
            "needs rnn.weight_ih_l2",
            id="a_million_layers",
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_module_that_is_not_whole_is_refused_by_name(change, words, suffix, tmp_path):
    state = {f"rnn.{n}": t for n, t in {**LSTM, **change}.items() if t is not None}
    with pytest.raises(WeightsError, match=words) as caught:
        read(state, tmp_path / f"net{suffix}")
    assert str(caught.value).startswith(str(tmp_path))


def test_a_projection_that_torch_refuses_is_refused(tmp_path):
    state = {"weight_ih_l0": torch.ones(28, 5), "weight_hh_l0": torch.ones(28, 9)}
    with pytest.raises(SpecError, match="proj_size must be below hidden_size, got 9 and 7"):
        read({**state, "weight_hr_l0": torch.ones(9, 7)}, tmp_path / "net.pt")


def test_a_broken_module_is_listed_beside_a_whole_one(tmp_path):
    state = {f"a.{n}": t for n, t in LSTM.items()} | {"b.bias_ih_l0": torch.ones(3)}
    with pytest.raises(WeightsError, match="--layer b   not readable: needs b.weight_ih_l0"):
        read(state, tmp_path / "net.pt")


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


# hostile files


class Touch:
    """What a pickle may do: it runs when it is read."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare_pickle"])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(form, tmp_path):
    path, mark = tmp_path / "net.pt", tmp_path / "ran"
    state = {**made("lstm").state_dict(), "extra": Touch(mark)}
    if form == "bare_pickle":
        path.write_bytes(pickle.dumps(state["extra"], protocol=2))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(WeightsError, match="mkdir.*nothing of it was run") as caught:
        importers.read(path, name="net")
    assert "weights_only" not in str(caught.value)  # PyTorch's text would tell how to run it
    assert not mark.exists()
    if form != "bare_pickle":
        torch.load(path, weights_only=False)
        assert mark.exists(), "the file was harmless: it proves nothing"


def test_a_pickled_module_is_refused_with_what_to_do(tmp_path):
    torch.save(made("lstm"), tmp_path / "net.pt")
    with pytest.raises(WeightsError, match=r"holds torch.nn.modules.rnn.LSTM.*state_dict\(\)"):
        importers.read(tmp_path / "net.pt", name="net")


def test_a_torchscript_archive_is_code(tmp_path):
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.script(torch.nn.Linear(2, 3)).save(tmp_path / "net.pt")
    with pytest.raises(WeightsError, match="a TorchScript archive, which is code.*state_dict"):
        importers.read(tmp_path / "net.pt", name="net")


def peak(path):
    """The bytes that refusing a file took at most, and the words."""
    tracemalloc.start()
    try:
        with pytest.raises(WeightsError) as caught:
            importers.read(path, name="net")
        return tracemalloc.get_traced_memory()[1], str(caught.value)
    finally:
        tracemalloc.stop()


def entry(begin, end, shape=(), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def duplicate(name):
    return '{"a":%s,"a":%s}' % ((json.dumps(entry(0, 4)),) * 2)


HEADERS = {
    "claims_100_GB": ({"weight_ih_l0": entry(0, 100 << 30, (25 << 30,))}, b"", "claims 107,374"),
    "shape_overflows": ({"a": entry(0, 4, (1 << 32, 1 << 32))}, b"1234", "but has 4"),
    "shape_wraps_to_its_size": ({"a": entry(0, 4, (1 << 62, 4, 4))}, b"1234", "cannot be"),
    "negative": ({"a": entry(0, 4, (-1, -1))}, b"1234", "cannot be"),
    "true_for_one": ({"a": entry(0, 4, (True,))}, b"1234", "cannot be"),
    "a_hundred_axes": ({"a": entry(0, 4, (1,) * 100)}, b"1234", "at most 8 sizes"),
    "beyond_the_file": ({"a": entry(0, 8, (2,))}, b"1234", "claims 8 bytes of data, there are 4"),
    "hole": ({"a": entry(4, 8, (1,))}, b"12345678", "begins at byte 4, wanted 0"),
    "overlap": ({"a": entry(0, 4, (1,)), "b": entry(0, 4, (1,))}, b"1234", "begins at byte 0"),
    "left_over": ({"a": entry(0, 4, (1,))}, b"12345678", "claims 4 bytes of data, there are 8"),
    "backwards": ({"a": entry(4, 0, (), "F4")}, b"1234", "but has -4"),
    "twice": (duplicate("a"), b"1234", "'a' appears twice"),
    "lacks_its_shape": ({"a": {"dtype": "F32"}}, b"", "lacks dtype, shape or data_offsets"),
    "no_table": ([1, 2], b"", "no table of tensors"),
    "no_json": ("{", b"", "not a readable .safetensors header"),
    "not_utf8": (b"\xff\xfe{}", b"", "not a readable .safetensors header"),
    "nested_without_end": ("[" * 100_000, b"", "not a readable .safetensors header"),
    "digits_without_end": ('{"a":%s}' % ("9" * 10_000), b"", "not a readable"),
    "three_offsets": ({"a": entry(0, 4) | {"data_offsets": [0, 4, 4]}}, b"1234", "not a readable"),
    "text_for_shape": ({"a": entry(0, 4) | {"shape": "11"}}, b"1234", "no list of"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_a_hostile_safetensors_is_refused_for_next_to_nothing(name, tmp_path):
    header, data, words = HEADERS[name]
    text = header if isinstance(header, str | bytes) else json.dumps(header)
    text = text.encode() if isinstance(text, str) else text
    path = tmp_path / "net.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    used, said = peak(path)
    assert words in said
    assert used < 4 << 20


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (struct.pack("<Q", 100 << 30) + b"{}", "its header claims 107,374,182,400 bytes of 10"),
        (struct.pack("<Q", 2**64 - 1), "its header claims"),
        (struct.pack("<Q", 9 << 20) + bytes(9 << 20), "at most 8,388,608 are read"),
        (b"", "not a .safetensors file"),
        (b"\x01\x00", "not a .safetensors file"),
    ],
    ids=["header_of_100_GB", "header_of_all", "header_too_long", "empty", "two_bytes"],
)
def test_a_header_that_cannot_be_is_not_read(content, words, tmp_path):
    (tmp_path / "net.safetensors").write_bytes(content)
    used, said = peak(tmp_path / "net.safetensors")
    assert words in said
    assert used < 4 << 20


def test_more_than_the_limit_is_refused_before_it_is_read(tmp_path):
    """A sparse file: its header and size are true, and only the limit stands against it."""
    rows, columns = 4 << 14, 1 << 14
    header, at = {}, 0
    for name, shape in {"weight_ih_l0": (rows, columns), "weight_hh_l0": (rows, columns)}.items():
        end = at + 4 * shape[0] * shape[1]
        header[name] = entry(at, end, shape)
        at = end
    text = json.dumps(header).encode()
    path = tmp_path / "net.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at)
    used, said = peak(path)
    assert "claims 8,589,934,592 bytes, at most 4,294,967,296 are read" in said
    assert used < 4 << 20


def rewrite(source, path, edit):
    """The zip again, each record's bytes through edit(name, bytes)."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for record in old.infolist():
            new.writestr(record.filename, edit(record.filename, old.read(record)))
    return path


def declare(path, size):
    """Every record of the central directory claims `size` bytes."""
    content = bytearray(path.read_bytes())
    at = content.find(b"PK\x01\x02")
    while at >= 0:
        content[at + 24 : at + 28] = struct.pack("<I", size)
        at = content.find(b"PK\x01\x02", at + 4)
    path.write_bytes(content)
    return path


def test_a_zip_bomb_is_refused_by_its_directory(tmp_path):
    path = saved(made("lstm").state_dict(), tmp_path / "net.pt")
    used, said = peak(declare(path, 0xF0000000))
    assert "at most 4,294,967,296" in said
    assert used < 4 << 20


def test_names_without_end_are_refused(tmp_path):
    source = saved(made("lstm").state_dict(), tmp_path / "whole.pt")
    path = rewrite(
        source,
        tmp_path / "net.pt",
        lambda name, data: bytes(9 << 20) if name.endswith("data.pkl") else data,
    )
    used, said = peak(path)
    assert "9,437,184 of them names; at most" in said
    assert used < 4 << 20


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path):
    """An expanded tensor is 4 bytes in the file and anything once it is laid out."""
    state = {"weight_ih_l0": torch.zeros(1).expand(1 << 14, 1 << 13)}
    state["weight_hh_l0"] = torch.zeros(1).expand(1 << 14, 1 << 12)
    used, said = peak(saved(state, tmp_path / "net.pt"))
    assert "weight_ih_l0 is [16384, 8192], more than the 4 bytes it has" in said
    assert used < 4 << 20
    state = {n: torch.zeros(1).expand(1 << 42, 1 << 16) for n in ("weight_ih_l0", "weight_hh_l0")}
    assert "hidden size 65536" in peak(saved(state, tmp_path / "net.pt"))[1]


@pytest.mark.parametrize(
    "wrong", ["storage", "legacy_storage", "cut", "no_zip", "empty", "no_pickle"]
)
def test_a_damaged_file_is_refused_in_words(wrong, tmp_path):
    source = saved({"weight_ih_l0": torch.arange(4.0)}, tmp_path / "whole.pt")
    path = tmp_path / "net.pt"
    if wrong == "storage":  # a record of 16 bytes, said to be 256 MB
        claim = b"J\x00\x00\x00\x04"
        rewrite(source, path, lambda name, data: data.replace(b"K\x04t", claim + b"t")
                .replace(b"K\x04\x85", claim + b"\x85"))  # fmt: skip
    elif wrong == "legacy_storage":  # 400 GB of float32
        torch.save(torch.arange(4.0), path, _use_new_zipfile_serialization=False)
        claim = b"\x8a\x05" + struct.pack("<Q", 100 << 30)[:5]
        content, edits = re.subn(rb"(cpuq.)K\x04", lambda m: m[1] + claim, path.read_bytes())
        assert edits == 1
        path.write_bytes(content)
    elif wrong == "no_pickle":
        rewrite(source, path, lambda name, data: b"\xff" * 9 if "data.pkl" in name else data)
    else:
        whole = source.read_bytes()
        path.write_bytes(
            {"cut": whole[:-40], "no_zip": b"PK\x03\x04" + whole[:9], "empty": b""}[wrong]
        )
    used, said = peak(path)
    assert str(path) in said
    assert used < 4 << 20


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A small file of each form, by suffix; .bin is the form before PyTorch 1.6."""
    folder, state = tmp_path_factory.mktemp("whole"), made("gru", hidden_size=2).state_dict()
    torch.save(state, folder / "net.bin", _use_new_zipfile_serialization=False)
    paths = [saved(state, folder / f"net{s}") for s in (".pt", ".safetensors")]
    return {path.suffix: path.read_bytes() for path in (*paths, folder / "net.bin")}


@settings(max_examples=150)
@given(
    suffix=st.sampled_from([".pt", ".bin", ".safetensors"]),
    place=st.floats(0, 1, exclude_max=True),
    edit=st.sampled_from(["change", "cut", "insert"]),
    some=st.binary(min_size=1, max_size=4),
)
def test_any_damage_is_refused_in_words_or_does_no_harm(
    whole, tmp_path_factory, suffix, place, edit, some
):
    content = whole[suffix]
    at = int(len(content) * place)
    after = {"change": at + len(some), "cut": at + len(some), "insert": at}[edit]
    damaged = content[:at] + (b"" if edit == "cut" else some) + content[after:]
    path = tmp_path_factory.mktemp("damaged") / f"net{suffix}"
    path.write_bytes(damaged)
    with contextlib.suppress(LoopRNNError):
        importers.read(path, name="net")


# memory: the kernel's own peak, as a child process sees it; ru_maxrss begins at the parent's peak.

CHILD = """
import importlib, re, sys
from pathlib import Path

def status(field):
    return int(re.search(field + r":\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) << 10

door = importlib.import_module(sys.argv[1])
from looprnn.importers import torch as importer
if not sys.argv[2].endswith(".safetensors"):
    import torch
Path("/proc/self/clear_refs").write_text("5")          # the peak begins here
before = status("VmRSS")
found = door.read(Path(sys.argv[2]), name="big")
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("form", "door"),
    [
        ("float32.safetensors", "looprnn.importers"),
        ("float32.pt", "looprnn.importers"),
        ("bfloat16.safetensors", "looprnn.importers.torch"),
    ],
)
def test_a_file_of_100_MB_peaks_under_two_and_a_half_times_its_size(form, door, tmp_path):
    from safetensors.torch import save_file as save_torch

    dtype = getattr(torch, form.partition(".")[0])
    hidden = 1770 if dtype == torch.float32 else 2500
    state = {n: torch.rand(4 * hidden, hidden).to(dtype) for n in ("weight_ih_l0", "weight_hh_l0")}
    (torch.save if form.endswith(".pt") else save_torch)(state, tmp_path / form)
    size = (tmp_path / form).stat().st_size
    assert size >= 100_000_000
    answer = subprocess.run(
        [sys.executable, "-c", CHILD, door, str(tmp_path / form)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert size < int(answer.stdout) < 2.5 * size


def test_reading_safetensors_needs_no_torch(tmp_path):
    saved(made("lstm").state_dict(), tmp_path / "net.safetensors")
    torch.save({}, tmp_path / "net.pt")
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from looprnn import importers\n"
        "from looprnn.errors import WeightsError\n"
        f"importers.read(Path({str(tmp_path / 'net.safetensors')!r}), name='net')\n"
        "try:\n"
        f"    importers.read(Path({str(tmp_path / 'net.pt')!r}), name='net')\n"
        "except WeightsError as error:\n"
        "    print(error)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "reading it needs PyTorch. Type: pip install torch" in answer.stdout
