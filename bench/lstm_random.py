"""What serving costs: lstm_random alone, then through the server over both protocols. Parity first,
then time.

    make bench          prints one table and writes bench/results/lstm_random.json

The load generator runs on the same cores as the server, as Python threads; its own cost is in every
figure.
"""

import argparse
import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from looprnn_client import Client
from machine import RESULTS, ROOT, machine, sentence
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from looprnn import engines, parity
from looprnn.build import build_variant, buildable
from looprnn.card import Cards
from looprnn.repository import built_versions
from looprnn.server import Server
from looprnn.variants import load_spec
from looprnn.weights import load_weights

B, T = 1, 32
WARMUP_S = 0.5


def load(ask: Sequence[Callable[[], object]], seconds: float) -> dict[str, float]:
    """Call each function in a thread of its own, again and again; latencies in ms, throughput in
    1/s.
    """
    latencies: list[list[float]] = [[] for _ in ask]
    end = time.perf_counter() + WARMUP_S + seconds

    def work(call: Callable[[], object], mine: list[float]) -> None:
        measured_from = end - seconds
        while (begin := time.perf_counter()) < end:
            call()
            if begin >= measured_from:
                mine.append((time.perf_counter() - begin) * 1e3)

    threads = [threading.Thread(target=work, args=p) for p in zip(ask, latencies, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    every = np.concatenate(latencies)
    p50, p99 = np.percentile(every, [50, 99])
    return {"p50_ms": p50, "p99_ms": p99, "throughput_rps": len(every) / seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=4.0, help="per row (default: %(default)s)")
    seconds = parser.parse_args().seconds
    console = Console()
    repository = ROOT / "model_repository"
    spec = load_spec(ROOT / "variants/lstm_random.toml")
    build_variant(spec, buildable()[0], repository, progress=lambda *_: None)
    inputs = {"input": parity.draw_inputs(spec, B, T)["input"], **spec.defaults(B, T)}
    weights = load_weights(spec)

    def prove(what: str, got: Mapping[str, NDArray[np.float32]]) -> None:
        worst = max(parity.differences(spec, weights, inputs, got).values())
        if not parity.agrees(worst):
            raise SystemExit(f"{what} is wrong by {worst:.2g}: a wrong answer is not timed")

    rows: list[dict[str, Any]] = []
    jobs = [(protocol, n) for protocol in ("grpc", "http") for n in (1, 8)]
    # A bar that draws itself in the background would be in every figure.
    bar = Progress(console=console, transient=True, auto_refresh=False)
    with bar, Server(repository) as server:
        task = bar.add_task("measuring", total=len(jobs) + 1)
        version = repository / spec.name / str(built_versions(repository / spec.name)[-1])
        cards = Cards.read(version)
        name = engines.choose(cards, "auto")
        with engines.get(name).session(version / cards.engines[name].file, spec) as session:
            prove(name, session.run(inputs))
            alone = load([lambda: session.run(inputs)], seconds)
        rows.append({"what": f"{name} alone", "concurrency": 1, **alone})
        bar.update(task, advance=1, refresh=True)
        for protocol, concurrency in jobs:
            url = f"{protocol}://{getattr(server, protocol)}"
            clients = [Client(url, model=spec.name, timeout_s=30) for _ in range(concurrency)]
            calls = [partial(client.infer, inputs["input"]) for client in clients]
            for call in calls:
                result = call()
                prove(protocol, {n: getattr(result, n) for n in spec.output_names})
            rows.append({"what": protocol, "concurrency": concurrency, **load(calls, seconds)})
            for client in clients:
                client.close()
            bar.update(task, advance=1, refresh=True)

    here = machine()
    table = Table(
        "lstm_random", "concurrency", "p50 ms", "p99 ms", "requests/s", "p50 over engine",
        title=f"B={B} T={T} I={spec.input_size} H={spec.layers[0].hidden_size}", box=SIMPLE_HEAD,
    )  # fmt: skip
    for row in rows:
        table.add_row(
            row["what"], str(row["concurrency"]), f"{row['p50_ms']:.2f}", f"{row['p99_ms']:.2f}",
            f"{row['throughput_rps']:.0f}", f"+{row['p50_ms'] - rows[0]['p50_ms']:.2f} ms",
        )  # fmt: skip
    console.print(table, sentence(here), sep="\n")
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "lstm_random.json").write_text(
        json.dumps({"machine": here, "rows": rows}, indent=2) + "\n"
    )


if __name__ == "__main__":
    main()
