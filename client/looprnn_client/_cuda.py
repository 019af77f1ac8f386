"""Device memory that a server on the same GPU maps by its IPC handle; needs cuda-python."""

from __future__ import annotations

from typing import Any

import numpy as np
from cuda.bindings import runtime  # type: ignore[import-not-found,unused-ignore]
from numpy.typing import NDArray

from looprnn_client.regions import new_name
from looprnn_client.transport import Tensor


class CudaRegion:
    """See `regions.Region`. Raises OSError when the device has none to give."""

    cuda = True

    def __init__(self, size: int, *, device: int) -> None:
        self.name, self.size, self._device = new_name(), size, device
        self._address = 0
        check(runtime.cudaSetDevice(device))
        self._address = check(runtime.cudaMalloc(size))
        try:
            self._handle = bytes(check(runtime.cudaIpcGetMemHandle(self._address)).reserved)
        except BaseException:
            self.close()
            raise

    @property
    def handle(self) -> tuple[int, bytes]:
        return self._device, self._handle

    def write(self, offset: int, array: Tensor) -> None:
        packed = np.ascontiguousarray(array)
        self._copy(self._address + offset, packed.ctypes.data, packed.nbytes, "HostToDevice")

    def read(self, offset: int, shape: tuple[int, ...], dtype: Any = np.float32) -> NDArray[Any]:
        array: NDArray[Any] = np.empty(shape, dtype)
        self._copy(array.ctypes.data, self._address + offset, array.nbytes, "DeviceToHost")
        return array

    def hide(self) -> None:
        return  # it has no name: the handle dies with this process

    def close(self) -> None:
        if self._address:
            address, self._address = self._address, 0
            check(runtime.cudaSetDevice(self._device))
            check(runtime.cudaFree(address))

    def _copy(self, to: int, source: int, size: int, way: str) -> None:
        check(runtime.cudaSetDevice(self._device))  # each thread has its own
        kind = getattr(runtime.cudaMemcpyKind, f"cudaMemcpy{way}")
        check(runtime.cudaMemcpy(to, source, size, kind))
        check(runtime.cudaStreamSynchronize(0))  # from pageable memory it may return before the end


def check(result: tuple[Any, ...]) -> Any:
    """The value behind a CUDA status. Raises OSError."""
    status, *values = result
    if status.value != 0:
        raise OSError(f"CUDA: {status.name}")
    return values[0] if len(values) == 1 else tuple(values)
