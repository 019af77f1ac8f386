"""Ways to run a layer in one launch: what fits where on the chip, and the µs a step it should take.

See fused_persistent.py for the kernels' arguments.
"""

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

Cell = Literal["rnn", "lstm", "gru"]
Dtype = Literal["fp32", "fp16", "bf16"]
WITH_COURIER: Final = {4: 255, 8: 232, 12: 152}  # warps → registers of a worker
AHEAD: Final = 4  # steps that cluster.cu fetches x ahead
CYCLES_PER_US: Final = 1980
CLUSTER_BARRIER_US: Final = 0.4  # measured, 128 threads a block
GRID_BARRIER_US: Final = 1.0  # measured, 132 blocks
DIRECTIONS: Final = {("forward",): 1, ("reverse",): 2, ("forward", "reverse"): 3}
TYPES: Final = {"fp32": 32, "fp16": 16, "bf16": 17}
PROJECTION_SHARED: Final = 6 * 2 * 128 * 128 + 8 * 2 * 16 * 128 + 2 * 6 * 8  # Shared of project.cuh
GATES: Final = {"rnn": 1, "gru": 3, "lstm": 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """What a plan needs to know of a GPU."""

    name: str
    multiprocessors: int
    shared_bytes: int  # a block's most
    clusters: dict[int, int]  # cluster size → how many are resident at once


H100: Final = Chip(
    name="NVIDIA H100 80GB HBM3",
    multiprocessors=132,
    shared_bytes=232_448,
    clusters={2: 62, 4: 31, 8: 15, 16: 7},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PersistentPlan:
    """One way to run a layer in one launch.

    source, defines     the .cu file in looprnn/engines/fused/ and NVRTC's -D options
    kernel              the extern "C" name
    grid, cluster, block, shared_bytes, cooperative: the launch
    rows                batch rows of one cluster
    chip_bytes          R and h, as they lie in registers and shared memory, all blocks together
    scratch_bytes       device memory the kernel needs beside its arguments
    spare               blocks that may be launched besides, for the projection
    us_per_step, floor_us_per_step  expected, the projection not included; exchange + bytes on chip
    why                 a sentence for `looprnn inspect`
    """

    kernel: str
    source: str
    defines: tuple[tuple[str, int], ...]
    grid: int
    cluster: int
    block: int
    shared_bytes: int
    cooperative: bool
    rows: int
    chip_bytes: int
    scratch_bytes: int
    us_per_step: float
    floor_us_per_step: float
    why: str
    spare: int = 0

    @property
    def options(self) -> list[str]:
        """NVRTC's: -DNAME=value."""
        return [f"-D{name}={value}" for name, value in self.defines]


class Layer(NamedTuple):
    cell: Cell
    dtype: Dtype
    hidden: int
    directions: tuple[str, ...]
    activation: str
    reset: str


def cluster_plan(
    layer: Layer, batch: int, cluster: int, rows: int, groups: int, chip: Chip, *, courier: bool
) -> PersistentPlan | None:
    """cluster.cu with these parameters; None where it does not fit."""
    fp32 = layer.dtype == "fp32"
    warps = -(-layer.hidden // (4 * cluster))
    whole = warps if fp32 else -(-warps // 4) * 4  # a block's part of h is whole tiles of 16
    if cluster > 1:
        warps = whole
    if warps > (8 if fp32 else 12) or (
        cluster > 1 and (warps - (1 if fp32 else 4)) * cluster * 4 >= layer.hidden
    ):
        return None
    quads, gates = warps * cluster, GATES[layer.cell]
    words = r_words(layer.cell, layer.dtype, layer.hidden, quads, rows)
    if courier and (warps not in WITH_COURIER or layer.hidden % 4):
        return None
    # ptxas counts warps in fours; `busy` is what else a worker's registers hold.
    registers = min(255, 65536 // (128 * -(-warps // 4)) // 8 * 8)
    if courier:
        registers = WITH_COURIER[warps]
    busy = (64 + 32 * rows if fp32 else 100 if rows == 1 else 80) + 14 * (groups - 1)
    in_registers = min(words, (registers - busy) // 4)
    if in_registers < 1:
        return None
    quad_bytes = rows * (16 if fp32 else 8)
    buffers = groups * (3 if layer.cell == "gru" and layer.reset == "before" else 2)
    columns = words_to_quads(layer.cell, layer.dtype, layer.hidden, quads)
    if alone(layer.cell, layer.dtype, rows):
        columns = -(-columns // 32) * 32
    h_bytes = buffers * quad_bytes * max(whole * cluster, columns)
    x_row, y_row = (4 * warps * gates + 4, 4 * warps + 4) if courier else (4, 4)
    carried = 4 * AHEAD * (groups if courier else 1) * rows * (x_row + y_row)
    r_shared = 512 * warps * (words - in_registers)
    shared = max(r_shared, 16) + h_bytes + carried + 8 * (buffers + groups * AHEAD) + 4
    shared = -(-shared // 16) * 16
    if shared > chip.shared_bytes:
        return None
    clusters = -(-batch // (rows * groups)) * len(layer.directions)
    waves = -(-clusters // chip.clusters[cluster])
    took = step_us(layer, warps, words, words - in_registers, rows, groups, cluster)
    block_bytes = 512 * warps * words
    kept = "registers" + (" and shared memory" if in_registers < words else "")
    floor = CLUSTER_BARRIER_US + block_bytes / (512 if fp32 else 256) / CYCLES_PER_US
    return PersistentPlan(
        kernel="recurrence",
        source="cluster.cu",
        defines=(
            ("CELL", {"rnn": 0, "lstm": 1, "gru": 2}[layer.cell]),
            ("RESET_BEFORE", int(layer.reset == "before")),
            ("RELU", int(layer.activation == "relu")),
            ("H", layer.hidden),
            ("C", cluster),
            ("WARPS", warps),
            ("NB", rows),
            ("GROUPS", groups),
            ("DIRECTIONS", DIRECTIONS[layer.directions]),
            ("TYPE", TYPES[layer.dtype]),
            ("COURIER", int(courier)),
            ("KREG", in_registers),
        ),
        grid=clusters * cluster,
        cluster=cluster,
        block=32 * (warps + (4 if courier else 0)),
        shared_bytes=shared,
        cooperative=False,
        rows=rows * groups,
        chip_bytes=clusters * cluster * (block_bytes + h_bytes),
        scratch_bytes=0,
        us_per_step=round(waves * took, 3),
        floor_us_per_step=round(waves * floor, 3),
        why=(
            f"R stays in {kept} "
            f"of {cluster} block{'s' * (cluster > 1)}; {clusters} such cluster"
            f"{'s' * (clusters > 1)} of {rows * groups} row{'s' * (rows * groups > 1)}"
            + (f", {chip.clusters[cluster]} at a time" if waves > 1 else "")
            + (f"; {groups} groups of rows take turns while h travels" if groups > 1 else "")
        ),
    )


def grid_plan(layer: Layer, batch: int, units: int, rows: int, chip: Chip) -> PersistentPlan | None:
    """grid.cu with these parameters; None where it does not fit."""
    if layer.cell == "rnn" or layer.reset == "before" or layer.dtype == "fp32":
        return None
    team = -(-layer.hidden // units)
    teams = -(-batch // rows) * len(layer.directions)
    parts = 32 // units  # of K: 8 warps hold units / 4 tiles of each
    tiles = -(-layer.hidden // (16 * parts))
    columns = -(-rows // 8) * 8 + 2
    shared = (parts * tiles + 1) * rows * 32 + parts * units * 16 * columns + rows * units * 2
    if team * teams > chip.multiprocessors or tiles > 36 or shared > chip.shared_bytes:
        return None
    words = -(-team * units // 8) * rows
    took = 1.05 + 0.3 * (rows * layer.hidden / 1024 + (units == 8))  # fitted, as in step_us
    return PersistentPlan(
        kernel="recurrence_grid",
        source="grid.cu",
        defines=(
            ("CELL", {"lstm": 1, "gru": 2}[layer.cell]),
            ("H", layer.hidden),
            ("UNITS", units),
            ("NB", rows),
            ("DIRECTIONS", DIRECTIONS[layer.directions]),
            ("TYPE", TYPES[layer.dtype]),
        ),
        grid=team * teams,
        cluster=1,
        block=256,
        shared_bytes=-(-shared // 16) * 16,
        cooperative=True,
        rows=rows,
        chip_bytes=team * teams * (8 * tiles * 512 + rows * 32 * parts * tiles),
        scratch_bytes=16 + teams * 2 * words * 16,
        us_per_step=round(took, 3),
        floor_us_per_step=round(GRID_BARRIER_US + 8 * tiles * 512 / 256 / CYCLES_PER_US, 3),
        why=(
            f"R stays in registers of {team} blocks; {teams} such team{'s' * (teams > 1)} of "
            f"{rows} row{'s' * (rows > 1)}; h travels through the L2 cache"
        ),
    )


def step_us(
    layer: Layer, warps: int, words: int, shared: int, rows: int, groups: int, cluster: int
) -> float:
    """µs a step of cluster.cu, fitted to what was measured (bench/fused-notes.md): h travels, and
    each group's product occupies the tensor cores (or the FMA units) and shared memory.
    """
    each = -(-warps // 4)  # warps a quarter of a multiprocessor has
    if layer.dtype == "fp32":
        cycles = each * words * 4 * rows * 1.4 + 4 * warps * shared
        bytes_of_h = 4 * layer.hidden * rows
    else:
        tiles = 4 * words if layer.cell == "rnn" and rows > 2 else words
        loads = 0 if alone(layer.cell, layer.dtype, rows) else 0.5 if rows <= 4 else 1
        cycles = each * tiles * 8 + 4 * warps * shared + warps * tiles * loads
        bytes_of_h = 2 * layer.hidden * rows
    products = 2 if layer.cell == "gru" and layer.reset == "before" else 1
    sent = 0.24 if groups == 1 else 0.28  # by the workers themselves, or by couriers
    travel = sent + 0.03 * min(cluster, 16).bit_length() + bytes_of_h * groups / 1024 * 0.04
    cell = 0.0 if layer.cell == "rnn" else 0.04
    return products * (travel + cell + groups * (cycles / CYCLES_PER_US + 0.04 * (groups > 1)))


def alone(cell: Cell, dtype: Dtype, rows: int) -> bool:
    """Whether cluster.cu reads h 8 tiles at a time: see tile_mma.cuh."""
    return rows == 1 and cell != "rnn" and dtype != "fp32"


def six_of_eight(cell: Cell, rows: int) -> bool:
    """Whether, in half precision, 8 tiles of h then take 6 products."""
    return rows == 1 and cell == "gru"


def r_words(cell: Cell, dtype: Dtype, hidden: int, quads: int, rows: int) -> int:
    """16-byte words of R in each lane of cluster.cu."""
    if dtype == "fp32":
        return -(-hidden // 128) * 4 * GATES[cell]
    tiles = words_to_quads(cell, dtype, hidden, quads) // 4
    if cell == "rnn":
        return tiles // 4
    return tiles // 8 * 6 + min(tiles % 8, 6) if six_of_eight(cell, rows) else tiles


def words_to_quads(cell: Cell, dtype: Dtype, hidden: int, quads: int) -> int:
    """Groups of 4 units that R's columns span."""
    if dtype == "fp32":
        return -(-hidden // 128) * 32
    return -(-quads // 16) * 16 if cell == "rnn" else -(-hidden // 16) * 4
