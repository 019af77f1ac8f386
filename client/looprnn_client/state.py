"""A stream's state, outside any server: to go on from, now or in another process."""

from __future__ import annotations

import os
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from looprnn_client.errors import BadInput
from looprnn_client.transport import Array

UNREADABLE = (
    *(OSError, ValueError, EOFError, KeyError, TypeError, AttributeError),
    zipfile.BadZipFile,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StreamState:
    """Where a stream of `model` stood after `steps` time steps.

    h_n, c_n: float32 [1, N, H]; c_n is None for a cell without c.
    """

    model: str
    steps: int
    h_n: Array
    c_n: Array | None = None

    def save(self, path: str | Path) -> None:
        """Writes a .npz, whole or not at all; the name is taken as it is. Raises OSError."""
        target = Path(path)
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        arrays = {"h_n": self.h_n} if self.c_n is None else {"h_n": self.h_n, "c_n": self.c_n}
        try:
            with part.open("xb") as file:
                np.savez(file, model=np.array(self.model), steps=np.array(self.steps), **arrays)
            part.replace(target)
        except BaseException:
            with suppress(FileNotFoundError):
                part.unlink()
            raise

    @classmethod
    def load(cls, path: str | Path) -> StreamState:
        """Reads what `save` wrote; pickles are never opened. Raises BadInput."""
        try:
            with np.load(path, allow_pickle=False) as file:
                found = {name: file[name] for name in file.files}
            return cls(
                model=str(found["model"][()]),
                steps=int(found["steps"]),
                h_n=found["h_n"],
                c_n=found.get("c_n"),
            )
        except UNREADABLE as error:
            raise BadInput(
                f"{path}: not a stream's state that StreamState.save wrote "
                f"({type(error).__name__}: {error})"
            ) from error
