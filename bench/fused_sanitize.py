"""compute-sanitizer over the fused engine's kernels, on a GPU: memcheck, racecheck and synccheck.

    python bench/fused_sanitize.py                       every tool over every case
    python bench/fused_sanitize.py --list                the cases, and the kernel each is about
    python bench/fused_sanitize.py --tools racecheck --cases 'multicast*' 'grid*' --limit 600

A case is one small model whose answer is compared with the reference, too (sanitize_cases.py). Each
tool looks at each case in a process of its own, several at a time, and a process that does not end
within its limit is killed: one kernel that a tool is slow with keeps nothing from the others.

The table says of each case and tool: clean, found N, failed (a wrong answer, a CUDA error), or not
ended within S s. The status is 0 if all are clean. racecheck is clean "but for N" where it found
only what it cannot judge: sanitize_races.py says what that is, and two controls show it.
"""

import argparse
import fnmatch
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from machine import ROOT
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sanitize_cases import CASES, LEAST_TILES, Case
from sanitize_races import CONTROL, CONTROLS, SEEN, build_control, excused, run_control

from looprnn import engines, parity
from looprnn.engines import fused_compile, fused_plan, fused_steps
from looprnn.weights import load_weights

NAMES = (*CONTROLS, *CASES)
TOOLS = ("racecheck", "memcheck", "synccheck")  # the slow one first
CUDA = "/usr/local/cuda/bin"
FOUND = 9  # the status of a tool that found something
THROUGH = "the answer is right"  # what the watched process says at its end
SUMMARY = re.compile(r"^=+ (?:ERROR|RACECHECK) SUMMARY: (\d+)", re.MULTILINE)
SHOWN = 40  # lines of what a tool found


class Verdict(NamedTuple):
    what: str
    seconds: float
    said: str = ""

    @property
    def clean(self) -> bool:
        return self.what.startswith("clean")


# In the watched process


def build(name: str, path: Path) -> None:
    """The case's engine, as its plan is, whatever the planner would take; no GPU is needed."""
    if name in CONTROLS:
        return build_control(name, path)
    case = CASES[name]
    with (
        patch.object(fused_plan, "choose", return_value=case.ways()),
        patch.object(fused_compile, "OPTIONS", (*fused_compile.OPTIONS, "--generate-line-info")),
    ):  # with lines, a tool names the function of an access
        engines.get("fused").build(
            case.spec, load_weights(case.spec), path, progress=lambda *_: None, workspace=0
        )


def run(name: str, path: Path) -> None:
    """Raises AssertionError where the answer is wrong."""
    if name in CONTROLS:
        run_control(path)
    else:
        run_case(CASES[name], path)
    sys.stdout.write(f"{THROUGH}\n")


def run_case(case: Case, path: Path) -> None:
    fused_plan.TIMEOUT_NS = 10**15  # type: ignore[misc]  # what is watched is slow: --limit ends it
    fused_steps.LEAST_TILES = LEAST_TILES  # type: ignore[misc]
    spec, most = case.spec, case.spec.profile
    inputs = parity.draw_inputs(spec, most.batch.max, most.time.max)
    session: Any
    with engines.get("fused").session(path, spec) as session:
        assert session.ways == case.ways(), session.ways
        got = session.run(inputs)
        if spec.streaming:
            check_slots(session, inputs, got)
    found = parity.differences(spec, load_weights(spec), inputs, got)
    assert all(parity.agrees(v, spec.precision) for v in found.values()), found


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


# In the process that watches


running: set[subprocess.Popen[str]] = set()


def stop(process: subprocess.Popen[str]) -> None:
    """The tool and what it watches, if it has not ended by itself."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def look(program: str, tool: str, name: str, path: Path, limit: float) -> Verdict:
    """What a tool says of a case, within so many seconds."""
    # A CUDA call that fails raises CudaError by itself; the tool would count the driver's own, too.
    command = [program, "--tool", tool, "--error-exitcode", str(FOUND), "--report-api-errors", "no",
               sys.executable, __file__, "--run", name, str(path)]  # fmt: skip
    begin = time.monotonic()
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        running.add(process)
        try:
            said, _ = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            return Verdict(f"not ended within {limit:g} s", limit)
        finally:
            stop(process)
            running.remove(process)
    seconds, found = time.monotonic() - begin, SUMMARY.findall(said)
    count = sum(map(int, found))
    ended = bool(found) and THROUGH in said and process.returncode in (0, FOUND)
    if tool == "racecheck" and ended:
        if name == "control-arrive" and not count:
            return Verdict(SEEN, seconds, said)
        if name == "control-arrive" or (name in CASES and excused(said, CASES[name].said, count)):
            return Verdict(f"clean but for {count}", seconds)
    if count:
        return Verdict(f"found {count}", seconds, said)
    clean = ended and process.returncode == 0
    return Verdict("clean", seconds) if clean else Verdict("failed", seconds, said)


def shown(said: str) -> str:
    """The tool's own words, without the frames of Python, and the last ones of the case."""
    lines = [line for line in said.splitlines() if line.strip()]
    own = [line for line in lines if line.startswith("=====") and "Host Frame" not in line]
    rest = [line for line in lines if not line.startswith("=====")]
    return "\n".join(own[:SHOWN] + rest[-10:])


