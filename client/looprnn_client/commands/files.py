"""Arrays from files, and answers into files: whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from looprnn_client import Result
from looprnn_client.errors import BadInput
from looprnn_client.explain import nearest


def check_target(target: Path, suffix: str = ".npz") -> None:
    """Raises BadInput now where writing would fail, or mislead, only after the work."""
    if not target.parent.is_dir():
        raise BadInput(f"{target.parent}: no such directory to write {target.name} into")
    if suffix and target.suffix != suffix:
        raise BadInput(f"{target}: holds several arrays; type {target.with_suffix(suffix).name}")
    if target.is_dir():
        raise BadInput(f"{target}: is a directory, wanted a file to write")


def check_source(path: Path) -> None:
    """Raises BadInput for a path that is no file, with what may have been meant."""
    if path.is_dir():
        raise BadInput(f"{path}: is a directory, wanted a file")
    if not path.exists():
        there = [str(p) for p in path.parent.glob(f"*{path.suffix}")]
        hint = "Write one with np.save, or try the model with --random instead of --input"
        if there:
            hint = f"Did you mean {nearest(str(path), there)!r}?"
        raise BadInput(f"{path}: there is no such file. {hint}")


def load(path: Path) -> NDArray[Any]:
    """One array from a .npy file; pickles are never opened. Raises BadInput."""
    check_source(path)
    try:
        loaded = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BadInput(f"{path}: not a .npy file that can be read: {error}") from error
    if not isinstance(loaded, np.ndarray):
        loaded.close()
        raise BadInput(f"{path}: holds several arrays (.npz); write one with np.save")
    return loaded


def arrays(result: Result) -> dict[str, NDArray[Any]]:
    """Those of a result that came, by name."""
    named = {field.name: getattr(result, field.name) for field in fields(result)}
    return {name: array for name, array in named.items() if array is not None}


def save(target: Path, named: Mapping[str, NDArray[Any]]) -> None:
    """Writes the .npz whole or not at all: a reader never sees half of it."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as file:
            np.savez(file, **dict(named))
        part.replace(target)
    except BaseException:
        with suppress(FileNotFoundError):
            part.unlink()
        raise
