"""The only door to CUDA: check(), the GPU, Stream, buffers, kernels and graphs."""

import ctypes
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self

import numpy as np
from cuda.bindings import driver
from cuda.bindings import runtime as cudart
from numpy.typing import DTypeLike, NDArray

from looprnn.errors import CudaError, CudaLost


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
    """A GPU's name, compute capability, such as "8.6", and multiprocessors."""

    name: str
    capability: str
    multiprocessors: int = 0

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability})"


def gpu(device: int = 0) -> Gpu:
    """The GPU of that index. Raises CudaError if there is no driver or no such GPU."""
    properties = check(cudart.cudaGetDeviceProperties(device))
    name = properties.name
    return Gpu(
        name.decode() if isinstance(name, bytes) else str(name),
        f"{properties.major}.{properties.minor}",
        properties.multiProcessorCount,
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
        """Raises CudaLost where what was queued has failed."""
        try:
            check(cudart.cudaStreamSynchronize(self.handle))
        except CudaError as error:
            raise CudaLost(f"{error}: this process must start anew to use the GPU") from error


class Memory(Protocol):
    """Bytes at an address, here or on the GPU."""

    @property
    def address(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Part:
    """What lies at an address inside a buffer."""

    address: int


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

    def view(
        self, shape: tuple[int, ...], dtype: DTypeLike = np.float32, at: int = 0
    ) -> NDArray[Any]:
        """The bytes from `at` on as an array; valid while the buffer is open."""
        kind = np.dtype(dtype)
        size = math.prod(shape) * kind.itemsize
        if at + size > self.size:
            raise CudaError(
                f"{list(shape)} {kind} needs {at + size} bytes, the buffer holds {self.size}"
            )
        memory = (ctypes.c_byte * size).from_address(self.address + at)
        return np.ctypeslib.as_array(memory).view(kind).reshape(shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How a kernel is launched: grid in blocks, block in threads, shared in bytes.

    cluster blocks go together; all blocks of a cooperative grid are resident at once; an early
    kernel begins while the one before it ends, and waits for that by itself.
    """

    grid: tuple[int, int, int]
    block: int
    shared: int = 0
    cluster: int = 1
    cooperative: bool = False
    early: bool = False

    def config(self, stream: Stream | None) -> Any:
        """The driver's own form of it."""
        config = driver.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = self.grid
        config.blockDimX, config.blockDimY, config.blockDimZ = self.block, 1, 1
        config.sharedMemBytes = self.shared
        if stream is not None:
            config.hStream = driver.CUstream(stream.handle)
        ids, attributes = driver.CUlaunchAttributeID, []

        def value(kind: Any) -> Any:
            attributes.append(driver.CUlaunchAttribute())
            attributes[-1].id = kind
            return attributes[-1].value

        if self.cluster > 1:
            dim = value(ids.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION).clusterDim
            dim.x, dim.y, dim.z = self.cluster, 1, 1
        if self.early and stream is not None:
            early = value(ids.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION)
            early.programmaticStreamSerializationAllowed = 1
        if self.cooperative:
            value(ids.CU_LAUNCH_ATTRIBUTE_COOPERATIVE).cooperative = 1
        config.attrs, config.numAttrs = attributes, len(attributes)
        return config


class Kernel:
    """One function of a module."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def allow(self, shape: Shape) -> None:
        """Permit what a launch of this shape needs beyond the usual."""
        attributes = driver.CUfunction_attribute
        if shape.shared > 48 * 1024:
            most = attributes.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            check(driver.cuFuncSetAttribute(self.function, most, shape.shared))
        if shape.cluster > 8:
            large = attributes.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
            check(driver.cuFuncSetAttribute(self.function, large, 1))

    def resident(self, shape: Shape, multiprocessors: int) -> int:
        """How many blocks of this shape the GPU holds at once."""
        if shape.cluster > 1:
            config = shape.config(None)
            clusters = check(driver.cuOccupancyMaxActiveClusters(self.function, config))
            return int(clusters) * shape.cluster
        each = check(
            driver.cuOccupancyMaxActiveBlocksPerMultiprocessor(
                self.function, shape.block, shape.shared
            )
        )
        return int(each) * multiprocessors

    def launch(self, shape: Shape, arguments: list[int], stream: Stream) -> None:
        """Queue it; `arguments` are the addresses of its arguments, read before this returns."""
        params = (ctypes.c_void_p * len(arguments))(*arguments)
        check(
            driver.cuLaunchKernelEx(
                shape.config(stream), self.function, ctypes.addressof(params), 0
            )
        )


class Module:
    """The kernels of one cubin, on the GPU in use."""

    def __init__(self, cubin: bytes) -> None:
        self.cubin = cubin

    def __enter__(self) -> Self:
        check(cudart.cudaFree(0))  # the driver's calls need the context that this makes
        self.handle = check(driver.cuModuleLoadData(self.cubin))
        return self

    def __exit__(self, *_: object) -> None:
        check(driver.cuModuleUnload(self.handle))

    def kernel(self, name: str) -> Kernel:
        """Raises CudaError if there is none of that name. It is loaded here, not at its launch."""
        function = check(driver.cuModuleGetFunction(self.handle, name.encode()), log=lambda: name)
        check(driver.cuFuncLoad(function))
        return Kernel(function)


class Graph:
    """What `record` queues on the stream, kept to be queued again at once."""

    def __init__(self, stream: Stream, record: Callable[[], None]) -> None:
        self.stream, self.record = stream, record

    def __enter__(self) -> Self:
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        check(cudart.cudaStreamBeginCapture(self.stream.handle, mode))
        try:
            self.record()
        except BaseException:
            _, graph = cudart.cudaStreamEndCapture(self.stream.handle)
            if graph is not None:
                cudart.cudaGraphDestroy(graph)
            raise
        graph = check(cudart.cudaStreamEndCapture(self.stream.handle))
        try:
            self.handle = check(cudart.cudaGraphInstantiate(graph, 0))
        finally:
            check(cudart.cudaGraphDestroy(graph))
        return self

    def __exit__(self, *_: object) -> None:
        check(cudart.cudaGraphExecDestroy(self.handle))

    def launch(self) -> None:
        check(cudart.cudaGraphLaunch(self.handle, self.stream.handle))


class Event:
    """A moment on a stream."""

    def __enter__(self) -> Self:
        self.handle = check(cudart.cudaEventCreate())
        return self

    def __exit__(self, *_: object) -> None:
        check(cudart.cudaEventDestroy(self.handle))

    def record(self, stream: Stream) -> None:
        check(cudart.cudaEventRecord(self.handle, stream.handle))

    def microseconds_since(self, earlier: "Event") -> float:
        """Once both have come."""
        check(cudart.cudaEventSynchronize(self.handle))
        return float(check(cudart.cudaEventElapsedTime(earlier.handle, self.handle))) * 1e3


def fill(device: Memory, byte: int, size: int, stream: Stream) -> None:
    """Queue that the first `size` bytes become this byte."""
    check(cudart.cudaMemsetAsync(device.address, byte, size, stream.handle))


def copy_in(device: Memory, host: Memory, size: int, stream: Stream, at: int = 0) -> None:
    """Queue a copy of `size` bytes from host to GPU, to `at` bytes after the buffer's begin."""
    kind = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
    check(cudart.cudaMemcpyAsync(device.address + at, host.address, size, kind, stream.handle))


def copy_out(host: Memory, device: Memory, size: int, stream: Stream) -> None:
    """Queue a copy of `size` bytes from GPU to host."""
    kind = cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
    check(cudart.cudaMemcpyAsync(host.address, device.address, size, kind, stream.handle))
