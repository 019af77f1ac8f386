"""The fused engine: our own CUDA kernels, compiled by NVRTC on any host, run on a GPU.

Where a layer's R fits on the chip, one persistent launch runs all its steps (fused_persistent.py);
every other layer runs step by step in a CUDA graph (fused_steps.py). The planner says which.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from looprnn.card import EngineCard
from looprnn.engines import Engine, Progress, fused_compile, fused_plan
from looprnn.engines.fused_file import CAPABILITY, FusedFile, read_ways
from looprnn.engines.fused_pack import narrowed, pack_weights
from looprnn.engines.fused_persistent import pack
from looprnn.engines.fused_plan import DTYPE, Way, packed_name
from looprnn.engines.fused_source import persistent_unit
from looprnn.engines.tensorrt import no_gpu
from looprnn.spec import RNNSpec
from looprnn.weights import Weights, suffix

LEAST = (8, 0)  # the compute capability that knows bfloat16 and m16n8k16


class Fused(Engine):
    name = "fused"
    file = "model.fused"

    def libraries(self) -> dict[str, str]:
        return {"nvrtc": fused_compile.nvrtc_version()}

    def cannot_build(self) -> str | None:
        return fused_compile.missing()

    def cannot_run(self, card: EngineCard, device: int = 0) -> str | None:
        if reason := no_gpu(device):
            return reason
        from looprnn.cuda import gpu

        return mismatch(gpu(device).name, gpu(device).capability)

    def build(
        self, spec: RNNSpec, weights: Weights, path: Path, *, progress: Progress, workspace: int
    ) -> dict[str, Any]:
        ways = fused_plan.choose(spec)
        units = fused_plan.units(spec, ways)
        cubins = {}
        for k, (name, unit) in enumerate(units.items()):
            progress("compiling kernels", k, len(units))
            cubins[name] = fused_compile.cubin(unit, CAPABILITY)
        progress("compiling kernels", len(units), len(units))
        arrays = pack_weights(spec, weights)
        for way in ways:
            if way.plan and packed_name(way.layer, way.plan) not in arrays:
                arrays[packed_name(way.layer, way.plan)] = persistent_r(spec, weights, way)
        FusedFile(units=units, cubins=cubins, arrays=arrays, ways=ways).write(path)
        persistent = any(way.plan for way in ways)
        stepwise = any(not way.plan for way in ways)
        made_of = " + ".join(["persistent"] * persistent + ["steps"] * stepwise)
        return {
            "gpu": None,
            "capabilities": [CAPABILITY],
            "precision": DTYPE[spec.precision],
            "made_of": made_of,
        }

    def session(self, path: Path, spec: RNNSpec, device: int = 0) -> Any:
        from looprnn.engines.fused_session import FusedSession  # needs a driver

        return FusedSession(path, spec, device)

    def plan(self, path: Path) -> list[dict[str, Any]]:
        return described(read_ways(path))


def persistent_r(spec: RNNSpec, weights: Weights, way: Way) -> Any:
    """R of every direction of a layer, as its persistent kernel reads it."""
    import numpy as np

    assert way.plan is not None
    directions = spec.layers[way.layer].directions
    r = np.stack([weights[f"weight_hh_{suffix(way.layer, d)}"] for d in directions])
    narrowed(r, spec.precision, f"{spec.name}: weight_hh_l{way.layer}")  # raises if it cannot hold
    return np.ascontiguousarray(pack(way.plan, r))


def described(ways: Sequence[Way]) -> list[dict[str, Any]]:
    """Ways in the words of `looprnn inspect`, those that differ in their rows alone as one; µs are
    what the planner expects of one step.
    """
    found: list[dict[str, Any]] = []
    last: tuple[Any, ...] = ()
    for way in ways:
        row: dict[str, Any] = {"layer": way.layer, "batch": [way.first, way.last], "why": way.why}
        plan, key = way.plan, (way.layer, way.plan and persistent_unit(way.plan).name)
        if plan is None:
            row["way"] = "steps"
        else:
            row |= {"way": "persistent", "cluster": plan.cluster, "rows": plan.rows}
            row |= {"blocks": [plan.grid] * 2, "chip_bytes": [plan.chip_bytes] * 2}
            row |= {"us_per_step": [plan.us_per_step] * 2}
            row |= {"floor_us_per_step": [plan.floor_us_per_step] * 2}
        if key == last:
            for name, value in row.items():
                if isinstance(value, list):
                    found[-1][name][1] = value[1]
        else:
            found.append(row)
        last = key
    return found


def mismatch(gpu: str, capability: str) -> str | None:
    """Why this GPU cannot run it, or None: from its cubins, or compiled here from its source."""
    if capability == CAPABILITY:
        return None
    if tuple(map(int, capability.split("."))) < LEAST:
        return f"the fused engine needs compute capability 8.0, this is {gpu} ({capability})"
    if reason := fused_compile.missing():
        return (
            f"compiled for compute capability {CAPABILITY}; for {gpu} ({capability}) it would be "
            f"compiled here, but {reason}"
        )
    return None


def engine(name: str) -> Engine:
    return Fused()
