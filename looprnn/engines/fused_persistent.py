"""The persistent kernels of the fused engine: which there are, what fits where, how R is packed.

One launch runs all T steps of a layer. A cluster of C thread blocks holds R on the chip and
exchanges only h; every cluster owns `rows` rows of the batch, and each direction has clusters of
its own. B batch, T time, H hidden size, D directions, G gates, L layers.

The kernels' arguments, in order (device pointers unless a scalar is named):

| argument     | type, shape              | meaning |
|--------------|--------------------------|---|
| r            | pack()'s bytes           | read |
| xg           | float [B, T, D, H, G]    | W·x + b, gates innermost (projection_rows); read |
| bias_n       | float [D, H] or null     | GRU, reset after: b_hh of n; null is zero |
| lengths      | int [B] or null          | valid steps of each row, 0..T; null is T |
| h_0, c_0     | float [B, L·D, H] or null| at this layer's first direction; null is zero |
| output       | float [B, T, D·H]        | written everywhere: 0 past a row's length |
| h_n, c_n     | float [B, L·D, H]        | written; may be h_0 and c_0 themselves. c: LSTM alone |
| scratch      | scratch_bytes, or null   | zeroed by the caller once, when it is allocated |
| error        | unsigned                 | 0 before; not 0 after: a block was lost (see ERRORS) |
| batch, time  | int, int                 | B ≥ 1, T ≥ 1 |
| state_stride | long long                | elements from a row of h_0, c_0, h_n, c_n to the next |
| timeout      | unsigned long long       | ns a wait may take before it gives up and sets `error` |

Nothing else may alias. Launch with grid, cluster, block and shared_bytes of the plan; clusters of
16 need cudaFuncAttributeNonPortableClusterSizeAllowed; `cooperative` plans the cooperative
attribute. No kernel spins on a block that might not be resident: blocks wait for those of their
own cluster alone, or of their own cooperative grid.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

Cell = Literal["rnn", "lstm", "gru"]
Dtype = Literal["fp32", "fp16", "bf16"]
WITH_COURIER: Final = {4: 255, 8: 232, 12: 152}  # warps → registers of a worker
AHEAD: Final = 4  # steps that cluster.cu fetches x ahead
CYCLES_PER_US: Final = 1980
CLUSTER_BARRIER_US: Final = 0.4  # measured, 128 threads a block
GATES: Final = {"rnn": 1, "gru": 3, "lstm": 4}
ERRORS: Final = {1: "a thread block waited for h longer than the timeout: another one was lost"}


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
    clusters={1: 132, 2: 66, 4: 32, 8: 16, 16: 7},
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

    @property
    def options(self) -> list[str]:
        """NVRTC's: -DNAME=value."""
        return [f"-D{name}={value}" for name, value in self.defines]