def looked_at(
    program: str, tools: Sequence[str], names: Sequence[str], limit: float, jobs: int, to: Console
) -> dict[tuple[str, str], Verdict]:
    """(case, tool) → what came of it; what is not clean is printed at once."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
               TimeElapsedColumn())  # fmt: skip
    verdicts: dict[tuple[str, str], Verdict] = {}
    with TemporaryDirectory() as folder, Progress(*columns, console=to) as progress:
        paths = {name: Path(folder) / name for name in names}
        task = progress.add_task("compiling", total=len(names))
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, mp_context=spawn) as builders:
            for built in as_completed([builders.submit(build, *of) for of in paths.items()]):
                built.result()
                progress.advance(task)
        task = progress.add_task(" ".join(tools), total=len(names) * len(tools))
        pool = ThreadPoolExecutor(jobs)
        try:
            asked: dict[Future[Verdict], tuple[str, str]] = {
                pool.submit(look, program, tool, name, paths[name], limit): (name, tool)
                for tool in tools
                for name in names
            }
            for future in as_completed(asked):
                name, tool = asked[future]
                verdict = verdicts[name, tool] = future.result()
                if not (verdict.clean and to.is_terminal):  # a log has no bar to watch
                    words = f"{name}, {tool}: {verdict.what}, {verdict.seconds:.1f} s"
                    to.print(words, markup=False, highlight=False, soft_wrap=True)
                if verdict.said:
                    to.print(shown(verdict.said), markup=False, highlight=False, soft_wrap=True)
                progress.advance(task)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(running):  # on Ctrl-C
                stop(process)
    return verdicts


def kernel_of(name: str) -> str:
    return CONTROL if name in CONTROLS else CASES[name].kernel


def report(verdicts: dict[tuple[str, str], Verdict], tools: Sequence[str]) -> Table:
    table = Table("case", "kernel", *tools)
    for name in NAMES:
        if (name, tools[0]) not in verdicts:
            continue
        cells = []
        for tool in tools:
            verdict = verdicts[name, tool]
            color = "green" if verdict.clean else "red"
            cells.append(f"[{color}]{verdict.what}[/] [dim]{verdict.seconds:.0f} s[/]")
        table.add_row(name, kernel_of(name), *cells)
    return table


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--cases", nargs="+", default=["*"], metavar="NAME",
                        help="* stands for anything; all, by default")  # fmt: skip
    parser.add_argument("--limit", type=float, default=120, metavar="S",
                        help="seconds that a tool may take over a case (%(default)s)")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=min(12, os.cpu_count() or 1), metavar="N",
                        help="processes at a time (%(default)s)")  # fmt: skip
    parser.add_argument("--list", action="store_true", help="the cases, and nothing else")
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    for pattern in options.cases:
        if not fnmatch.filter(NAMES, pattern):
            parser.error(f"--cases {pattern}: there is none of that name; --list shows them")
    return options


def main() -> int:
    options, console = arguments(), Console()
    if options.run:
        name, path = options.run
        run(name, Path(path))
        return 0
    names = [n for n in NAMES if any(fnmatch.fnmatchcase(n, p) for p in options.cases)]
    if options.list:
        for name in names:
            sys.stdout.write(f"{name:32} {kernel_of(name)}\n")
        return 0
    program = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=CUDA)
    if program is None:
        console.print(f"compute-sanitizer is neither on PATH nor in {CUDA}: it is CUDA toolkit's")
        return 2
    verdicts = looked_at(
        program, options.tools, names, options.limit, max(1, options.jobs), console
    )
    console.print(report(verdicts, options.tools))
    dirty = [of for of, verdict in verdicts.items() if not verdict.clean]
    console.print(f"{len(verdicts) - len(dirty)} of {len(verdicts)} clean")
    return 1 if dirty else 0


if __name__ == "__main__":
    sys.exit(main())
