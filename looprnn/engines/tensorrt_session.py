"""A plan on the GPU, by TensorRT's runtime and cuda-python; one page, to be read beside TensorRT's
documentation.

One IExecutionContext, one stream; for every tensor a pinned host buffer and a device buffer,
allocated once for the profile's maximum and bound once by set_tensor_address. A run sets the shapes
and queues copy, execute_async_v3, copy.
"""

from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from looprnn import cuda
from looprnn.engines import Arrays
from looprnn.errors import EngineError, EngineMismatch
from looprnn.spec import RNNSpec

ELEMENT = 4  # bytes: all tensors are float32 or int32


class TensorRTSession:
    """`trt` is the module that built the plan: tensorrt or tensorrt_rtx."""

    def __init__(self, trt: Any, path: Path, spec: RNNSpec, device: int = 0) -> None:
        self.trt, self.path, self.spec, self.device = trt, path, spec, device

    def __enter__(self) -> Self:
        from looprnn.engines.tensorrt import make_logger

        cuda.use(self.device)
        self.log = make_logger(self.trt)
        limits = self.spec.shapes(self.spec.profile.batch.max, self.spec.profile.time.max)
        # Closed from the last to the first: what is queued ends, then the context goes, the engine
        # and the runtime, and their memory after them; each step is taken even if one raises.
        with ExitStack() as opening:
            self.stream = opening.enter_context(cuda.Stream())
            self.host: dict[str, cuda.PinnedBuffer] = {}
            self.gpu: dict[str, cuda.DeviceBuffer] = {}
            for name, shape in limits.items():
                size = int(np.prod(shape)) * ELEMENT
                self.host[name] = opening.enter_context(cuda.PinnedBuffer(size))
                self.gpu[name] = opening.enter_context(cuda.DeviceBuffer(size))
            self.runtime = self.trt.Runtime(self.log)
            opening.callback(delattr, self, "runtime")
            self.engine = self.runtime.deserialize_cuda_engine(self.path.read_bytes())
            opening.callback(delattr, self, "engine")
            if self.engine is None:
                raise EngineMismatch(
                    f"{self.path}: TensorRT cannot load this plan: {'; '.join(self.log.errors)}"
                )
            self._check_tensors()
            # On optimization profile 0, the only one.
            self.context = self.engine.create_execution_context()
            opening.callback(delattr, self, "context")
            if self.context is None:
                raise EngineError(
                    f"{self.path}: no memory for an execution context: {'; '.join(self.log.errors)}"
                )
            for name in limits:
                self._must(
                    self.context.set_tensor_address(name, self.gpu[name].address),
                    f"address of {name}",
                )
            opening.callback(self.stream.synchronize)
            self._open = opening.pop_all()  # only now is closing __exit__'s work
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def run(
        self, inputs: Arrays, wanted: Collection[str] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        self.log.errors.clear()  # those of an earlier run are not this one's
        for name in self.spec.input_names:
            array = inputs[name]
            self._must(
                self.context.set_input_shape(name, array.shape),
                f"shape {list(array.shape)} of {name}",
            )
            np.copyto(self.host[name].view(array.shape, array.dtype), array)
            cuda.copy_in(self.gpu[name], self.host[name], array.nbytes, self.stream)
        self._must(self.context.execute_async_v3(self.stream.handle), "execute_async_v3")
        shapes = {
            name: tuple(self.context.get_tensor_shape(name))
            for name in (self.spec.output_names if wanted is None else wanted)
        }
        for name, shape in shapes.items():
            size = int(np.prod(shape)) * ELEMENT
            cuda.copy_out(self.host[name], self.gpu[name], size, self.stream)
        self.stream.synchronize()
        return {name: self.host[name].view(shape).copy() for name, shape in shapes.items()}

    def _check_tensors(self) -> None:
        found = {self.engine.get_tensor_name(k) for k in range(self.engine.num_io_tensors)}
        wanted = {*self.spec.input_names, *self.spec.output_names}
        if found != wanted:
            raise EngineMismatch(
                f"{self.path}: its tensors are {sorted(found)}, wanted {sorted(wanted)}"
            )

    def _must(self, done: bool, what: str) -> None:
        if not done:
            raise EngineError(
                f"{self.path}: TensorRT refused the {what}: {'; '.join(self.log.errors)}"
            )
