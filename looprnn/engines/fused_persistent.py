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
| ready        | unsigned [..], or null   | null: xg is there; else multicast.cu computes it, too |
| times, blocks| int, int                 | then: steps of a tile; blocks for it, of the spare |
| x, w, bias, K| maps, float [D·H·G], int | then: x [B, T, K] and W in halves (project.cuh) |
| direction    | int                      | of this launch, where multicast.cu takes one at a time |

Nothing else may alias. Launch with grid, cluster, block and shared_bytes of the plan; clusters of
16 need cudaFuncAttributeNonPortableClusterSizeAllowed; `cooperative` plans the cooperative
attribute. No kernel spins on a block that might not be resident: blocks wait for those of their
own cluster alone, or of their own cooperative grid.
"""

from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from looprnn.engines.fused_multicast_plan import STEP_US, UNITS, multicast_plan, team_blocks
from looprnn.engines.fused_persistent_plan import (
    GATES,
    H100,
    Cell,
    Chip,
    Dtype,
    Layer,
    PersistentPlan,
    cluster_plan,
    grid_plan,
    six_of_eight,
    words_to_quads,
)

__all__ = [
    "ERRORS",
    "H100",
    "Chip",
    "PersistentPlan",
    "candidates",
    "fold_bias",
    "pack",
    "projection_rows",
]
ERRORS: Final = {1: "a thread block waited for h longer than the timeout: another one was lost"}


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
    fp32 = dtype == "fp32"
    found = []
    for cluster in chip.clusters:
        for rows in range(1, 3 if fp32 else 9):
            for groups in range(1, min(5, -(-batch // rows) + 1)):
                # One group has nothing to compute while h travels: couriers would only add a stop.
                courier = groups > 1 and not fp32
                found.append(
                    cluster_plan(layer, batch, cluster, rows, groups, chip, courier=courier)
                )
    for units in (8, 16):
        for rows in (1, 2, 4, 8, 16, 32, 64):
            found.append(grid_plan(layer, batch, units, rows, chip))
    for rows in STEP_US:
        for groups in (1, 2, 4):
            found.append(multicast_plan(layer, batch, rows, groups, chip))
            if len(directions) == 2:
                found.append(multicast_plan(layer, batch, rows, groups, chip, apart=True))
    return sorted((plan for plan in found if plan), key=lambda plan: plan.us_per_step)


def pack(plan: PersistentPlan, r: NDArray[np.float32]) -> NDArray[Any]:
    """weight_hh of every direction [D, G·H, H], house gate order → the kernel's argument r.

    uint16 (the bits of fp16 or bf16) or float32, in the order the lanes read: [D, quad of units,
    word, lane, 16 bytes]. See tile_mma.cuh and tile_ffma.cuh.
    """
    made = dict(plan.defines)
    hidden = made["H"]
    if plan.source == "grid.cu":
        quads = -(-hidden // made["UNITS"]) * made["UNITS"] // 4
    elif plan.source == "multicast.cu":
        quads = team_blocks(hidden) * UNITS // 4
    else:
        quads = made["C"] * made["WARPS"]
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
    elif plan.source == "cluster.cu" and six_of_eight(cell, made["NB"]):
        whole = _six_of_eight(whole)
    # slot = (high, low); column in a tile of 16 = (q, half, of 2): see the A fragment of m16n8k16
    if plan.source == "multicast.cu":  # h lies there as it is counted: (half, q, of 2)
        tiles = whole.reshape(d, 2, 2, quads, 4, -1, 2, 4, 2)  # D high low quad unit tile half q of
        return halves(tiles.transpose(0, 3, 5, 2, 4, 7, 6, 1, 8), dtype)
    tiles = whole.reshape(d, 2, 2, quads, 4, -1, 4, 2, 2)  # D high low quad unit tile q half of 2
    return halves(tiles.transpose(0, 3, 5, 2, 4, 6, 7, 1, 8), dtype)


def _six_of_eight(whole: NDArray[np.float32]) -> NDArray[np.float32]:
    """[D, slot, unit, column]: of 8 tiles of a GRU's columns the last two go to its empty slot,
    first r, z, n of the one, then of the other.
    """
    tiles = whole.reshape(*whole.shape[:3], -1, 16)
    kept = [k for k in range(tiles.shape[3]) if k % 8 < 6]
    for k in kept:
        gate, other = k % 8 % 3, k // 8 * 8 + 6 + k % 8 // 3
        if other < tiles.shape[3]:
            tiles[:, 3, :, k] = tiles[:, gate, :, other]
    return tiles[:, :, :, kept].reshape(*whole.shape[:3], -1)


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
