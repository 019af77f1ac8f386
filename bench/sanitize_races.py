"""What racecheck cannot judge: the pairs of accesses it takes for races in the fused kernels, and
the control that shows why.

racecheck (of CUDA 13) follows barrier.cta.sync, __syncthreads and mbarriers, but not
barrier.cta.arrive: it calls a race what PTX's own example of a producer and a consumer does
(control-arrive of sanitize_control.cu), and not the same by sync (control-sync). Nor does it follow
words in global memory. What is ordered by these alone is proved by other means: by reading, by the
GPU tests' bit-identical runs, and for multicast.cu by tests/test_fused_multicast_protocol.py.
"""

import ctypes
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from looprnn import cuda
from looprnn.engines import fused_compile
from looprnn.engines.fused_file import CAPABILITY
from looprnn.engines.fused_source import Unit

CONTROL: Final = "handed_over"  # their kernel
CONTROLS: Final = {"control-sync": 0, "control-arrive": 1}  # the value of ARRIVE
SEEN: Final = "not found: what is excused for it can be judged now"


class Unseen(NamedTuple):
    """A pair that is handed over by what racecheck does not follow."""

    plan: Mapping[str, Any]  # what a plan says that has it
    writes: str  # the functions
    reads: tuple[str, ...]
    how: str


UNSEEN: Final = (
    Unseen({"source": "cluster.cu", "COURIER": 1}, "Tile::put",
           ("Tile::load", "Tile::product_of_one"),
           "h of this block: workers arrive, couriers wait for them and arrive at h_came"),
    Unseen({"source": "multicast.cu"}, "product", ("cells",),
           "sums: the product's warps arrive at barrier 1, the cells at barrier 2"),
    *(Unseen({"source": "multicast.cu", "NB": 8, "GROUPS": groups, "STAGES": 2 * groups},
             "warp_copy_to_all", ("two_tiles",),
             "h of all blocks: who sends the next but one has had the next, in global memory")
      for groups in (1, 2, 4)),
)  # fmt: skip
RACE: Final = re.compile(r"Race reported between (.*?)(?=\n=+ *\n|\n=+ RACECHECK|\Z)", re.DOTALL)
ACCESS: Final = re.compile(r"(\w+) access at (?:void )?([\w:]+)")


def races(said: str) -> Iterator[set[tuple[str, str]]]:
    """Of each race that racecheck reports: {(Read or Write, function)}."""
    for race in RACE.finditer(said):
        yield set(ACCESS.findall(race[1]))


def excused(said: str, plan: Mapping[str, Any], count: int) -> bool:
    """Whether the `count` races that racecheck found in a kernel of this plan are all printed, and
    each is a write and reads of UNSEEN.
    """
    known = [u for u in UNSEEN if u.plan.items() <= plan.items()]

    def is_known(accesses: set[tuple[str, str]]) -> bool:
        return any(
            accesses - {("Read", r) for r in u.reads} == {("Write", u.writes)} < accesses
            for u in known
        )

    found = list(races(said))
    return len(found) == count > 0 and all(map(is_known, found))


def build_control(name: str, path: Path) -> None:
    source = Path(__file__).with_name("sanitize_control.cu").read_text()
    unit = Unit(name, f"#define ARRIVE {CONTROLS[name]}\n{source}")
    path.write_bytes(fused_compile.compile_unit(unit, CAPABILITY)[0])


def run_control(path: Path) -> None:
    """Raises AssertionError where the sums are wrong."""
    shape = cuda.Shape(grid=(1, 1, 1), block=64)
    with (
        cuda.Stream() as stream,
        cuda.Module(path.read_bytes()) as module,
        cuda.DeviceBuffer(128) as sums,
        cuda.PinnedBuffer(128) as host,
    ):
        argument = ctypes.c_uint64(sums.address)
        module.kernel(CONTROL).launch(shape, [ctypes.addressof(argument)], stream)
        cuda.copy_out(host, sums, 128, stream)
        stream.synchronize()
        assert (host.view((32,), np.int32) == 4 * (31 - np.arange(32)) + 6).all()
