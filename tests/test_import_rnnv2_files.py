"""RNNv2 layers in .npz files: keys, hostile and damaged content, and memory."""

import io
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from refused_files import peak
from rnnv2_layers import HIDDEN, INPUT, drawn, npz_of

from looprnn import importers
from looprnn.errors import WeightsError

ROOT = Path(__file__).resolve().parent.parent


def saved(path, change=(), *, op="GRU"):
    layer, arrays = drawn(op)
    keys = npz_of(layer, arrays, op) | dict(change)
    np.savez(path, **{key: value for key, value in keys.items() if value is not None})
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"l0/UPDATE/R": None}, "not set: layer 0, gate UPDATE, R"),
        ({"op": None}, "lacks op"),
        ({"l0/UPDATE/V": np.ones(3)}, "l0/UPDATE/V not understood; wanted keys such as l0/INPUT/W"),
        ({"hidden": 3}, "hidden not understood"),
        ({"l0/CELL/W": np.ones(3)}, "GRU has no gate CELL"),
        ({"l0/CARRY/W": np.ones(3)}, "no RNNGateType"),
        ({"l0/RESET/R": np.ones((3, 4))}, r"layer 0, gate RESET, R is \[3, 4\], wanted \[7, 7\]"),
        ({"op": "LSTMP"}, "'LSTMP' is no RNNOperation; there are RELU, TANH, LSTM, GRU"),
        ({"op": ["GRU", "GRU"]}, r"op is \[2\], wanted one value"),
        ({"hidden_size": 7.0}, "hidden_size must be a whole number"),
        ({"layer_count": 10**12}, "not set: layer 1, .* and more"),
        ({"l0/RESET/W": np.ones(35)}, "say input_size, or store it"),
        ({"l0/RESET/W": np.ones((7, 5), complex)}, "holds complex128"),
        ({"l9999999/RESET/W": np.ones(3)}, "not understood"),
    ],
    ids=str,
)
def test_a_key_that_does_not_fit_is_named(change, words, tmp_path):
    path = saved(tmp_path / "net.npz", change)
    with pytest.raises(WeightsError, match=words) as caught:
        importers.read(path, name="net")
    assert str(caught.value).startswith(f"{path}: ")


def test_flat_weights_and_skip_are_read_from_an_npz(tmp_path):
    layer, arrays = drawn("LSTM", skip=True, size=(HIDDEN, HIDDEN))
    np.savez(tmp_path / "skip.npz", **npz_of(layer, arrays, "LSTM"), seq_lengths=True)
    found = importers.read(tmp_path / "skip.npz", name="net")
    assert (found.spec.input_size, found.spec.lengths) == (HIDDEN, True)
    flat = {"input_size": INPUT, "l0/RESET/W": np.ones(35, np.float32)}
    assert importers.read(saved(tmp_path / "flat.npz", flat), name="net").spec.input_size == INPUT


def test_an_npz_holds_one_layer(tmp_path):
    with pytest.raises(WeightsError, match="leave out --layer encoder"):
        importers.read(saved(tmp_path / "net.npz"), name="net", layer="encoder")


class Touch:
    """What a pickle may do: it runs when it is read."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_inside_is_refused_and_does_not_run(tmp_path):
    mark = tmp_path / "ran"
    path = saved(tmp_path / "net.npz", {"l0/RESET/W": np.array([Touch(mark)], object)})
    with pytest.raises(WeightsError, match="holds object, wanted numbers or a word"):
        importers.read(path, name="net")
    assert not mark.exists()
    with np.load(path, allow_pickle=True) as archive:
        archive["l0/RESET/W"]
    assert mark.exists(), "the file was harmless: it proves nothing"


def npy(shape, data=b"", kind="<f4"):
    """An .npy whose header says what it likes."""
    text = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + data


def rezipped(path, key, content, *, compression=zipfile.ZIP_STORED):
    whole = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w", compression) as new:
        for record in old.infolist():
            if record.filename != f"{key}.npy":
                new.writestr(record.filename, old.read(record))
        new.writestr(f"{key}.npy", content)
    return path


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (npy((25 << 30,)), "107,374,182,528 bytes, but has 128"),
        (npy((1 << 62, 4)), "bytes, but has 128"),
        (npy((-1, -35), b"1234" * 35), "wanted numbers or a word"),
        (npy((1,), b"123456789"), "132 bytes, but has 137"),
        (npy((1,), b"1234", "|O"), "holds object"),
        (npy("(" * 5000), "not a readable .npz"),
        (b"\x93NUMPY\x09\x00" + bytes(200), "version"),
        (b"no array", "not a readable .npz"),
        (b"", "not a readable .npz"),
    ],
    ids=["100_GB", "overflow", "negative", "left_over", "object", "parentheses", "version", "text",
         "nothing"],
)  # fmt: skip
def test_a_hostile_array_is_refused_for_next_to_nothing(content, words, tmp_path):
    path = rezipped(saved(tmp_path / "net.npz"), "l0/RESET/W", content)
    used, said = peak(path)
    assert words in said
    assert used < 4 << 20


def test_a_zip_bomb_is_refused_by_its_directory(tmp_path):
    path = saved(tmp_path / "net.npz")
    content = bytearray(path.read_bytes())
    for found in re.finditer(b"PK\x01\x02", bytes(content)):
        content[found.start() + 24 : found.start() + 28] = (0xF0000000).to_bytes(4, "little")
    path.write_bytes(content)
    used, said = peak(path)
    assert "at most 4,294,967,296 are read" in said
    assert used < 4 << 20


@pytest.mark.parametrize("wrong", ["cut", "text", "empty", "twice"])
def test_a_damaged_file_is_refused_in_words(wrong, tmp_path):
    path = saved(tmp_path / "net.npz")
    whole = path.read_bytes()
    if wrong == "twice":
        with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("op.npy", npy((1,), b"1234"))
    else:
        path.write_bytes({"cut": whole[:-30], "text": b"PK not", "empty": b""}[wrong])
    with pytest.raises(WeightsError, match="has a key twice|not a readable .npz"):
        importers.read(path, name="net")


CHILD = """
import re, sys
from pathlib import Path
from looprnn import importers
from looprnn.importers import rnnv2

def status(field):
    return int(re.search(field + r":\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) << 10

Path("/proc/self/clear_refs").write_text("5")          # the peak begins here
before = status("VmRSS")
found = importers.read(Path(sys.argv[1]), name="big")
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
def test_a_file_of_100_MB_peaks_under_two_and_a_half_times_its_size(tmp_path):
    layer, arrays = drawn("LSTM", size=(1770, 1770))
    np.savez(tmp_path / "big.npz", **npz_of(layer, arrays, "LSTM"))
    size = (tmp_path / "big.npz").stat().st_size
    assert size >= 100_000_000
    answer = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "big.npz")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert size < int(answer.stdout) < 2.5 * size
