"""PyTorch's files opened without trust: .safetensors by a reader of our own, and .pt, .pth, .bin by
torch.load(weights_only=True), whose pickle never runs. Each gives its tensors by name, unread.

Reading .safetensors needs no PyTorch: its header is checked here, and bfloat16 widened, which
NumPy lacks.
"""

import importlib
import json
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from looprnn.errors import WeightsError
from looprnn.importers import BYTES_MAX

WRAPPERS: Final = ("state_dict", "model_state_dict", "model")  # where checkpoints keep theirs
INDEX_MAX: Final = 8 << 20  # bytes of a header or of data.pkl: 50,000 tensors
DIMENSIONS_MAX: Final = 8
CHUNK: Final = 1 << 18  # elements widened at a time
# safetensors' dtype → how its bytes are read; BF16 is the upper half of a float32.
STORED_AS: Final = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
BYTES: Final = {"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4,
                "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8}  # fmt: skip
TORCH_TYPES: Final = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor that is still in its file; read() allocates it, float32."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], NDArray[np.float32]]


def listed(names: Iterable[str], tensors: Mapping[str, Tensor] | None = None) -> str:
    """The first eight names, each with its shape if `tensors` are given."""
    every = list(names)
    some = [
        n[:80] + (f" {list(tensors[n].shape)}" if tensors and n in tensors else "")
        for n in every[:8]
    ]
    more = [f"{len(every) - 8} more"] if len(every) > 8 else []
    return ", ".join(some + more) or "nothing"


# .safetensors: 8 bytes N; N bytes of JSON, name → dtype, shape, data_offsets; the data.


def in_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file whose header is consistent; nothing but the header is read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8 or length > INDEX_MAX:
            found = f"it has {size} bytes"
            if size >= 8:
                found = f"its header claims {length:,} of {size:,}, at most {INDEX_MAX:,} are read"
            raise WeightsError(f"{path}: not a .safetensors file, or cut short: {found}")
        text = file.read(length)
    try:
        entries = json.loads(text.decode(), object_pairs_hook=_distinct)
        if not isinstance(entries, dict):
            raise ValueError("no table of tensors")
        entries.pop("__metadata__", None)
        ranges = {n: _entry(n, e) for n, e in entries.items()}
    except (ValueError, TypeError, RecursionError) as error:
        raise WeightsError(f"{path}: not a readable .safetensors header: {error}") from error
    end = 0
    for name, (begin, stop) in sorted(ranges.items(), key=lambda item: item[1]):
        if begin != end:
            raise WeightsError(f"{path}: {name[:80]} begins at byte {begin:,}, wanted {end:,}")
        end = stop
    if end != size - 8 - length:
        there = size - 8 - length
        short = ": cut short; copy it here again" if end > there else ""
        raise WeightsError(
            f"{path}: its header claims {end:,} bytes of data, there are {there:,}{short}"
        )
    return {
        name: Tensor(
            tuple(entries[name]["shape"]),
            entries[name]["dtype"],
            _reader(path, name, entries[name], 8 + length + begin),
        )
        for name, (begin, _) in ranges.items()
    }


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name[:80]!r} appears twice")
        found[name] = value
    return found


