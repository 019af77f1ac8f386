"""lstm_random served by looprnn, and by what a user would pick instead: the same ONNX file, the
same requests, the same machine, in one run. Parity first, then time.

    python bench/serving.py                                  all; about four minutes
    python bench/serving.py --systems looprnn plain --concurrency 8 --traffic equal --seconds 2

equal: B=1, T=32. ragged: B=1, T drawn from 8..64. Rounds alternate between the systems; a figure is
the median of its rounds. Every system's answers are compared with the NumPy reference before
anything is timed, and one answer of each load process after. All servers run all the time; those
not asked are idle. What is compared, and its settings: bench/systems.py.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from load import Call, Measured, Requests, closed_loop
from machine import RESULTS, ROOT, machine, sentence
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from systems import SYSTEMS, System
from wire import ask, grpc_request

from looprnn import parity, reference
from looprnn.build import build_variant, buildable
from looprnn.spec import RNNSpec
from looprnn.variants import load_spec
from looprnn.weights import load_weights

TIMES = {"equal": (32, 32), "ragged": (8, 64)}
# What the issue asks of looprnn at concurrency 8: times the rival's throughput.
TARGETS = {"pytriton": 4.5, "fastapi": 2.3, "plain": 1.4}
USEFUL_TARGET = 0.8
Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """xs: inputs [1, T, I]; want: the reference's outputs of each."""

    xs: list[Array]
    want: list[dict[str, NDArray[np.float64]]]

    @classmethod
    def draw(cls, spec: RNNSpec, times: tuple[int, int], count: int = 64) -> "Inputs":
        rng = np.random.default_rng(4)
        xs = [
            rng.standard_normal((1, t, spec.input_size)).astype(np.float32)
            for t in rng.integers(times[0], times[1], count, endpoint=True)
        ]
        weights = load_weights(spec)
        want = [
            reference.run(spec, weights, spec.defaults(*x.shape[:2]) | {"input": x}) for x in xs
        ]
        return cls(xs=xs, want=want)

    def prove(self, system: System, index: int, answer: bytes) -> None:
        """Raises SystemExit where the answer is not the reference's: it is not timed."""
        got = system.read(answer)
        for name, want in self.want[index].items():
            worst = parity.difference(got[name], want)
            if not parity.agrees(worst):
                raise SystemExit(f"{system.name}: {name} is wrong by {worst:.2g}; it is not timed")


def prepare(system: System, inputs: Inputs) -> Requests:
    """The framed requests, once each of their answers is proved."""
    framed = [system.frame(x) for x in inputs.xs]
    each = []
    for index, answer in enumerate(ask(system.protocol, system.address, framed)):
        inputs.prove(system, index, answer)
        each.append(Call(index=index, request=framed[index], size=len(answer)))
    return Requests(protocol=system.protocol, address=system.address, each=each)


@dataclass(slots=True, kw_only=True)
class Cell:
    """One system under one load, over the rounds."""

    system: System
    traffic: str
    concurrency: int
    rates: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    generator_us: list[float] = field(default_factory=list)

    def add(self, measured: Measured, inputs: Inputs) -> None:
        for index, answer in measured.last:
            inputs.prove(self.system, index, answer)
        p50, p99 = np.percentile(measured.latencies_ms, [50, 99])
        times = np.array([x.shape[1] for x in inputs.xs])
        self.rates.append(measured.rate)
        self.p50.append(float(p50))
        self.p99.append(float(p99))
        self.steps.append(float(times[measured.which].sum()) / measured.seconds)
        self.generator_us.append(measured.cpu_s / len(measured.latencies_ms) * 1e6)

    def row(self) -> dict[str, Any]:
        return {
            "system": self.system.name,
            "traffic": self.traffic,
            "concurrency": self.concurrency,
            "throughput_rps": round(statistics.median(self.rates), 1),
            "p50_ms": round(statistics.median(self.p50), 3),
            "p99_ms": round(statistics.median(self.p99), 3),
        }


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
        systems = [
            running.enter_context(SYSTEMS[name](spec, repository, scratch))
            for name in options.systems
        ]
        traffic = {(s.name, t): prepare(s, inputs[t]) for t in options.traffic for s in systems}
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
                    load = traffic[cell.system.name, cell.traffic]
                    measured = closed_loop(load, cell.concurrency, options.seconds)
                    cell.add(measured, inputs[cell.traffic])
                    bar.update(task, advance=1, refresh=True)
        on_triton = [s for s in systems if s.protocol == "grpc"]
        null = null_rate(on_triton[0].address, options.seconds) if on_triton else {}
    here = machine("nvidia-pytriton", "onnxruntime", "fastapi", "uvicorn")
    show(console, cells, null, here)
    result = {
        "machine": here,
        "rows": [cell.row() for cell in cells],
        "rounds": options.rounds,
        "seconds": options.seconds,
        "generator": {"null": null},
    }
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")


def show(
    console: Console, cells: Sequence[Cell], null: dict[str, float], here: dict[str, Any]
) -> None:
    """The table, and below it the ratios beside the issue's targets."""
    rates = {(c.system.name, c.traffic, c.concurrency): statistics.median(c.rates) for c in cells}
    table = Table(
        "traffic", "concurrency", "system", "requests/s", "p50 ms", "p99 ms", "looprnn ÷ it",
        "generator µs", title="lstm_random: LSTM 64→256, B=1", box=SIMPLE_HEAD,
    )  # fmt: skip
    before = None
    for cell in cells:
        row = cell.row()
        key = (cell.traffic, cell.concurrency)
        if before not in (None, key):
            table.add_section()
        ours = rates.get(("looprnn", *key))
        table.add_row(
            *(("", "") if before == key else (cell.traffic, str(cell.concurrency))),
            cell.system.name, f"{row['throughput_rps']:.0f}", f"{row['p50_ms']:.2f}",
            f"{row['p99_ms']:.2f}", f"{ours / row['throughput_rps']:.2f}" if ours else "",
            f"{statistics.median(cell.generator_us):.0f}",
        )  # fmt: skip
        before = key
    console.print(table, sentence(here), sep="\n")
    for name, target in TARGETS.items():
        ours, its = rates.get(("looprnn", "equal", 8)), rates.get((name, "equal", 8))
        if ours and its:
            console.print(f"at 8: {ours / its:.2f} times {name}; the target is {target}")
    steps = {(c.traffic, c.concurrency): c for c in cells if c.system.name == "looprnn"}
    for (name, n), cell in steps.items():
        if name == "ragged" and ("equal", n) in steps:
            ratio = statistics.median(cell.steps) / statistics.median(steps["equal", n].steps)
            console.print(
                f"at {n}: ragged does {ratio:.2f} of equal's useful steps a second; "
                f"the target is {USEFUL_TARGET}"
            )
    if null:
        console.print(
            f"the generator alone: {null['throughput_rps']:.0f} calls/s at 8, "
            f"{null['cpu_us_per_request']:.0f} µs of CPU each"
        )


if __name__ == "__main__":
    main()
