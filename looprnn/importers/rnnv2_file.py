"""An .npz of an RNNv2 layer, keys as in rnnv2.py; read without pickle and with bounded memory."""

import math
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from looprnn.errors import SpecError, WeightsError
from looprnn.importers import BYTES_MAX, Imported
from looprnn.importers.rnnv2 import KEY, SETTINGS, RNNGateType, RNNv2, choice

NPY: Any = np.lib.format


def read(path: Path, *, name: str, layer: str | None = None) -> Imported:
    """An .npz with the keys above. Raises WeightsError for a key that is unknown, missing or
    misshapen, and for a file that is damaged, too large, or holds objects, which would be a pickle.
    """
    if layer is not None:
        raise WeightsError(f"{path}: an .npz holds one layer; leave out --layer {layer}")
    try:
        return _read(path, name)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    except SpecError:
        raise
    except Exception as error:  # a damaged file ends in whatever its bytes lead to
        raise WeightsError(f"{path}: not a readable .npz: {error}") from error


def _read(path: Path, name: str) -> Imported:
    with zipfile.ZipFile(path) as archive:
        records = {record.filename.removesuffix(".npy"): record for record in archive.infolist()}
        declared = sum(record.file_size for record in archive.infolist())
        if declared > BYTES_MAX:
            raise WeightsError(f"declares {declared:,} bytes, at most {BYTES_MAX:,} are read")
        if len(records) != len(archive.infolist()):
            raise WeightsError("has a key twice")
        if unknown := [key for key in records if key not in SETTINGS and not KEY.fullmatch(key)]:
            raise WeightsError(
                f"{', '.join(unknown[:8])} not understood; wanted keys such as l0/INPUT/W, "
                f"and {', '.join(SETTINGS)}"
            )
        settings = {k: _array(archive, records[k]) for k in SETTINGS if k in records}
        if lost := [key for key in SETTINGS[:4] if key not in settings]:
            raise WeightsError(f"lacks {', '.join(lost)}")
        whole = {k: _scalar(k, settings[k]) for k in SETTINGS[:8] if k in settings}
        if "input_size" not in whole:
            whole["input_size"] = _input_size(archive, records, whole["hidden_size"])
        found = RNNv2(**{k: whole[k] for k in ("input_size", *SETTINGS[:4])})
        found.direction = whole.get("direction", found.direction)
        found.input_mode = whole.get("input_mode", found.input_mode)
        found.seq_lengths = bool(whole.get("seq_lengths", False))
        found.hidden_state = settings.get("hidden_state")
        found.cell_state = settings.get("cell_state")
        for key, record in records.items():
            if match := KEY.fullmatch(key):
                gate = choice(RNNGateType, match[2])
                found._set((int(match[1]), gate, match[3]), _array(archive, record))
    return found._imported(name)


def _input_size(archive: zipfile.ZipFile, records: dict[str, zipfile.ZipInfo], hidden: int) -> int:
    """I, the columns of the first layer's W; H where the input mode skips it."""
    for key in records:
        if re.fullmatch("l0/[A-Z]+/W", key):
            shape = _header(archive, records[key])[0]
            if len(shape) != 2:
                raise WeightsError(f"{key} is {list(shape)}: say input_size, or store it [H, I]")
            return shape[1]
    return hidden


def _scalar(key: str, array: NDArray[Any]) -> Any:
    if array.size != 1:
        raise WeightsError(f"{key} is {list(array.shape)}, wanted one value")
    return array.item()


def _header(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> tuple[tuple[int, ...], Any]:
    """Shape and dtype of a record, if its bytes are as many as they say."""
    with archive.open(record) as file:
        version = NPY.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise WeightsError(f"{record.filename} is .npy version {version}, wanted 1.0 or 2.0")
        reader = NPY.read_array_header_1_0 if version == (1, 0) else NPY.read_array_header_2_0
        shape, _, dtype = reader(file)
        if dtype.kind not in "fiubU" or any(n < 0 for n in shape):
            raise WeightsError(f"{record.filename} holds {dtype}, wanted numbers or a word")
        claimed = math.prod(shape) * dtype.itemsize + file.tell()
    if claimed != record.file_size:
        raise WeightsError(
            f"{record.filename} is {dtype} {list(shape)}, {claimed:,} bytes, "
            f"but has {record.file_size:,}"
        )
    return shape, dtype


def _array(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> NDArray[Any]:
    _header(archive, record)
    with archive.open(record) as file:
        return np.asarray(NPY.read_array(file, allow_pickle=False))
