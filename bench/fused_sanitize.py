"""compute-sanitizer over the fused engine's kernels: memcheck, racecheck and synccheck, on a GPU.

    python bench/fused_sanitize.py                    all three, a minute or two
    python bench/fused_sanitize.py --tools memcheck --ways steps

On an H100 (compute-sanitizer of CUDA 13.0) the kernels that run step by step are clean under all
three; of the persistent ones memcheck and synccheck find nothing.

A small sweep: each cell in each type, planned and step by step, one row and several, both
directions, lengths. Each answer is compared with the reference, too. The status is 0 if every tool
found nothing.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np
from machine import ROOT
from rich.console import Console
from rich.table import Table

from looprnn import engines, parity
from looprnn.engines import fused_plan
from looprnn.spec import Head, Layer, Profile, Range, RNNSpec, WeightSource
from looprnn.weights import load_weights

TOOLS = ("memcheck", "racecheck", "synccheck")
WAYS = ("planned", "steps")  # with the persistent kernels, and without
SWEPT = "swept"  # what the child says once it is through
CUDA = "/usr/local/cuda/bin"


def specs() -> list[RNNSpec]:
    usual: list[Layer] = []
    for cell in ("rnn", "lstm", "gru"):
        usual.append(Layer(cell=cell, hidden_size=64))
        usual.append(Layer(cell=cell, hidden_size=130, direction="bidirectional"))
    found = []
    for precision in ("fp32", "fp16", "bf16"):
        for layer in usual:
            batch = 9 if layer.direction == "bidirectional" else 1
            found.append(
                RNNSpec(
                    name=f"{layer.cell}_{precision}",
                    input_size=33,
                    layers=(layer,),
                    precision=precision,
                    lengths=batch > 1,
                    head=Head(size=3, activation="softmax") if batch > 1 else None,
                    profile=Profile(batch=Range(1, 1, batch), time=Range(1, 5, 5)),
                    weights=WeightSource(seed=1),
                )
            )
    odd = Layer(cell="lstm", hidden_size=40, layer_norm=True, peepholes=True, proj_size=17)
    before = Layer(
        cell="gru", hidden_size=40, reset="before", merge="sum", direction="bidirectional"
    )
    for layer in (odd, before):
        found.append(
            RNNSpec(name="odd", input_size=7, layers=(layer,), weights=WeightSource(seed=2),
                    profile=Profile(batch=Range(1, 3, 3), time=Range(1, 5, 5)))
        )  # fmt: skip
    found.append(  # rows enough for the projection of Hopper's own
        RNNSpec(name="many", input_size=130, precision="fp16", weights=WeightSource(seed=4),
                layers=(Layer(cell="lstm", hidden_size=130, peepholes=True),),
                profile=Profile(batch=Range(1, 32, 32), time=Range(1, 20, 20)))
    )  # fmt: skip
    for layer in (Layer(cell="lstm", hidden_size=130), Layer(cell="gru", hidden_size=130)):
        found.append(
            RNNSpec(name="streamed", input_size=33, layers=(layer,),
                    lengths=True, streaming=True, weights=WeightSource(seed=3),
                    profile=Profile(batch=Range(1, 9, 9), time=Range(1, 5, 5)))
        )  # fmt: skip
    return found


def sweep(ways: list[str]) -> None:
    """Build, run and compare every spec; raises AssertionError where one is wrong."""
    engine = engines.get("fused")
    fused_plan.TIMEOUT_NS *= 20  # type: ignore[misc]  # what is watched is slow
    for spec in specs():
        for way in ways:
            chosen = (
                fused_plan.choose(spec)
                if way == "planned"
                else fused_plan.only_steps(spec, "a sweep")
            )
            arrays, most = load_weights(spec), spec.profile
            inputs = parity.draw_inputs(spec, most.batch.max, most.time.max)
            with TemporaryDirectory() as folder:
                path = Path(folder) / engine.file
                with patch.object(fused_plan, "choose", return_value=chosen):
                    engine.build(spec, arrays, path, progress=lambda *_: None, workspace=0)
                with engine.session(path, spec) as session:
                    got = session.run(inputs)
                    if spec.streaming:
                        check_slots(session, inputs, got)
                    found = parity.differences(spec, arrays, inputs, got)
            assert all(parity.agrees(v, spec.precision) for v in found.values()), (spec, found)
    sys.stdout.write(f"{SWEPT}\n")


def check_slots(session: Any, inputs: dict[str, Any], want: dict[str, Any]) -> None:
    """The same from slots to slots; raises AssertionError where it is not."""
    rows = len(inputs["input"])
    with session.states(rows) as states:
        none = inputs | {"lengths": np.zeros_like(inputs["lengths"])}
        states.run(none, [], [-1] * rows, range(rows))
        got = states.run(inputs, want, range(rows), range(rows))
        last = states.run(none, [n for n in want if n.endswith("_n")], range(rows), [-1] * rows)
    assert all(np.array_equal(got[name], want[name]) for name in want)
    assert all(np.array_equal(got[name], last[name]) for name in last)


def sanitized(program: str, tool: str, ways: list[str]) -> tuple[bool, str]:
    """Whether the tool found nothing, and what it said."""
    # A CUDA call that fails raises CudaError by itself; the tool would count the driver's own, too.
    command = [program, "--tool", tool, "--error-exitcode", "9", "--report-api-errors", "no"]
    answer = subprocess.run(
        [*command, sys.executable, __file__, "--sweep", "--ways", *ways],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    said = answer.stdout + answer.stderr
    return answer.returncode == 0 and SWEPT in said, said


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--sweep", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sweep:
        sweep(options.ways)
        return 0
    console = Console()
    program = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=CUDA)
    if program is None:
        console.print(f"compute-sanitizer is neither on PATH nor in {CUDA}: it is CUDA toolkit's")
        return 2
    table, clean = Table("tool", "", "its last line"), True
    for tool in options.tools:
        with console.status(f"{tool} over {len(options.ways) * len(specs())} engines"):
            well, said = sanitized(program, tool, options.ways)
        clean &= well
        lines = [line for line in said.splitlines() if line.strip()]
        table.add_row(tool, "[green]clean[/]" if well else "[red]found[/]", lines[-1])
        if not well:
            own = [line for line in lines if line.startswith("=====")][:60]
            console.print("\n".join(own + lines[-20:]), markup=False, soft_wrap=True)
    console.print(table)
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
