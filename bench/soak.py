"""Ten minutes of mixed traffic to an embedded server, with its memory sampled every second.

    python bench/soak.py --minutes 10        writes bench/results/soak.json, .svg and .png

Whole sequences of many sizes over gRPC and HTTP, streams of which one in five is left without END,
connections that come and go, bad requests, rubbish, calls that are given up. Every answer is
checked. Sampled: private memory (RssAnon) of tritonserver and of each engine process, and what they
map of /dev/shm.

Flat: the median of the last fifth is at most 2 % or 4 MB, whichever is more, above the median of
the second fifth. The first fifth is left out: buffers grow to the largest batch, and streams that
were left begin to expire after two idle times (60 s here).
"""

import argparse
import importlib.util
import json
import multiprocessing
import statistics
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import soak_traffic
from machine import RESULTS, ROOT, machine, sentence
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from looprnn.build import build_variant, buildable
from looprnn.server import Server
from looprnn.stream import Stream
from looprnn.variants import dump_spec, load_spec

MB = 1e6
SHARE, SLACK_MB = 0.02, 4.0
IDLE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """MB at one moment; engines: the engine processes together."""

    second: float
    server: float
    engines: float
    shared: float


def sample(pid: int, second: float) -> Sample:
    """Of the server's process and those below it."""
    below = children(pid)
    return Sample(
        second=round(second, 1),
        server=round(private(pid), 2),
        engines=round(sum(map(private, below)), 2),
        shared=round(sum(map(size, segments([pid, *below]))), 2),
    )


def children(pid: int) -> list[int]:
    """Each thread of a process has its own."""
    found: set[int] = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has ended
            found |= set(map(int, (task / "children").read_text().split()))
    return sorted(found)


def private(pid: int) -> float:
    """RssAnon in MB."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("RssAnon:"))
    return int(line.split()[1]) * 1024 / MB


def segments(pids: list[int]) -> set[Path]:
    """The files of /dev/shm that they map."""
    lines = [x for pid in pids for x in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    names = {line.partition("/dev/shm/")[2].removesuffix(" (deleted)") for line in lines}
    return {Path("/dev/shm", name) for name in names if name}


def size(path: Path) -> float:
    """What it takes of the memory, in MB."""
    try:
        return path.stat().st_blocks * 512 / MB
    except FileNotFoundError:
        return 0.0


def verdict(samples: list[Sample], name: str) -> dict[str, Any]:
    """The medians of the second and the last fifth, what may lie between them, and whether."""
    fifth = max(1, len(samples) // 5)
    before = statistics.median(getattr(s, name) for s in samples[fifth : 2 * fifth] or samples)
    after = statistics.median(getattr(s, name) for s in samples[-fifth:])
    allowed = max(SHARE * before, SLACK_MB)
    return {
        "before_mb": round(before, 2),
        "after_mb": round(after, 2),
        "allowed_mb": round(allowed, 2),
        "flat": after - before <= allowed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="(%(default)s)")
    parser.add_argument("--output", type=Path, default=RESULTS / "soak.json")
    options = parser.parse_args()
    console = Console()
    samples, turns, failures, left = soak(options.minutes * 60, console)
    found = {name: verdict(samples, name) for name in ("server", "engines", "shared")}
    here = machine("nvidia-pytriton", "onnxruntime", "tritonclient")
    show(console, found, turns, here)
    console.print(*failures, *(f"left in shared memory: {path}" for path in left), sep="\n")
    good = not failures and not left and all(one["flat"] for one in found.values())
    console.print("flat" if good else "NOT WELL")
    result = {
        "machine": here,
        "minutes": options.minutes,
        "flat": good,
        "verdicts": found,
        "turns": turns,
        "failures": failures,
        "left": left,
        "samples": [asdict(s) for s in samples],
    }
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    if importlib.util.find_spec("matplotlib") is None:
        console.print("no plot: pip install 'looprnn[bench]'")
    else:
        from soak_plot import draw

        for kind in ("svg", "png"):
            figure = draw(result["samples"], found, sentence(here))
            figure.savefig(options.output.with_suffix(f".{kind}"), dpi=150)
    raise SystemExit(0 if good else 1)


def soak(
    seconds: float, console: Console
) -> tuple[list[Sample], dict[str, int], list[str], list[str]]:
    """Samples, turns by habit, what failed, and what the server left in /dev/shm."""
    context = multiprocessing.get_context("spawn")
    stop, report = context.Event(), context.Queue()
    samples: list[Sample] = []
    mapped: set[Path] = set()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        spec = replace(load_spec(ROOT / "variants/lstm_random.toml"), stream=Stream(idle_s=IDLE_S))
        variant = Path(folder, f"{spec.name}.toml")
        variant.write_text(dump_spec(spec))
        repository = Path(folder, "repository")
        build_variant(spec, buildable(["onnxruntime"])[0], repository, progress=lambda *_: None)
        columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn()
        with Server(repository) as server, Progress(*columns, console=console) as bar:
            pid = server.process.pid
            where = soak_traffic.Where(grpc=server.grpc, http=server.http, variant=str(variant))
            traffic = context.Process(target=soak_traffic.run, args=(where, stop, report))
            traffic.start()
            task = bar.add_task("", total=seconds)
            began = time.monotonic()
            while (now := time.monotonic() - began) < seconds and report.empty():
                if (status := server.process.poll()) is not None:
                    end = server.log.read_text(encoding="utf-8", errors="replace")[-3000:]
                    raise SystemExit(f"{end}\ntritonserver ended with status {status}")
                samples.append(sample(pid, now))
                mapped |= segments([pid, *children(pid)])
                s = samples[-1]
                words = f"MB: server {s.server:.0f}, engines {s.engines:.0f}, shared {s.shared:.0f}"
                bar.update(task, completed=now, description=words)
                time.sleep(1.0)
            stop.set()
            turns, failures = report.get(timeout=120)
            traffic.join()
        left = sorted(str(path) for path in mapped if path.exists())
    return samples, turns, failures, left


def show(
    console: Console, found: dict[str, Any], turns: dict[str, int], here: dict[str, Any]
) -> None:
    table = Table(
        *("MB", "second fifth", "last fifth", "more allowed", "flat"),
        title="memory under mixed traffic, medians",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for name, one in found.items():
        table.add_row(
            name,
            *(f"{one[key]:.1f}" for key in ("before_mb", "after_mb", "allowed_mb")),
            "yes" if one["flat"] else "[red]no[/]",
        )
    console.print(table, sentence(here), sep="\n")
    console.print(", ".join(f"{n} {name.replace('_', ' ')}" for name, n in turns.items()))


if __name__ == "__main__":
    main()
