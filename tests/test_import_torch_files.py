"""Files of PyTorch modules: which module, and what is not as PyTorch has it. Every refusal is a
WeightsError in words.
"""

import zipfile

import numpy as np
import pytest
from torch_modules import made, read, saved, torch

from looprnn import importers
from looprnn.errors import SpecError, WeightsError
from looprnn.importers import torch_file

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
