"""A fused engine on the GPU: one stream, weights and buffers allocated once, and a CUDA graph of
copy in, launches and copy out for each shape of request that was asked lately.
"""

import ctypes
import dataclasses
import logging
from collections import OrderedDict
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from looprnn import cuda
from looprnn.engines import Arrays, fused_file, fused_plan
from looprnn.engines.fused_boxes import tensor_map
from looprnn.engines.fused_file import CAPABILITY, FusedFile
from looprnn.engines.fused_persistent import ERRORS
from looprnn.engines.fused_plan import Way
from looprnn.engines.fused_program import STRUCTS, Launch, Loop, Program
from looprnn.engines.fused_slots import Begin, between_slots, copied_in
from looprnn.engines.fused_source import persistent_unit
from looprnn.engines.fused_states import DeviceStates
from looprnn.engines.fused_tensors import places, room, stretches
from looprnn.errors import EngineError
from looprnn.spec import RNNSpec

log = logging.getLogger("looprnn.fused")
# Graphs kept, and launches in all of them together: an hour of ever new shapes must not fill the
# memory. A graph of 2000 steps has 4000 launches. Chunks of 10 steps in 1 to 32 rows, with and
# without states given or asked for, are 128 shapes.
GRAPHS: Final = 256
LAUNCHES: Final = 100_000
UPLOAD: Final = 4 << 20  # bytes
FLAG: Final = 4  # bytes
UNKNOWN_ID: Final = 256  # what embed sets for an id outside the vocabulary


@dataclasses.dataclass(frozen=True, slots=True)
class Ready:
    """A graph, and what lies in pinned memory before it and after it, by tensor."""

    graph: cuda.Graph
    launches: int
    into: dict[str, NDArray[Any]]
    out: dict[str, NDArray[np.float32]]
    kept: ExitStack


