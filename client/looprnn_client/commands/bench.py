"""Put a model under load: closed loop, or Poisson arrivals with latencies from the moment each
request was due; sequences of one length or of varying ones. Several levels run one after another.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from looprnn_client.commands import files, live, server, whole
from looprnn_client.commands.draw import draw
from looprnn_client.commands.load import Level, Load, Report
from looprnn_client.errors import BadInput
from looprnn_client.signature import Signature
from looprnn_client.transport import Tensor

POOL = 64  # different inputs, drawn before anything is timed
IN_FLIGHT = 64  # of an open loop, unless --concurrency says otherwise
STEPS = 32
LAST_S = 2.0  # what the live row shows
COLUMNS = ("load", "req/s", "steps/s", "p50 ms", "p90 ms", "p99 ms", "max ms", "failed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    def add(name: str, kind: Callable[[str], Any], text: str, **more: Any) -> None:
        parser.add_argument(f"--{name}", type=kind, help=text, **more)

    parser.add_argument("--model", required=True)
    add("concurrency", whole, "requests in flight; several: one level each (1). With --rate, the "
        "most in flight (64)", nargs="+", metavar="N")  # fmt: skip
    add("rate", _positive, "open loop: arrivals a second, Poisson; several: one level each",
        nargs="+", metavar="R")  # fmt: skip
    add("time", _range, f"steps of a sequence: 32, or 8:64 for any of these ({STEPS}, or what "
        "the model takes at most)", metavar="T")  # fmt: skip
    add("batch", whole, "rows of a request (1)", default=1, metavar="B")
    add("seconds", _positive, "measured of each level (10)", default=10.0, metavar="S")
    add("warmup", _seconds, "before that, not counted (1)", default=1.0, metavar="S")
    add(
        "memory",
        str,
        "how arrays travel: wire, system (shared memory), cuda (wire)",
        default="wire",
    )
    add("seed", whole, "of the inputs and arrivals (1)", default=1, metavar="N")
    add("output", Path, "write NAME.json, and NAME-latency and NAME-throughput as .svg and .png",
        metavar="NAME")  # fmt: skip


def run(arguments: argparse.Namespace) -> Iterator[str]:
    """Runs the levels, under a live table where there is a terminal; then what was written.

    Ctrl-C ends the level, and what was measured until then is the result.
    """
    target: Path | None = arguments.output
    if target is not None:
        files.check_target(target, suffix="")  # it begins three names
        from looprnn_client.commands import plots  # what it lacks is said now, not after the load
    asked = levels(arguments.concurrency, arguments.rate)
    title = f"{arguments.model} at {arguments.url}"
    reports: list[Report] = []
    with ExitStack() as opened:
        client = opened.enter_context(
            server.client(arguments, arguments.model, memory=arguments.memory)
        )
        most = min(STEPS, client.signature.time_max or STEPS)
        times = arguments.time or (most, most)
        pool = inputs(client.signature, arguments.batch, times, arguments.seed)
        for x in (min(pool, key=np.size), max(pool, key=np.size)):
            client.infer(x)  # what does not fit says so now

        def ask(index: int) -> int:
            x = pool[index % POOL]
            client.infer(x)
            return int(x.shape[0] * x.shape[1])

        board = opened.enter_context(live.board()) if live.on_terminal() else None
        for level in asked:
            load = Load(
                level,
                ask,
                seconds=arguments.seconds,
                warmup_s=arguments.warmup,
                seed=arguments.seed,
            )

            def tick(load: Load = load) -> None:
                if board is not None:
                    now = [*reports, load.report(LAST_S)]
                    left = max(0.0, load.end - load.elapsed)
                    board.show(title, COLUMNS, cells(now), f"{left:.0f} s left of {load.level}")

            reports.append(load.run(tick))
            if load.interrupted:
                break
        if board is not None:
            board.show(title, COLUMNS, cells(reports))
        engine = client.signature.engine
    if board is None:
        yield from lines(reports)
    yield from remarks(reports)
    if target is not None:
        what = {
            "model": arguments.model,
            "url": arguments.url,
            "engine": engine,
            "batch": arguments.batch,
            "time": list(times),
            "warmup_s": arguments.warmup,
            "levels": [report.row() for report in reports],
        }
        path = target.with_name(f"{target.name}.json")
        path.write_text(json.dumps(what, indent=2) + "\n", encoding="utf-8")
        yield f"wrote {path}"
        for path in plots.write(reports, title, target):
            yield f"wrote {path}"


def levels(concurrency: Sequence[int] | None, rate: Sequence[float] | None) -> list[Level]:
    """One level for each rate, or for each concurrency. Raises BadInput for several of both."""
    if not rate:
        return [Level(concurrency=n) for n in concurrency or [1]]
    if concurrency and len(concurrency) > 1:
        raise BadInput("--rate with several --concurrency: give one, the most in flight")
    (most,) = concurrency or [IN_FLIGHT]
    return [Level(concurrency=most, rate=r) for r in rate]


def inputs(signature: Signature, batch: int, times: tuple[int, int], seed: int) -> list[Tensor]:
    """POOL of them, of `batch` rows, each of a length between `times`."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(times[0], times[1], POOL, endpoint=True)
    return [draw(signature, batch, int(t), rng) for t in lengths]


def cells(reports: Sequence[Report]) -> list[list[str]]:
    """The rows of the table, in the order of COLUMNS."""
    return [
        [
            str(r.level),
            f"{r.throughput_rps:.0f}",
            f"{r.steps_per_s:.0f}",
            *(
                f"{r.latency_ms[p]:.2f}" if r.latency_ms else "-"
                for p in ("p50", "p90", "p99", "max")
            ),
            str(r.failed),
        ]
        for r in reports
    ]


def lines(reports: Sequence[Report]) -> Iterator[str]:
    """The same for a file or a pipe."""
    rows = [COLUMNS, *cells(reports)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(COLUMNS))]
    for row in rows:
        first, *rest = map(str.rjust, row, widths)
        yield "  ".join([row[0].ljust(len(first)), *rest])


def remarks(reports: Sequence[Report]) -> Iterator[str]:
    """What a reader of the numbers must know."""
    for r in reports:
        if r.unsent:
            yield (
                f"{r.level}: {r.unsent} arrivals could not be sent, because {r.level.concurrency} "
                "were in flight all the time; the latencies are of the others"
            )
        for words, count in sorted(r.failures.items(), key=lambda pair: -pair[1])[:3]:
            yield f"{r.level}: {count} times {words}"


def _seconds(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text}: wanted seconds")
    return value


def _positive(text: str) -> float:
    value = _seconds(text)
    if value == 0:
        raise argparse.ArgumentTypeError(f"{text}: wanted more than 0")
    return value


def _range(text: str) -> tuple[int, int]:
    first, _, last = text.partition(":")
    low, high = whole(first), whole(last or first)
    if low > high:
        raise argparse.ArgumentTypeError(f"{text}: wanted the smaller first, {high}:{low}")
    return low, high
