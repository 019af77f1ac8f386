"""The step kernels of the fused engine, their own text, compiled by g++ and run on a CPU."""

import ctypes
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from looprnn.engines import fused_plan, fused_source
from looprnn.engines.fused_pack import pack_weights
from looprnn.engines.fused_program import At, Launch, Loop
from looprnn.engines.fused_slots import between_slots, copied_in, widths
from looprnn.errors import EngineError

HERE = Path(__file__).parent
KERNEL = re.compile(
    r'extern "C" __global__ void (?:__launch_bounds__\(.*?\) )?(\w+)\(const (\w+) o\)'
)
RUNNER = r"""extern "C" void \1(const \2 o);
extern "C" void run_\1(const \2* o, const unsigned* grid, unsigned block) {
    run_grid([o] { \1(*o); }, grid, block);
}
\g<0>"""
FOLDER = Path(mkdtemp())


def missing() -> str | None:
    return None if shutil.which("g++") else "g++ is not installed"


@cache
def compiled(unit: fused_source.Unit) -> ctypes.CDLL:
    hardware = (fused_source.FOLDER / "hardware.cu").read_text()
    text = unit.text.replace(hardware, (HERE / "cuda_on_cpu.h").read_text())
    assert text != unit.text
    text = KERNEL.sub(RUNNER, text)
    source = FOLDER / f"{len(list(FOLDER.iterdir()))}.cpp"
    source.write_text(text)
    library = source.with_suffix(".so")
    flags = [
        "-std=c++17",
        "-O1",
        "-fno-strict-aliasing",
        "-fno-gnu-unique",
        "-w",
        "-shared",
        "-fPIC",
        "-ffp-contract=off",
    ]
    flags += ["-Wl,-Bsymbolic"]  # libc has a step of its own, and units share names
    subprocess.run(["g++", *flags, "-o", str(library), str(source)], check=True)
    return ctypes.CDLL(str(library))


def run(spec, weights, inputs):
    """Every input of the spec → every output, as a session on a GPU would, and the flag."""
    return compute(spec, weights, inputs, "given", {})


class SlotsOnCpu:
    """See engines.States."""

    def __init__(self, spec, weights, capacity):
        self._spec, self._weights = spec, weights
        row = np.concatenate(
            [np.full(n, getattr(spec, f"{s}_0"), np.float32) for s, n in widths(spec).items()]
        )
        self._table = np.zeros((capacity + 1, row.size), np.float32)
        self._table[capacity] = row

    def run(self, inputs, wanted, begin, end):
        given = {**inputs, "slots": np.array((begin, end), np.int32)}
        where = "both" if min(begin) < 0 else "slots"
        found, failed = compute(self._spec, self._weights, given, where, {"table": self._table})
        if failed:
            raise EngineError(f"code {failed}")
        return {name: found[name] for name in wanted}


def compute(spec, weights, inputs, begin, kept):
    """All memory that nothing wrote is NaN, but for what is kept."""
    batch, time = inputs["input"].shape[:2]
    ways = fused_plan.only_steps(spec, "a CPU")
    program = fused_plan.program(spec, ways, batch, time, hopper=False)
    if begin != "given":
        program = between_slots(program, spec, batch, begin)
    units = fused_plan.units(spec, ways)
    buffers = pack_weights(spec, weights) | kept
    shapes = spec.shapes(batch, time)
    for name in spec.output_names:
        buffers[name] = np.full(shapes[name], np.nan, np.float32)
    for name, buffer in copied_in(spec, begin).items():
        buffers[buffer] = np.array(inputs[name], order="C")
    for name, size in program.scratch.items():
        buffers[name] = np.full(size, 0xFF, np.uint8)
    buffers["failed"] = np.zeros(1, np.int32)
    addresses = {name: array.ctypes.data for name, array in buffers.items()}

    def launch(op: Launch, step: int) -> None:
        argument = op.argument(addresses)
        if op.struct == "Step":
            argument.s = step
        call = getattr(compiled(units[op.unit]), f"run_{op.kernel}")
        call(ctypes.byref(argument), (ctypes.c_uint * 3)(*op.grid), ctypes.c_uint(op.block))

    for op in program.operations:
        if isinstance(op, Loop):
            for step in range(op.steps):
                for part in op.body:
                    launch(part, step)
        else:
            launch(op, 0)
    check_bounds(program, buffers)
    return {name: buffers[name] for name in spec.output_names}, int(buffers["failed"][0])


def check_bounds(program, buffers) -> None:
    """Every place a launch names begins inside its buffer."""
    for op in program.launches:
        for value in op.fields.values():
            if isinstance(value, At):
                assert value.offset < max(1, buffers[value.buffer].nbytes), (op.kernel, value)
