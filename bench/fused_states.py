"""Chunks of 10 steps of 1 and of 32 live streams, run by the fused engine from their states to
their next: with the states in host memory and on the GPU. Needs a GPU; parity first.

    python bench/fused_states.py                 also writes bench/results/fused_states.json

A run is what the stream model asks of the engine: arrays in, `output` back, the states kept. Both
tables are around one session and take turns, ROUNDS runs at a time.
"""

import argparse
import json
import statistics
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from machine import RESULTS, machine, sentence
from rich.console import Console
from rich.table import Table

from looprnn import cuda, parity
from looprnn.engines import States, get
from looprnn.engines.fused_session import FusedSession
from looprnn.spec import Layer, Profile, Range, RNNSpec, WeightSource
from looprnn.states import HostStates
from looprnn.weights import load_weights

STEPS, CHUNKS, CAPACITY, ROUNDS, TURNS = 10, 6, 1024, 200, 5
STREAMS = (1, 32)
PLACES = ("host", "gpu")


def model(layers: int, inputs: int, hidden: int, precision: Any) -> RNNSpec:
    return RNNSpec(
        name=f"lstm_{layers}x{hidden}_{precision}",
        input_size=inputs,
        layers=(Layer(cell="lstm", hidden_size=hidden),) * layers,
        lengths=True,
        streaming=True,
        precision=precision,
        profile=Profile(batch=Range(1, 1, max(STREAMS)), time=Range(1, STEPS, STEPS * CHUNKS)),
        weights=WeightSource(seed=1),
    )


SPECS = [model(1, 64, 256, "fp32"), model(1, 64, 256, "fp16"), model(1, 512, 512, "fp16"),
         model(4, 512, 512, "fp16")]  # fmt: skip


def stream(spec: RNNSpec, states: States, x: Any) -> Any:
    """output of whole sequences, chunk by chunk, each row a stream in a slot of its own."""
    slots = [(7 * k) % CAPACITY for k in range(len(x))]
    begin, found = [CAPACITY] * len(x), []
    for chunk in np.split(x, CHUNKS, axis=1):
        inputs = {"input": np.ascontiguousarray(chunk), "lengths": np.full(len(x), STEPS, np.int32)}
        found.append(states.run(inputs, ("output",), begin, slots)["output"])
        begin = slots
    return np.concatenate(found, axis=1)


def prove(spec: RNNSpec, session: FusedSession, tables: dict[str, States], rows: int) -> float:
    """Both tables give the same bits, and they are right; the largest difference."""
    inputs = parity.draw_inputs(spec, rows, STEPS * CHUNKS) | spec.defaults(rows, STEPS * CHUNKS)
    answers = [stream(spec, tables[place], inputs["input"]) for place in PLACES]
    assert np.array_equal(*answers), "the two tables differ"
    got = {**session.run(inputs), "output": answers[0]}
    worst = max(parity.differences(spec, load_weights(spec), inputs, got).values())
    assert parity.agrees(worst, spec.precision), worst
    return worst


def timed(spec: RNNSpec, tables: dict[str, States], rows: int) -> dict[str, float]:
    """Place → the median µs of a run."""
    x = parity.draw_inputs(spec, rows, STEPS)["input"]
    inputs = {"input": x, "lengths": np.full(rows, STEPS, np.int32)}
    slots = [(7 * k) % CAPACITY for k in range(rows)]
    found: dict[str, list[float]] = {place: [] for place in PLACES}
    for _ in range(TURNS):
        for place in PLACES:
            run = tables[place].run
            for k in range(ROUNDS):
                begin = time.perf_counter()
                run(inputs, ("output",), slots, slots)
                if k >= ROUNDS // 10:
                    found[place].append((time.perf_counter() - begin) * 1e6)
    return {place: statistics.median(us) for place, us in found.items()}


def main() -> int:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    console = Console()
    found: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder, console.status("building, measuring"):
        for spec in SPECS:
            path = Path(folder) / spec.name
            get("fused").build(
                spec, load_weights(spec), path, progress=lambda *_: None, workspace=0
            )
            with ExitStack() as opened:
                session = opened.enter_context(FusedSession(path, spec))
                tables: dict[str, States] = {
                    "host": HostStates(session, spec, CAPACITY),
                    "gpu": opened.enter_context(session.states(CAPACITY)),
                }
                for rows in STREAMS:
                    worst = prove(spec, session, tables, rows)
                    us = timed(spec, tables, rows)
                    found.append({"model": spec.name, "streams": rows, "difference": worst} | us)
    here = {"gpu": str(cuda.gpu()), **machine("cuda-bindings", "numpy")}
    table = Table(f"T = {STEPS}", "streams", "host µs", "GPU µs", "host ÷ GPU", "difference")
    for row in found:
        table.add_row(
            row["model"], str(row["streams"]), f"{row['host']:.1f}", f"{row['gpu']:.1f}",
            f"{row['host'] / row['gpu']:.2f}", f"{row['difference']:.1e}",
        )  # fmt: skip
    console.print(table, f"{here['gpu']}; {sentence(here)}", sep="\n")
    content = json.dumps({"machine": here, "steps": STEPS, "rows": found}, indent=2)
    (RESULTS / "fused_states.json").write_text(content + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
