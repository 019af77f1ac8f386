"""The kinds of memory that a server can map: POSIX shared memory, and a GPU's (`_cuda`)."""

from __future__ import annotations

import mmap
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from looprnn_client.errors import BadInput
from looprnn_client.transport import Tensor

FOLDER = Path("/dev/shm")  # where Linux keeps POSIX shared memory


class Region(Protocol):
    """Memory that a server can map by its handle."""

    name: str
    size: int
    cuda: bool

    @property
    def handle(self) -> Any:
        """What `Transport.share` registers."""

    def write(self, offset: int, array: Tensor) -> None: ...

    def read(self, offset: int, shape: tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
        """May be a view, not to be kept."""

    def hide(self) -> None:
        """The server has mapped it: nobody else needs its name."""

    def close(self) -> None:
        """Frees it here; twice is fine."""


def new_name() -> str:
    """Nobody else's, and whose it is can be read from it."""
    return f"looprnn-client-{os.getpid()}-{uuid.uuid4().hex}"


class SystemRegion:
    """POSIX shared memory. Raises OSError when there is not enough."""

    cuda = False

    def __init__(self, size: int) -> None:
        self.name, self.size = new_name(), size
        self._path = FOLDER / self.name
        file = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            os.posix_fallocate(file, 0, size)  # too little room is an error here, not a SIGBUS
            self._map = mmap.mmap(file, size)
        except BaseException:
            self.hide()
            raise
        finally:
            os.close(file)

    @property
    def handle(self) -> str:
        return f"/{self.name}"

    def write(self, offset: int, array: Tensor) -> None:
        self.read(offset, array.shape, array.dtype)[...] = array

    def read(self, offset: int, shape: tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
        return np.ndarray(shape, dtype, self._map, offset)

    def hide(self) -> None:
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        self.hide()
        with suppress(BufferError):  # a caller that still reads it: freed with its view
            self._map.close()


def region_maker(memory: str) -> Callable[[int], Region] | None:
    """What makes the regions for `memory`; None is "wire". Raises BadInput."""
    kind, _, device = memory.partition(":") if isinstance(memory, str) else ("", "", "")
    if memory == "wire":
        return None
    if memory == "system":
        if not FOLDER.is_dir():
            raise BadInput(f"memory='system' needs Linux's {FOLDER}; use memory='wire'")
        return SystemRegion
    if kind != "cuda" or (device and not device.isdecimal()):
        raise BadInput(f"memory must be 'wire', 'system', 'cuda' or 'cuda:1', got {memory!r}")
    try:
        from looprnn_client._cuda import CudaRegion
    except ImportError as error:
        raise BadInput(
            f"memory={memory!r} needs cuda-python, which is not installed: "
            "pip install 'looprnn-client[cuda]'"
        ) from error
    return partial(CudaRegion, device=int(device or 0))
