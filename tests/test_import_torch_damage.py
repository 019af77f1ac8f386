"""Damaged archives are refused in words; a whole file is read in little more than its size."""

import contextlib
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refused_files import peak
from torch_modules import made, saved, torch

from looprnn import importers
from looprnn.errors import LoopRNNError


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
