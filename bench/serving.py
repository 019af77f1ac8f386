"""lstm_random served by looprnn, and by what a user would pick instead: the same ONNX file, the
same requests, the same machine, in one run. Parity first, then time.

    python bench/serving.py                                  all; about five minutes
    python bench/serving.py --systems looprnn plain --concurrency 8 --traffic equal --seconds 2

equal: B=1, T=32. ragged: B=1, T drawn from 8..64. Rounds alternate between the systems; a figure is
the median of its rounds. Every system's answers are compared with the NumPy reference before
anything is timed, and one answer of each load process after. All servers run all the time; those
not asked are idle. What is compared, and with which settings: bench/systems.py.
"""

import argparse
import importlib.util
import json
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from compare import Cell, Inputs
from load import Call, Requests, closed_loop
from machine import RESULTS, ROOT, machine, sentence
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from systems import CANDIDATES, SYSTEMS, Candidate, Setup, System
from wire import grpc_request

from looprnn.build import build_variant, buildable
from looprnn.variants import load_spec

TIMES = {"equal": (32, 32), "ragged": (8, 64)}
# What is asked of looprnn at concurrency 8, equal: so many times the rival's throughput.
TARGETS = {"pytriton": 4.5, "fastapi": 2.3, "plain": 1.4}
USEFUL_TARGET = 0.8  # of equal's useful steps a second, which ragged should reach
TRIALS, TRIAL_S = 3, 1.0


def fastest(
    candidates: Sequence[Candidate], setup: Setup, running: ExitStack, inputs: Inputs
) -> tuple[System, dict[str, float]]:
    """One system's candidates in turn, at concurrency 8. The fastest stays; settings → requests/s,
    the fastest first. A single one is not measured.
    """
    started: dict[str, tuple[System, ExitStack]] = {}
    for k, candidate in enumerate(candidates):
        folder = setup.scratch / f"{candidate.system}-{k}"
        folder.mkdir()
        own = running.enter_context(ExitStack())
        given = replace(setup, scratch=folder, threads=candidate.threads, workers=candidate.workers)
        started[candidate.settings] = own.enter_context(candidate.start(given)), own
    if len(started) == 1:
        ((settings, (system, _)),) = started.items()
        return system, {settings: 0.0}
    requests = {settings: inputs.requests(system) for settings, (system, _) in started.items()}
    rates: dict[str, list[float]] = {settings: [] for settings in started}
    for _ in range(TRIALS):
        for settings, load in requests.items():
            rates[settings].append(closed_loop(load, 8, TRIAL_S).rate)
    medians = {settings: round(statistics.median(found), 1) for settings, found in rates.items()}
    first, *others = sorted(medians, key=lambda settings: -medians[settings])
    for settings in others:
        started[settings][1].close()
    return started[first][0], {settings: medians[settings] for settings in (first, *others)}


