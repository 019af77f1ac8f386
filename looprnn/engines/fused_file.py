"""model.fused: one safetensors file. No pickle, nothing that runs until a GPU loads it.

    cubin/<unit>     uint8    for compute capability 9.0
    source/<unit>    uint8    the text it was compiled from, for GPUs of another one
    <name>           packed weights (fused_pack.py, and R once more for each persistent plan)
and as metadata, under "looprnn", JSON: the format, and how each layer runs (fused_plan.Way).
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from looprnn.engines.fused_plan import Way
from looprnn.engines.fused_program import STRUCTS
from looprnn.engines.fused_source import Unit
from looprnn.errors import EngineMismatch, EngineMissing

CAPABILITY: Final = "9.0"  # what the cubins are for
# Kernels and the code that calls them must agree on their arguments and what they mean; raise the
# number where the meaning changes.
FORMAT: Final = hashlib.sha256(json.dumps([2, STRUCTS]).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedFile:
    """What lies in a model.fused."""

    units: dict[str, Unit]
    cubins: dict[str, bytes]
    arrays: dict[str, NDArray[Any]]
    ways: Sequence[Way]

    def write(self, path: Path) -> None:
        tensors = dict(self.arrays)
        for name, unit in self.units.items():
            tensors[f"source/{name}"] = np.frombuffer(unit.text.encode(), np.uint8)
            tensors[f"cubin/{name}"] = np.frombuffer(self.cubins[name], np.uint8)
        about = {"format": FORMAT, "ways": [way.as_json() for way in self.ways]}
        save_file(tensors, path, metadata={"looprnn": json.dumps(about)})


def read_ways(path: Path) -> list[Way]:
    """How each layer runs, without the weights. Raises EngineMissing or EngineMismatch."""
    with _opened(path) as file:
        return _ways(path, file)


def read(path: Path) -> FusedFile:
    """Raises EngineMissing or EngineMismatch, which says what to type."""
    with _opened(path) as file:
        ways = _ways(path, file)
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    units = {
        name: Unit(name, bytes(arrays.pop(f"source/{name}")).decode())
        for name in [n.removeprefix("source/") for n in arrays if n.startswith("source/")]
    }
    try:
        cubins = {name: bytes(arrays.pop(f"cubin/{name}")) for name in units}
    except KeyError as error:
        raise _not_ours(path, f"no {error}") from None
    return FusedFile(units=units, cubins=cubins, arrays=arrays, ways=ways)


def _opened(path: Path) -> Any:
    if not path.is_file():
        raise EngineMissing(f"{path}: no such engine")
    try:
        return safe_open(path, framework="np")
    except (SafetensorError, OSError, ValueError) as error:
        raise _not_ours(path, str(error)) from error


def _ways(path: Path, file: Any) -> list[Way]:
    try:
        about = json.loads((file.metadata() or {})["looprnn"])
        if about["format"] != FORMAT:
            raise EngineMismatch(
                f"{path}: built by another looprnn, whose kernels take other arguments. "
                "Rebuild it: python build_engines.py --engine fused"
            )
        return [Way.from_json(fields) for fields in about["ways"]]
    except (KeyError, TypeError, ValueError) as error:
        raise _not_ours(path, f"its metadata: {error!r}") from error


def _not_ours(path: Path, why: str) -> EngineMismatch:
    return EngineMismatch(
        f"{path}: not a fused engine ({why}). Rebuild it: python build_engines.py --engine fused"
    )