def _entry(name: str, entry: Any) -> tuple[int, int]:
    """A tensor's range in the data. Raises ValueError unless dtype, shape and range agree."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise ValueError(f"{name[:80]!r} lacks dtype, shape or data_offsets")
    dtype, shape, (begin, end) = str(entry["dtype"]), entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or len(shape) > DIMENSIONS_MAX:
        raise ValueError(f"{name[:80]!r}: its shape is no list of at most {DIMENSIONS_MAX} sizes")
    if not all(type(n) is int and 0 <= n < 1 << 48 for n in (begin, end, *shape)):
        raise ValueError(f"{name[:80]!r} has sizes or offsets that cannot be")
    claimed = math.prod(shape) * BYTES[dtype] if dtype in BYTES else end - begin
    if claimed != end - begin or begin > end:
        raise ValueError(
            f"{name[:80]!r} is {dtype} {shape}, {claimed:,} bytes, but has {end - begin:,}"
        )
    return begin, end


def _reader(
    path: Path, name: str, entry: Mapping[str, Any], at: int
) -> Callable[[], NDArray[np.float32]]:
    """Reads one tensor, a piece at a time, so that nothing but the result is large."""

    def read_it() -> NDArray[np.float32]:
        stored = np.dtype(STORED_AS[entry["dtype"]])
        result = np.empty(math.prod(entry["shape"]), np.float32)
        with path.open("rb") as file:
            file.seek(at)
            for begin in range(0, result.size, CHUNK):
                part = result[begin : begin + CHUNK]
                piece = np.frombuffer(file.read(part.size * stored.itemsize), stored)
                if piece.size != part.size:
                    raise WeightsError(f"{path}: {name} ends early; the file was cut meanwhile")
                if entry["dtype"] == "BF16":
                    part.view(np.uint32)[:] = piece.astype(np.uint32) << np.uint32(16)
                else:
                    with np.errstate(over="ignore"):  # Inf, which the check of all weights names
                        part[:] = piece
        return result.reshape(entry["shape"])

    return read_it


# .pt, .pth, .bin: a zip of data.pkl and a record a storage; before PyTorch 1.6, pickles in a row.


def in_pickle(path: Path) -> dict[str, Tensor]:
    """Every tensor of a state_dict, mapped rather than loaded where the file allows it."""
    mapped = _check_zip(path)
    torch = import_torch(str(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols: the file is not ours
            loaded = torch.load(str(path), map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise WeightsError(_refusal(path, str(error))) from None
    except Exception as error:  # a damaged file ends in whatever its bytes lead to
        raise WeightsError(
            f"{path}: not a readable state_dict: {type(error).__name__}: {error!s:.200}. "
            "Save it again: torch.save(model.state_dict(), …)"
        ) from error
    found = _state_dict(torch, path, loaded)
    return {n: in_memory(torch, str(path), n, t) for n, t in found.items()}


def _check_zip(path: Path) -> bool:
    """Whether the file is a zip that can be mapped: none of its records compressed. Raises
    WeightsError if it declares too much.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise WeightsError(f"{path}: a damaged zip: {error}") from error
    if any(record.filename.endswith("/constants.pkl") for record in records):
        raise WeightsError(
            f"{path}: a TorchScript archive, which is code. Save its tensors where you trust it: "
            "torch.save(torch.jit.load(…).state_dict(), …)"
        )
    declared = sum(record.file_size for record in records)
    index = max((r.file_size for r in records if r.filename.endswith(".pkl")), default=0)
    if declared > BYTES_MAX or index > INDEX_MAX:
        raise WeightsError(
            f"{path}: declares {declared:,} bytes, {index:,} of them names; at most {BYTES_MAX:,} "
            f"and {INDEX_MAX:,} are read. Save the recurrent layer's state_dict alone"
        )
    return all(record.compress_type == zipfile.ZIP_STORED for record in records)


def _refusal(path: Path, words: str) -> str:
    """Our sentence: PyTorch's own would tell the reader to run the pickle."""
    wanted = re.search(r"GLOBAL ([\w.]+)", words)
    return (
        f"{path}: holds {wanted[1] if wanted else 'something that is no tensor'}, not tensors "
        "alone. Reading it could run code, so nothing of it was run. Save what it holds as "
        "tensors: torch.save(model.state_dict(), …), or as .safetensors"
    )


def _state_dict(torch: Any, path: Path, loaded: Any) -> dict[str, Any]:
    """The tensors by name: of the one wrapper that has some, or of the top."""

    def tensors(table: Any) -> dict[str, Any]:
        items = table.items() if isinstance(table, Mapping) else ()
        return {n: t for n, t in items if isinstance(n, str) and isinstance(t, torch.Tensor)}

    if not isinstance(loaded, Mapping):
        raise WeightsError(f"{path}: holds a {type(loaded).__name__}, wanted a state_dict")
    inside = {key: found for key in WRAPPERS if (found := tensors(loaded.get(key)))}
    if len(inside) > 1:
        raise WeightsError(
            f"{path}: state_dicts under {' and '.join(inside)}; save the one that is meant alone"
        )
    found = next(iter(inside.values())) if inside else tensors(loaded)
    if not found:
        raise WeightsError(
            f"{path}: no state_dict, neither at the top nor under {', '.join(WRAPPERS)}; "
            f"its keys: {listed(map(str, loaded))}"
        )
    return found


def in_memory(torch: Any, origin: str, name: str, tensor: Any) -> Tensor:
    """A torch tensor as a Tensor; float32 is not copied."""

    def read_it() -> NDArray[np.float32]:
        kept = tensor.detach()
        if kept.layout != torch.strided or kept.device.type == "meta":
            raise WeightsError(f"{origin}: {name} is no dense tensor")
        if kept.numel() * kept.element_size() > kept.untyped_storage().nbytes():
            raise WeightsError(
                f"{origin}: {name} is {list(kept.shape)}, more than the "
                f"{kept.untyped_storage().nbytes():,} bytes it has"
            )
        array: NDArray[np.float32] = kept.to("cpu", torch.float32).contiguous().numpy()
        return array

    return Tensor(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), read_it)


def import_torch(origin: str) -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise WeightsError(
            f"{origin}: reading it needs PyTorch. Type: pip install torch, or save the weights as "
            ".safetensors"
        ) from error
