"""The only door to CUDA: check(), the GPU, Stream, device and pinned buffers."""

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from cuda.bindings import runtime as cudart
from numpy.typing import DTypeLike, NDArray

from looprnn.errors import CudaError


def check(result: tuple[Any, ...], *, log: Callable[[], str] = str) -> Any:
    """The values of a cuda-python call, (status, value, …). Raises CudaError with the status and
    the log.
    """
    status, *values = result
    if status.value != 0:
        raise CudaError(f"{status.name} {log()}".rstrip())
    return values[0] if len(values) == 1 else tuple(values)


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU's name and compute capability, such as "8.6"."""

    name: str
    capability: str

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability})"


def gpu(device: int = 0) -> Gpu:
    """The GPU of that index. Raises CudaError if there is no driver or no such GPU."""
    properties = check(cudart.cudaGetDeviceProperties(device))
    name = properties.name
    return Gpu(
        name.decode() if isinstance(name, bytes) else str(name),
        f"{properties.major}.{properties.minor}",
    )


def use(device: int) -> None:
    """Make it this process's GPU: Triton's stub process does not."""
    check(cudart.cudaSetDevice(device))


class Stream:
    """A CUDA stream that does not wait for the default one."""

    def __enter__(self) -> Self:
        self.handle = int(check(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking)))
        return self

    def __exit__(self, *_: object) -> None:
        check(cudart.cudaStreamDestroy(self.handle))

    def synchronize(self) -> None:
        check(cudart.cudaStreamSynchronize(self.handle))


class DeviceBuffer:
    """`size` bytes on the GPU."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __enter__(self) -> Self:
        self.address = int(check(cudart.cudaMalloc(self.size)))
        return self

    def __exit__(self, *_: object) -> None:
        check(cudart.cudaFree(self.address))


class PinnedBuffer:
    """`size` bytes of page-locked host memory: only from here are copies asynchronous."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __enter__(self) -> Self:
        self.address = int(check(cudart.cudaMallocHost(self.size)))
        return self

    def __exit__(self, *_: object) -> None:
        check(cudart.cudaFreeHost(self.address))

    def view(self, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray[Any]:
        """The first bytes as an array; valid while the buffer is open."""
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        if size > self.size:
            raise CudaError(
                f"{list(shape)} {kind} needs {size} bytes, the buffer holds {self.size}"
            )
        memory = (ctypes.c_byte * size).from_address(self.address)
        return np.ctypeslib.as_array(memory).view(kind).reshape(shape)


def copy_in(device: DeviceBuffer, host: PinnedBuffer, size: int, stream: Stream) -> None:
    """Queue a copy of `size` bytes from host to GPU."""
    kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
    check(cudart.cudaMemcpyAsync(device.address, host.address, size, kind, stream.handle))


def copy_out(host: PinnedBuffer, device: DeviceBuffer, size: int, stream: Stream) -> None:
    """Queue a copy of `size` bytes from GPU to host."""
    kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
    check(cudart.cudaMemcpyAsync(host.address, device.address, size, kind, stream.handle))
