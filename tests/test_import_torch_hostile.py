"""Hostile files: no pickle runs, and a refusal costs next to no memory."""

import json
import os
import pickle
import struct

import pytest
from refused_files import peak
from torch_modules import made, torch

from looprnn import importers
from looprnn.errors import WeightsError


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
    "beyond_the_file": (
        {"a": entry(0, 8, (2,))},
        b"1234",
        "claims 8 bytes of data, there are 4: cut short",
    ),
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
        (struct.pack("<Q", 100 << 30) + b"{}", "its header claims 107,374,182,400 of 10"),
        (struct.pack("<Q", 2**64 - 1), "its header claims"),
        (struct.pack("<Q", 9 << 20) + bytes(9 << 20), "at most 8,388,608 are read"),
        (b"", "not a .safetensors file"),
        (b"\x01\x00", "not a .safetensors file, or cut short: it has 2 bytes"),
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
