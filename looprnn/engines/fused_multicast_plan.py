"""Plans of multicast.cu, for H too large for one cluster and many rows: what fits, and how fast.

See fused_persistent.py for the kernel's arguments.
"""

from looprnn.engines.fused_persistent_plan import (
    CYCLES_PER_US,
    DIRECTIONS,
    GRID_BARRIER_US,
    PROJECTION_SHARED,
    TYPES,
    Chip,
    Layer,
    PersistentPlan,
)

CLUSTER = 16
UNITS = 16  # of a block
TEAM = 64  # its most blocks: what of R a thread's registers hold
ROWS = 128  # of a team at most: what of h a thread's registers hold
# Measured at H = 768 and 1024 (bench/fused-notes.md), by the rows of a group: µs from one h of a
# group to its next, and µs that each further group adds to it.
STEP_US = {8: 1.43, 16: 1.65, 32: 2.15}
MORE_US = {8: 0.4, 16: 0.75, 32: 1.1}


def multicast_plan(
    layer: Layer, batch: int, rows: int, groups: int, chip: Chip, *, apart: bool = False
) -> PersistentPlan | None:
    """multicast.cu with groups of so many rows; None where it does not fit.

    apart: one direction after the other, each in a launch that has the GPU to itself.
    """
    if layer.cell == "rnn" or layer.reset == "before" or layer.dtype == "fp32":
        return None
    team = team_blocks(layer.hidden)
    teams = -(-batch // (rows * groups)) * (1 if apart else len(layer.directions))
    if team > TEAM or team * teams > CLUSTER * chip.clusters[CLUSTER] or rows * groups > ROWS:
        return None
    h_bytes = 32 * rows * team  # of a group
    fixed = 256 * (rows // 8) + 32 * (rows * 20 + 4) + (64 + 4) * groups * rows + 8
    fit = (chip.shared_bytes - 127 - fixed) // (h_bytes + 24)  # 24: the barriers of each
    stages = min(fit, 2 * groups)
    if stages < min(2, groups + 1):
        return None
    shared = -(-(stages * (h_bytes + 24) + fixed) // 128) * 128
    left = CLUSTER * chip.clusters[CLUSTER] - team * teams
    spare = left if layer.directions == ("forward",) else 0
    return PersistentPlan(
        kernel="recurrence_multicast",
        source="multicast.cu",
        defines=(
            ("CELL", {"lstm": 1, "gru": 2}[layer.cell]),
            ("H", layer.hidden),
            ("C", CLUSTER),
            ("NB", rows),
            ("GROUPS", groups),
            ("STAGES", stages),
            ("DIRECTIONS", DIRECTIONS[layer.directions]),
            ("APART", int(apart)),
            ("TYPE", TYPES[layer.dtype]),
        ),
        grid=team * teams,
        cluster=CLUSTER,
        block=512,
        shared_bytes=max(shared, PROJECTION_SHARED) if spare else shared,
        cooperative=True,
        rows=rows * groups,
        chip_bytes=team * teams * (2048 * team + stages * h_bytes),
        scratch_bytes=128 + teams * groups * 2 * h_bytes,
        us_per_step=round((1 + apart) * (STEP_US[rows] + (groups - 1) * MORE_US[rows]), 3),
        floor_us_per_step=round(
            (1 + apart) * (GRID_BARRIER_US + 512 * team / 1024 / CYCLES_PER_US), 3
        ),
        why=(
            f"R stays in registers of {team} blocks in clusters of {CLUSTER}; {teams} such "
            f"team{'s' * (teams > 1)} of {rows * groups} rows; h travels through the L2 cache, "
            "once into each cluster"
            + (f"; {groups} groups of rows take turns meanwhile" if groups > 1 else "")
            + ("; clusters besides compute x·W just ahead, for many steps" if spare else "")
            + ("; one direction after the other" if apart else "")
        ),
        spare=spare,
    )


def team_blocks(hidden: int) -> int:
    """The blocks that hold R: whole clusters."""
    return -(-hidden // (UNITS * CLUSTER)) * CLUSTER