def null_rate(address: str, seconds: float) -> dict[str, float]:
    """The generator against a call that runs no model: Triton's ServerLive, at concurrency 8."""
    request = grpc_request("/inference.GRPCInferenceService/ServerLive", b"")
    live = Call(index=0, request=request, size=2)
    measured = closed_loop(Requests(protocol="grpc", address=address, each=[live]), 8, seconds)
    return {
        "throughput_rps": round(measured.rate, 1),
        "cpu_us_per_request": round(measured.cpu_s / len(measured.latencies_ms) * 1e6, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--traffic", nargs="+", choices=TIMES, default=list(TIMES))
    parser.add_argument("--concurrency", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=2.0, help="per figure (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS / "serving.json")
    options = parser.parse_args()
    console = Console()
    spec = load_spec(ROOT / "variants/lstm_random.toml")
    inputs = {name: Inputs.draw(spec, TIMES[name]) for name in options.traffic}
    with ExitStack() as running:
        scratch = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="serving-")))
        repository = scratch / "repository"
        build_variant(spec, buildable(["onnxruntime"])[0], repository, progress=lambda *_: None)
        trial = inputs.get("equal") or Inputs.draw(spec, TIMES["equal"])
        setup = Setup(spec=spec, repository=repository, scratch=scratch)
        systems: list[System] = []
        tried: dict[str, dict[str, float]] = {}
        with console.status("") as status:
            for name in options.systems:
                status.update(f"starting {name}, and trying its settings")
                own = [c for c in CANDIDATES if c.system == name]
                system, tried[name] = fastest(own, setup, running, trial)
                systems.append(system)
        load = {(s.name, t): inputs[t].requests(s) for t in options.traffic for s in systems}
        cells = [
            Cell(system=s, traffic=t, concurrency=n)
            for t in options.traffic
            for n in options.concurrency
            for s in systems
        ]
        # A bar that draws itself in the background would be in every figure.
        with Progress(console=console, transient=True, auto_refresh=False) as bar:
            task = bar.add_task("measuring", total=options.rounds * len(cells))
            for _ in range(options.rounds):
                for cell in cells:
                    requests = load[cell.system.name, cell.traffic]
                    measured = closed_loop(requests, cell.concurrency, options.seconds)
                    cell.add(measured, inputs[cell.traffic])
                    bar.update(task, advance=1, refresh=True)
        on_triton = [s for s in systems if s.protocol == "grpc"]
        null = null_rate(on_triton[0].address, options.seconds) if on_triton else {}
    here = machine("nvidia-pytriton", "onnxruntime", "numpy")
    rows = [cell.row() for cell in cells]
    verdicts = list(judge(cells))
    show(console, cells, tried, here)
    console.print(*verdicts, sep="\n", soft_wrap=True)
    if null:
        console.print(
            f"the generator alone: {null['throughput_rps']:.0f} calls/s at 8, "
            f"{null['cpu_us_per_request']:.0f} µs of CPU each",
            soft_wrap=True,
        )
    result = {
        "machine": here,
        "rows": rows,
        "tried_at_8": tried,
        "verdicts": verdicts,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "generator": {
            "null": null,
            "cpu_us_per_request": {
                f"{c.system.name} {c.traffic} {c.concurrency}": round(
                    statistics.median(c.generator_us), 1
                )
                for c in cells
            },
        },
    }
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")
    if importlib.util.find_spec("matplotlib") is None:
        console.print("no plot: pip install 'looprnn[bench]'")
        return
    from serving_plot import draw

    for kind in ("svg", "png"):
        draw(rows, sentence(here)).savefig(options.output.with_suffix(f".{kind}"), dpi=150)


def judge(cells: Sequence[Cell]) -> list[str]:
    """The ratios beside what was asked for, a sentence each."""
    found = {(c.system.name, c.traffic, c.concurrency): c for c in cells}
    said = []
    ours = found.get(("looprnn", "equal", 8))
    for name, target in TARGETS.items():
        its = found.get((name, "equal", 8))
        if ours and its:
            a, b = ours.row(), its.row()
            ratio = a["throughput_rps"] / b["throughput_rps"]
            lower = "lower" if a["p99_ms"] < b["p99_ms"] else "not lower"
            said.append(
                f"at 8, looprnn does {ratio:.2f} times {name}'s requests (target {target}); its "
                f"p99 is {lower}, {a['p99_ms']:.1f} to {b['p99_ms']:.1f} ms"
            )
    for (name, traffic, n), cell in found.items():
        if name == "looprnn" and traffic == "ragged" and (name, "equal", n) in found:
            equal = statistics.median(found[name, "equal", n].steps)
            said.append(
                f"at {n}, looprnn does {statistics.median(cell.steps) / equal:.2f} of the useful "
                f"steps a second on ragged traffic that it does on equal (target {USEFUL_TARGET})"
            )
    return said


def show(
    console: Console,
    cells: Sequence[Cell],
    tried: dict[str, dict[str, float]],
    here: dict[str, Any],
) -> None:
    """The table; below it which settings each system has, and those that were slower."""

    table = Table(
        *("traffic", "at", "system", "req/s", "p50 ms", "p99 ms", "looprnn ÷ it", "load µs"),
        title="lstm_random: LSTM 64→256, B=1",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    ours = {(c.traffic, c.concurrency): c.row() for c in cells if c.system.name == "looprnn"}
    before = None
    for cell in cells:
        row, key = cell.row(), (cell.traffic, cell.concurrency)
        if before not in (None, key):
            table.add_section()
        ratio = f"{ours[key]['throughput_rps'] / row['throughput_rps']:.2f}" if key in ours else ""
        table.add_row(
            *(("", "") if before == key else (cell.traffic, str(cell.concurrency))),
            cell.system.name,
            f"{row['throughput_rps']:.0f}",
            f"{row['p50_ms']:.2f}",
            f"{row['p99_ms']:.2f}",
            ratio,
            f"{statistics.median(cell.generator_us):.0f}",
        )
        before = key
    console.print(table, sentence(here), sep="\n")
    for name, rates in tried.items():
        first, *others = rates
        slower = "".join(f"; {rates[s]:.0f} with {s}" for s in others)
        line = f"{first}, tried at 8: {rates[first]:.0f}/s{slower}" if others else first
        console.print(f"{name}: {line}", soft_wrap=True)


if __name__ == "__main__":
    main()
