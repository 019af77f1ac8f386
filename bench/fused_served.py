"""An LSTM of 512 in fp16, B = 1, T = 128, served by Triton with the fused engine: parity over gRPC,
then perf_analyzer's p50 at concurrency 1 beside the engine's own time. Needs a GPU.

    python bench/fused_served.py                 also writes bench/results/fused_served.json

engine, kernels    the kernels as one CUDA graph, by CUDA events
engine, graph      copy in, kernels and copy out as one, by CUDA events
engine, session    FusedSession.run: the graph, and the copies to and from NumPy's memory
client, …          looprnn_client over gRPC, in this process: arrays by wire, or in memory that both
                   share, the host's (system) or the GPU's (cuda)
stream             a chunk of 10 steps to the same layer's stream model, by wire
perf_analyzer      the same, by Triton's own load generator (pip install perf-analyzer; glibc 2.38)
"""

import argparse
import csv
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from looprnn_client import Client, StreamState
from machine import RESULTS, machine, sentence
from rich.console import Console
from rich.table import Table

from looprnn import cuda, parity
from looprnn.build import build_variant, buildable
from looprnn.engines.fused_session import FusedSession
from looprnn.server import Server
from looprnn.spec import Layer, Profile, Range, RNNSpec, WeightSource
from looprnn.weights import load_weights

HIDDEN, STEPS, CHUNK, ROUNDS = 512, 128, 10, 300
SPEC = RNNSpec(
    name="lstm_fp16",
    input_size=HIDDEN,
    layers=(Layer(cell="lstm", hidden_size=HIDDEN),),
    precision="fp16",
    profile=Profile(batch=Range(1, 1, 1), time=Range(STEPS, STEPS, STEPS)),
    weights=WeightSource(seed=1),
)
LIVE = replace(
    SPEC,
    name="live_fp16",
    lengths=True,
    streaming=True,
    profile=Profile(batch=Range(1, 1, 32), time=Range(1, CHUNK, STEPS)),
)
INPUTS = parity.draw_inputs(SPEC, 1, STEPS)


def median_us(ask: Callable[[], Any]) -> float:
    """Of ROUNDS calls, after a tenth as many that are not counted."""
    for _ in range(ROUNDS // 10):
        ask()
    found = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        ask()
        found.append((time.perf_counter() - begin) * 1e6)
    return statistics.median(found)


def graph_us(session: FusedSession, *, copies: bool) -> float:
    """The graph alone."""
    graph, found = session.graph(1, STEPS, SPEC.output_names, copies=copies), []
    with cuda.Event() as begin, cuda.Event() as end:
        for _ in range(ROUNDS):
            begin.record(session.stream)
            graph.launch()
            end.record(session.stream)
            found.append(end.microseconds_since(begin))
    return statistics.median(found)


def agree(answer: dict[str, Any], spec: RNNSpec = SPEC) -> float:
    """The largest difference from the reference; AssertionError if it is over the tolerance."""
    inputs = spec.defaults(1, STEPS) | INPUTS
    found = max(parity.differences(spec, load_weights(spec), inputs, answer).values())
    assert parity.agrees(found, spec.precision), found
    return found


def asked(client: Client) -> Any:
    return client.infer(INPUTS["input"], INPUTS["h_0"], INPUTS["c_0"])


def streamed(address: str) -> tuple[float, float]:
    """The median µs of a chunk, and the largest difference of the whole sequence."""
    chunks = np.split(INPUTS["input"], range(CHUNK, STEPS, CHUNK), axis=1)
    model = LIVE.models[1]
    with Client(f"grpc://{address}", model=model, timeout_s=30) as client:
        began = StreamState(model=model, steps=0, h_n=INPUTS["h_0"], c_n=INPUTS["c_0"])
        with client.resume(began) as stream:
            found = [np.asarray(stream.send(chunk).output) for chunk in chunks]
            last = stream.state()
        answer = {"output": np.concatenate(found, axis=1), "h_n": last.h_n, "c_n": last.c_n}
        worst = agree(answer, LIVE)
        again = cycle(chunks[:-1])
        with client.stream() as stream:
            return median_us(lambda: stream.send(next(again))), worst


def analyzed(address: str, folder: Path) -> float | str:
    """perf_analyzer's p50 in µs, or why there is none."""
    program = shutil.which("perf_analyzer")
    if program is None:
        return "perf_analyzer is not installed"
    data, report = folder / "data.json", folder / "report.csv"
    tensors = {n: {"content": a.ravel().tolist(), "shape": list(a.shape[1:])}
               for n, a in INPUTS.items()}  # fmt: skip
    data.write_text(json.dumps({"data": [tensors]}))
    command = [program, "-m", SPEC.name, "-u", address, "-i", "grpc", "-b", "1", "--input-data",
               data, "--concurrency-range", "1", "--measurement-interval", "4000", "-f",
               report]  # fmt: skip
    answer = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=240)
    if answer.returncode or not report.is_file():
        return " ".join((answer.stdout + answer.stderr).split())[-600:]
    (row,) = csv.DictReader(report.open())
    return float(row["p50 latency"])


def main() -> int:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    console = Console()
    wanted, _ = buildable(["fused"])
    rows: list[dict[str, Any]] = []

    def add(what: str, p50: float | str, difference: float | None = None) -> None:
        rows.append({"what": what, "p50_us": p50, "difference": difference})

    with TemporaryDirectory() as name, console.status("building, serving, measuring"):
        folder, repository = Path(name), Path(name) / "models"
        repository.mkdir()
        cards = []
        for spec in (LIVE, SPEC):
            for outcome in build_variant(spec, wanted, repository, progress=lambda *_: None):
                assert outcome.card is not None, outcome.message
                cards.append(outcome.card)
        card = cards[-1]
        path = repository / SPEC.name / "1" / card.file
        with FusedSession(path, SPEC) as session:
            worst = agree(session.run(INPUTS))
            add("engine, kernels", graph_us(session, copies=False), worst)
            add("engine, graph", graph_us(session, copies=True), worst)
            add("engine, session", median_us(lambda: session.run(INPUTS)), worst)
        with Server(repository, client_shared_memory=True) as server:
            url = f"grpc://{server.grpc}"
            for memory in ("wire", "system", "cuda"):
                with Client(url, model=SPEC.name, timeout_s=30, memory=memory) as client:
                    answer = asked(client)
                    got = {n: getattr(answer, n) for n in SPEC.output_names}
                    add(f"client, {memory}", median_us(partial(asked, client)), agree(got))
            add("stream, wire", *streamed(server.grpc))
            add("perf_analyzer, gRPC", analyzed(server.grpc, folder))
    here = {"gpu": str(cuda.gpu()), **machine("cuda-bindings", "numpy")}
    table = Table("LSTM 512, fp16, B = 1, T = 128", "p50 µs", "µs a step", "difference")
    for row in rows:
        p50, worst_of = row["p50_us"], row["difference"]
        steps = CHUNK if row["what"].startswith("stream") else STEPS
        figures = [f"{p50:.0f}", f"{p50 / steps:.2f}"] if isinstance(p50, float) else [p50, ""]
        table.add_row(row["what"], *figures, f"{worst_of:.1e}" if worst_of else "")
    console.print(table)
    console.print(f"{here['gpu']}; {sentence(here)}; made of: {card.made_of}")
    content = json.dumps({"machine": here, "made_of": card.made_of, "rows": rows}, indent=2)
    (RESULTS / "fused_served.json").write_text(content + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
