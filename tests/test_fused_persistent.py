"""R as the persistent kernels read it: the lanes' own steps, in NumPy, against R·h."""

import itertools

import numpy as np
import pytest

from looprnn.engines import fused_persistent
from looprnn.engines.fused_persistent import PersistentPlan, pack

GATES = {"rnn": 1, "gru": 3, "lstm": 4}


def plan_of(cell: str, hidden: int, rows: int, dtype: str = "fp16") -> PersistentPlan:
    """The fastest plan of cluster.cu with so many rows in a cluster."""
    found = fused_persistent.candidates(cell=cell, dtype=dtype, batch=rows, hidden=hidden)
    return next(
        p
        for p in found
        if p.source == "cluster.cu"
        and (dict(p.defines)["NB"], dict(p.defines)["GROUPS"]) == (rows, 1)
    )


def fragment(words: np.ndarray) -> np.ndarray:
    """A [16, 16] of m16n8k16 from each lane's 8 halves (PTX: lane = 4·n + q)."""
    a = np.zeros((16, 16))
    for n, q in itertools.product(range(8), range(4)):
        for part, (low, high) in enumerate(words[4 * n + q].reshape(4, 2)):
            row, column = n + part % 2 * 8, 2 * q + part // 2 * 8
            a[row, column : column + 2] = low, high
    return a


def one_row(cell: str, packed: np.ndarray, h: np.ndarray) -> np.ndarray:
    """product_of_one of tile_mma.cuh: [words, lane, 8 halves], h → sums [gate, unit of 4]."""
    together = 6 if cell == "gru" else 8
    eighths = np.zeros((-(-len(h) // 128), 8, 16))  # column n of the B of an eighth is its tile n
    eighths.reshape(-1)[: len(h)] = h
    b = eighths.reshape(-1, 8, 4, 2, 2).transpose(0, 3, 2, 4, 1).reshape(-1, 16, 8)
    acc = np.zeros((together, 16, 8))
    for k, words in enumerate(packed):
        acc[k % together] += fragment(words) @ b[k // together]
    sums = sum(acc[i][:, i] for i in range(together)).reshape(4, 4)
    if cell == "gru":
        sums[:3] += [acc[g][12:, 6] + acc[3 + g][12:, 7] for g in range(3)]
    return sums[: GATES[cell]]


@pytest.mark.parametrize("hidden", [5, 96, 112, 130, 256])  # tiles: 1, 6, 7, one past 8, 16
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_r_lies_where_the_lanes_read_it_for_one_row(cell, hidden):
    plan, gates, random = plan_of(cell, hidden, 1), GATES[cell], np.random.default_rng(hidden)
    r = random.integers(-3, 4, (1, gates * hidden, hidden)).astype(np.float32)
    h = random.integers(-3, 4, hidden).astype(np.float32)
    made = dict(plan.defines)
    packed = pack(plan, r).view(np.float16).reshape(made["C"] * made["WARPS"], -1, 32, 8)
    found = np.concatenate([one_row(cell, quad, h) for quad in packed], axis=1)
    assert np.array_equal(found[:, :hidden], (r[0] @ h).reshape(gates, hidden))
    assert not found[:, hidden:].any()


@pytest.mark.parametrize("hidden", [700, 1024])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_r_lies_where_the_matrix_instruction_of_four_warps_reads_it(cell, hidden):
    gates, random = GATES[cell], np.random.default_rng(hidden)
    found = fused_persistent.candidates(cell=cell, dtype="fp16", batch=32, hidden=hidden)
    plan = next(p for p in found if p.source == "multicast.cu")
    r = random.integers(-3, 4, (1, gates * hidden, hidden)).astype(np.float32)
    h = random.integers(-3, 4, hidden).astype(np.float32)
    packed = pack(plan, r).view(np.float16).reshape(-1, -(-hidden // 16), 32, 8)
    tiles = np.zeros((packed.shape[1], 16))
    tiles.reshape(-1)[:hidden] = h
    sums = [sum(fragment(w) @ b for w, b in zip(q, tiles, strict=True)) for q in packed]
    of_units = np.concatenate([s.reshape(4, 4)[:gates] for s in sums], axis=1)
    assert np.array_equal(of_units[:, :hidden], (r[0] @ h).reshape(gates, hidden))
    assert not of_units[:, hidden:].any()
