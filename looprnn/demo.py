"""The demo: ask every model over both protocols, stream models chunk by chunk, and put the answers
beside the NumPy reference and the seed.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from looprnn_client import Client, Result
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table

from looprnn import engines, parity, weights
from looprnn.card import Cards
from looprnn.repository import built_versions
from looprnn.server import Server
from looprnn.spec import RNNSpec

REPEATS = 20
CHUNKS = 4
COMPACT: Final[dict[str, Any]] = {
    "box": SIMPLE_HEAD,
    "pad_edge": False,
    "collapse_padding": True,
    "title_justify": "left",
}
# What the seed printed for an input of ones: the output of each step, and the last states.
SEED: Final[dict[str, dict[str, list[float]]]] = {
    "relu_rnn": {"output": [12, 67, 342, 1717], "h_n": [1717]},
    "lstm": {
        "output": [0.76158684, 0.96400476, 0.99504673, 0.99932283],
        "h_n": [0.99932283],
        "c_n": [3.999906],
    },
}


def run_demo(server: Server, specs: list[RNNSpec], repository: Path, console: Console) -> int:
    """Print both tables; 1 if any answer is over the tolerance."""
    table = Table(
        *("model", "over", "engine", "input", "output", "difference", "ms"),
        title=f"every model over both protocols, against NumPy; streams in {CHUNKS} chunks",
        **COMPACT,
    )
    answers: dict[str, Result] = {}
    good = True
    asked = [(spec, model) for spec in specs for model in spec.models]
    for spec, model in track(asked, "asking", console=console, transient=True):
        folder = repository / model / str(built_versions(repository / model)[-1])
        cards = Cards.read(folder)
        x = demo_input(spec)
        streams = model != spec.name
        x = x[:1] if streams else x  # a stream is one row
        arrays = weights.load_weights(spec)
        inputs = {**spec.defaults(*x.shape[:2]), "input": x}
        for url in (f"grpc://{server.grpc}", f"http://{server.http}"):
            with Client(url, model=model, timeout_s=10) as client:
                answer, median = streamed(client, model, x) if streams else timed(client, x)
                engine = engines.choose(cards, client.signature.engine or "auto", folder=folder)
            got = {
                name: array
                for name in spec.output_names
                if (array := getattr(answer, name)) is not None
            }
            worst = max(parity.differences(spec, arrays, inputs, got).values())
            good &= parity.agrees(worst)
            table.add_row(
                model,
                url[:4],
                engine,
                shape(x),
                shape(got["output"]),
                f"[{'green' if parity.agrees(worst) else 'red'}]{worst:.1e}[/]",
                f"{median:.2f}",
            )
            answers[model] = answer
    console.print(table)
    if shown := [name for name in SEED if name in answers]:
        console.print(seed_table(shown, answers))
    return 0 if good else 1


def demo_input(spec: RNNSpec) -> NDArray[np.float32]:
    """[B, T, I] at the profile's typical size: ones for the seed's variants, random numbers for the
    others.
    """
    batch, steps = spec.profile.batch.opt, spec.profile.time.opt
    if spec.weights.constant is not None:
        return np.ones((batch, steps, spec.input_size), np.float32)
    return parity.draw_inputs(spec, batch, steps)["input"]


def timed(client: Client, x: NDArray[np.float32]) -> tuple[Result, float]:
    """The answer, and the median round trip of REPEATS requests in ms."""
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        answer = client.infer(x)
        times.append((time.perf_counter() - begin) * 1e3)
    return answer, float(np.median(times))


def streamed(client: Client, model: str, x: NDArray[np.float32]) -> tuple[Result, float]:
    """A stream's answers put together, and the median round trip of a chunk in ms."""
    times, got = [], []
    with client.stream(model) as stream:
        for chunk in np.array_split(x, CHUNKS, axis=1):
            begin = time.perf_counter()
            got.append(stream.send(chunk))
            times.append((time.perf_counter() - begin) * 1e3)
    every_step = {
        name: np.concatenate([getattr(answer, name) for answer in got], axis=1)
        for name in ("output", "head")
        if (array := getattr(got[-1], name)) is not None and array.ndim == 3
    }
    return dataclasses.replace(got[-1], **every_step), float(np.median(times))


def seed_table(names: list[str], answers: dict[str, Result]) -> Table:
    """The seed's own numbers beside ours: the first row and unit, since all are equal."""
    title = "the seed's own numbers, for an input of ones"
    table = Table("variant", "", "the seed", "served here", title=title, **COMPACT)
    for name in names:
        for output, wanted in SEED[name].items():
            served = getattr(answers[name], output)[0, :, 0]
            for step, (seed, ours) in enumerate(zip(wanted, served, strict=True), 1):
                what = f"output, step {step}" if output == "output" else output
                table.add_row(name, what, f"{seed:.8g}", f"{ours:.8g}")
    return table


def shape(array: NDArray[np.float32]) -> str:
    return "×".join(str(n) for n in array.shape)
