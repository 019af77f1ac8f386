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
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

Cell = Literal["rnn", "lstm", "gru"]
Dtype = Literal["fp32", "fp16", "bf16"]
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
    return []


def pack(plan: PersistentPlan, r: NDArray[np.float32]) -> NDArray[Any]:
    """weight_hh of every direction [D, G·H, H], house gate order → the kernel's argument r."""
    raise NotImplementedError


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