class FusedSession:
    """The engine at `path`, for one thread at a time."""

    def __init__(self, path: Path, spec: RNNSpec, device: int = 0) -> None:
        self.path, self.spec, self.device = path, spec, device

    def __enter__(self) -> Self:
        cuda.use(self.device)
        file = fused_file.read(self.path)
        with ExitStack() as opening:
            self.stream = opening.enter_context(cuda.Stream())
            self.gpu: dict[str, cuda.DeviceBuffer] = {}
            self._load(file, opening)
            self._allocate(opening)
            self._upload(file.arrays, opening)
            self.weights = frozenset(file.arrays)
            self.addresses = {name: buffer.address for name, buffer in self.gpu.items()}
            self.addresses["failed"] = self._flag.address
            self._every_output = frozenset(self.spec.output_names)
            self._graphs: OrderedDict[Any, Ready] = OrderedDict()
            opening.callback(self.forget_graphs)
            opening.callback(self.stream.synchronize)
            self._open = opening.pop_all()  # only now is closing __exit__'s work
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def run(
        self, inputs: Arrays, wanted: Collection[str] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        return self.answer(inputs, wanted, "given")

    def states(self, capacity: int) -> DeviceStates:
        """Of streams, on this GPU: a `with` opens them."""
        return DeviceStates(self, capacity)

    def answer(
        self, inputs: Arrays, wanted: Collection[str] | None, begin: Begin
    ) -> dict[str, NDArray[np.float32]]:
        """run(), from the states that `begin` names; see fused_slots.copied_in for its inputs."""
        batch, time = inputs["input"].shape[:2]
        names = self._every_output if wanted is None else frozenset(wanted)
        ready = self._ready(batch, time, names, begin, copies=True)
        for name, view in ready.into.items():
            np.copyto(view, inputs[name])
        # Made before the launch: a run that changes slots must not fail after it.
        outputs = {name: np.empty_like(view) for name, view in ready.out.items()}
        self._failed[0] = 0
        ready.graph.launch()
        self.stream.synchronize()
        self._check(int(self._failed[0]))
        for name, view in ready.out.items():
            np.copyto(outputs[name], view)
        return outputs

    def _load(self, file: FusedFile, opening: ExitStack) -> None:
        """The modules, and the ways of the file that this GPU can go."""
        gpu = cuda.gpu(self.device)
        units, cubins, self.ways = file.units, file.cubins, list(file.ways)
        self._hopper = gpu.capability == CAPABILITY
        if not self._hopper:
            from looprnn.engines import fused_compile  # needs NVRTC

            self.ways = fused_plan.only_steps(self.spec, f"this is {gpu}")
            wanted = fused_plan.units(self.spec, self.ways, hopper=False)
            units = {name: unit for name, unit in units.items() if name in wanted}
            cubins = {n: fused_compile.cubin(u, gpu.capability) for n, u in units.items()}
            log.info("%s: compiled from its source for %s", self.path, gpu)
        self._modules = {n: opening.enter_context(cuda.Module(cubins[n])) for n in units}
        self._kernels: dict[tuple[str, str], cuda.Kernel] = {}
        for k, way in enumerate(self.ways):
            if not way.plan:
                continue
            here = way.on(gpu, self._resident(way, gpu.multiprocessors))
            if not here.plan:
                log.warning("%s: layer %d step by step: %s", self.path, way.layer, here.why)
            self.ways[k] = here

    def _program(self, batch: int, time: int, begin: Begin = "given") -> Program:
        made = fused_plan.program(self.spec, self.ways, batch, time, hopper=self._hopper)
        return made if begin == "given" else between_slots(made, self.spec, batch, begin)

    def _resident(self, way: Way, multiprocessors: int) -> int:
        """How many blocks of this way's kernel are resident together."""
        assert way.plan is not None
        program = self._program(way.last, 1)
        launch = next(
            op
            for op in program.launches
            if op.struct == "Persistent" and op.unit == persistent_unit(way.plan).name
        )
        return self._kernel(launch).resident(shape_of(launch), multiprocessors)

    def _allocate(self, opening: ExitStack) -> None:
        """Buffers as large as any request of the profile needs them."""
        most, spec = self.spec.profile, self.spec
        sizes = {"tensors": room(spec)}
        for batch in sorted({most.batch.max, *(way.last for way in self.ways)}):
            program = self._program(batch, most.time.max)
            for name, size in program.scratch.items():
                sizes[name] = max(size, sizes.get(name, 0))
        self.host = opening.enter_context(cuda.PinnedBuffer(sizes["tensors"]))
        # Kernels write it over the bus when they fail, so that no run has to clear it or copy it.
        self._flag = opening.enter_context(cuda.PinnedBuffer(FLAG))
        self._failed = self._flag.view((1,), np.int32)
        for name, size in sizes.items():
            self.gpu[name] = opening.enter_context(cuda.DeviceBuffer(size))
            cuda.fill(self.gpu[name], 0, size, self.stream)

    def _upload(self, arrays: Arrays, opening: ExitStack) -> None:
        """The packed weights, through a pinned buffer of a few MiB."""
        with cuda.PinnedBuffer(UPLOAD) as staging:
            for name, array in arrays.items():
                self.gpu[name] = opening.enter_context(cuda.DeviceBuffer(max(array.nbytes, 1)))
                flat = array.reshape(-1).view(np.uint8)
                for at in range(0, array.nbytes, UPLOAD):
                    part = flat[at : at + UPLOAD]
                    np.copyto(staging.view(part.shape, np.uint8), part)
                    cuda.copy_in(self.gpu[name], staging, part.nbytes, self.stream, at)
                    self.stream.synchronize()

    def _kernel(self, launch: Launch) -> cuda.Kernel:
        """Loaded before it is queued: loading may wait for the GPU, which a capture must not."""
        key = launch.unit, launch.kernel
        if key not in self._kernels:
            self._kernels[key] = self._modules[launch.unit].kernel(launch.kernel)
        self._kernels[key].allow(shape_of(launch))
        return self._kernels[key]

    def graph(
        self,
        batch: int,
        time: int,
        wanted: Collection[str],
        *,
        begin: Begin = "given",
        copies: bool = True,
    ) -> cuda.Graph:
        """Of this shape; without copies for those who time the kernels alone."""
        return self._ready(batch, time, frozenset(wanted), begin, copies=copies).graph

    def _ready(
        self, batch: int, time: int, wanted: frozenset[str], begin: Begin, *, copies: bool
    ) -> Ready:
        """From the last ones asked for, or new. Raises EngineError beyond the profile."""
        key = batch, time, wanted, begin, copies
        if key in self._graphs:
            self._graphs.move_to_end(key)
            return self._graphs[key]
        limit = self.spec.profile
        if not (1 <= batch <= limit.batch.max and 1 <= time <= limit.time.max):
            raise EngineError(
                f"{self.path}: B = {batch}, T = {time}; it takes B up to {limit.batch.max} and T "
                f"up to {limit.time.max}"
            )
        program = self._program(batch, time, begin)
        for launch in program.launches:
            self._kernel(launch)
        where, into = places(self.spec, batch, time), copied_in(self.spec, begin)
        views = {
            name: self.host.view(place.shape, place.dtype, place.offset)
            for name, place in where.items()
        }

        def record() -> None:
            here, there = self.host.address, self.gpu["tensors"].address
            for at, size in stretches(where, into.values()) if copies else ():
                cuda.copy_in(cuda.Part(there + at), cuda.Part(here + at), size, self.stream)
            of_tensors = {name: there + place.offset for name, place in where.items()}
            self._queue(program, self.addresses | of_tensors)
            for at, size in stretches(where, wanted if copies else ()):
                cuda.copy_out(cuda.Part(here + at), cuda.Part(there + at), size, self.stream)

        self._forget(GRAPHS - 1, LAUNCHES - program.length)
        kept = ExitStack()
        self._graphs[key] = Ready(
            kept.enter_context(cuda.Graph(self.stream, record)),
            program.length,
            {name: views[buffer] for name, buffer in into.items()},
            {name: views[name] for name in wanted},
            kept,
        )
        return self._graphs[key]

    def forget_graphs(self) -> None:
        """All of them: buffers that they name are going."""
        self._forget(0, 0)

    def _forget(self, graphs: int, launches: int) -> None:
        """Free the graphs asked for longest ago, until so many are left."""
        while self._graphs and (
            len(self._graphs) > graphs
            or sum(ready.launches for ready in self._graphs.values()) > launches
        ):
            _, ready = self._graphs.popitem(last=False)
            ready.kept.close()

    def _queue(self, program: Program, addresses: Mapping[str, int]) -> None:
        for operation in program.operations:
            if isinstance(operation, Loop):
                self._queue_loop(operation, addresses)
            else:
                self._queue_launch(operation, operation.argument(addresses, tensor_map))

    def _queue_loop(self, loop: Loop, addresses: Mapping[str, int]) -> None:
        body = [(launch, launch.argument(addresses)) for launch in loop.body]
        for step in range(loop.steps):
            for launch, argument in body:
                if launch.struct == "Step":
                    argument.s = step
                self._queue_launch(launch, argument)

    def _queue_launch(self, launch: Launch, argument: ctypes.Structure) -> None:
        at = ctypes.addressof(argument)
        pointers = [at]
        if launch.spread:
            pointers = [
                at + getattr(type(argument), name).offset for name in STRUCTS[launch.struct]
            ]
        self._kernels[launch.unit, launch.kernel].launch(shape_of(launch), pointers, self.stream)

    def _check(self, flag: int) -> None:
        if flag:
            why = {**ERRORS, UNKNOWN_ID: "an id outside the vocabulary"}.get(flag, f"code {flag}")
            raise EngineError(f"{self.path}: {why}")


def shape_of(launch: Launch) -> cuda.Shape:
    return cuda.Shape(
        grid=launch.grid,
        block=launch.block,
        shared=launch.shared,
        cluster=launch.cluster,
        cooperative=launch.cooperative,
        early=launch.early,
    )
