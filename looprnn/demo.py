"""The demo: ask every variant over both protocols, and put the answers beside the NumPy reference
and the seed.
"""

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
COMPACT: Final[dict[str, Any]] = {"box": SIMPLE_HEAD, "pad_edge": False, "title_justify": "left"}
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
        *("variant", "over", "engine", "input", "output", "difference", "ms"),
        title="every variant over both protocols, against NumPy",
        **COMPACT,
    )
    answers: dict[str, Result] = {}
    good = True
    for spec in track(specs, "asking", console=console, transient=True):
        folder = repository / spec.name
        cards = Cards.read(folder / str(built_versions(folder)[-1]))
        x = demo_input(spec)
        arrays = weights.load_weights(spec)
        inputs = {**spec.defaults(*x.shape[:2]), "input": x}
        for url in (f"grpc://{server.grpc}", f"http://{server.http}"):
            with Client(url, model=spec.name, timeout_s=10) as client:
                answer, median = timed(client, x)
                engine = engines.choose(cards, client.signature.engine or "auto")
            got = {
                name: array
                for name in spec.output_names
                if (array := getattr(answer, name)) is not None
            }
            worst = max(parity.differences(spec, arrays, inputs, got).values())
            good &= parity.agrees(worst)
            table.add_row(
                spec.name,
                url[:4],
                engine,
                shape(x),
                shape(got["output"]),
                f"[{'green' if parity.agrees(worst) else 'red'}]{worst:.1e}[/]",
                f"{median:.2f}",
            )
            answers[spec.name] = answer
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