def candidates(
    *,
    cell: Cell,
    dtype: Dtype,
    batch: int,
    hidden: int,
    directions: tuple[str, ...] = ("forward",),
    activation: Literal["tanh", "relu"] = "tanh",
    reset: Literal["after", "before"] = "after",
    chip: Chip = H100,
) -> list[PersistentPlan]:
    """The plans for this layer, the one expected fastest first; none if R does not fit the chip.

    activation is the RNN's, reset the GRU's; gates are sigmoid, candidates and c's output tanh.
    """
    layer = Layer(cell, dtype, hidden, directions, activation, reset)
    plans = []
    for cluster in chip.clusters:
        for rows in (1, 2) if dtype == "fp32" else range(1, 9):
            for groups in range(1, min(5, -(-batch // rows) + 1)):
                # One group has nothing to compute while h travels: couriers would only add a stop.
                courier = groups > 1 and dtype != "fp32"
                plan = cluster_plan(layer, batch, cluster, rows, groups, chip, courier=courier)
                if plan is not None:
                    plans.append(plan)
    return sorted(plans, key=lambda plan: plan.us_per_step)


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
    if warps > 16 or (cluster > 1 and (warps - (1 if fp32 else 4)) * cluster * 4 >= layer.hidden):
        return None
    quads, gates = warps * cluster, GATES[layer.cell]
    words = r_words(layer.cell, layer.dtype, layer.hidden, quads)
    if courier and (warps not in WITH_COURIER or layer.hidden % 4):
        return None
    registers = WITH_COURIER[warps] if courier else min(255, 65536 // (32 * warps) // 8 * 8)
    busy = (58 + 30 * rows if fp32 else 64) + 12 * (groups - 1)
    in_registers = min(words, (registers - busy) // 4)
    if in_registers < 1:
        return None
    quad_bytes = rows * (16 if fp32 else 8)
    buffers = groups * (3 if layer.cell == "gru" and layer.reset == "before" else 2)
    columns = words_to_quads(layer.cell, layer.dtype, layer.hidden, quads)
    h_bytes = buffers * quad_bytes * (max(whole * cluster, columns) + whole)
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
            (
                "DIRECTIONS",
                3 if len(layer.directions) == 2 else 2 if layer.directions == ("reverse",) else 1,
            ),
            ("TYPE", {"fp32": 32, "fp16": 16, "bf16": 17}[layer.dtype]),
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
        cycles = each * tiles * 8 + 4 * warps * shared + warps * tiles * (1 if rows <= 4 else 2) / 2
        bytes_of_h = 2 * layer.hidden * rows
    products = 2 if layer.cell == "gru" and layer.reset == "before" else 1
    travel = 0.30 + 0.03 * min(cluster, 16).bit_length() + bytes_of_h * groups / 1024 * 0.04
    cell = 0.0 if layer.cell == "rnn" else 0.04
    return products * (travel + cell + groups * (cycles / CYCLES_PER_US + 0.04 * (groups > 1)))


def r_words(cell: Cell, dtype: Dtype, hidden: int, quads: int) -> int:
    """16-byte words of R in each lane."""
    if dtype == "fp32":
        return -(-hidden // 128) * 4 * GATES[cell]
    return -(-quads // 16) if cell == "rnn" else -(-hidden // 16)


def words_to_quads(cell: Cell, dtype: Dtype, hidden: int, quads: int) -> int:
    """Groups of 4 units that R's columns span."""
    if dtype == "fp32":
        return -(-hidden // 128) * 32
    return r_words(cell, dtype, hidden, quads) * (16 if cell == "rnn" else 4)


def pack(plan: PersistentPlan, r: NDArray[np.float32]) -> NDArray[Any]:
    """weight_hh of every direction [D, G·H, H], house gate order → the kernel's argument r.

    uint16 (the bits of fp16 or bf16) or float32, in the order the lanes read: [D, quad of units,
    word, lane, 16 bytes]. See tile_mma.cuh and tile_ffma.cuh.
    """
    made = dict(plan.defines)
    hidden, quads = made["H"], made["C"] * made["WARPS"]
    cell: Cell = ("rnn", "lstm", "gru")[made["CELL"]]
    dtypes: dict[int, Dtype] = {32: "fp32", 16: "fp16", 17: "bf16"}
    dtype = dtypes[made["TYPE"]]
    gates, d = GATES[cell], len(r)
    columns = 4 * words_to_quads(cell, dtype, hidden, quads)
    whole = np.zeros((d, 4, 4 * quads, columns), np.float32)  # [D, slot, unit, column]
    whole[:, :gates, :hidden, :hidden] = r.reshape(d, gates, hidden, hidden)
    if dtype == "fp32":
        spans = whole[:, :gates].reshape(d, gates, quads, 4, columns // 128, 32, 4)
        return np.ascontiguousarray(spans.transpose(0, 2, 4, 1, 3, 5, 6))
    if cell == "rnn":  # slot s: every fourth tile of 16 columns, from the s-th on
        whole = whole[:, 0].reshape(d, 4 * quads, -1, 4, 16).transpose(0, 3, 1, 2, 4)
    # slot = (high, low); column in a tile of 16 = (q, half, of 2): see the A fragment of m16n8k16
    tiles = whole.reshape(d, 2, 2, quads, 4, -1, 4, 2, 2)  # D high low quad unit tile q half of 2
    return halves(tiles.transpose(0, 3, 5, 2, 4, 6, 7, 1, 8), dtype)


def halves(array: NDArray[np.float32], dtype: Dtype) -> NDArray[np.uint16]:
    """The bits of fp16 or bf16, rounded to nearest even."""
    if dtype == "fp16":
        return np.ascontiguousarray(array, np.float16).view(np.uint16)
    bits = np.ascontiguousarray(array).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def projection_rows(gates: int, hidden: int) -> NDArray[np.intp]:
    """W[rows] computes the columns of xg: gates innermost. [G·H]"""
    return np.arange(gates * hidden).reshape(gates, hidden).T.ravel()


def fold_bias(
    cell: Cell,
    reset: str,
    bias_ih: NDArray[np.float32],
    bias_hh: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """b_ih and b_hh [G·H] → what the projection adds [G·H], and the kernel's bias_n [H] if any."""
    if cell != "gru" or reset == "before":
        return bias_ih + bias_hh, None
    hidden = len(bias_hh) // 3
    inside = bias_hh.copy()
    inside[2 * hidden :] = 0
    return bias_ih + inside, bias_hh[2 * hidden :]
