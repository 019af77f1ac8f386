"""200 live streams, each sending chunks of 10 steps to lstm_random: with their states in the
server's slot table, and carried by the client. One run, same machine, same chunks, parity first.

    python bench/streams.py              writes bench/results/streams.json

streams    lstm_random_stream: a chunk carries input alone and asks for output; the sequence batcher
           joins chunks of many streams
carried    lstm_random without dynamic batching, which is how a stream is served without a stream
           model: each chunk brings h_0 and c_0, asks for h_n and c_n too, and runs alone
batched    the same with dynamic batching

Every stream has a connection of its own and one chunk in flight: it sends the next when the last is
answered. A stream is 20 chunks long, then its id starts anew.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format
from load import Call, Measured, Traffic, closed_loop
from machine import RESULTS, ROOT, machine, sentence
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from systems import INFER, read_triton, triton_message
from tritonclient.grpc import model_config_pb2
from wire import ask, grpc_request

from looprnn import parity, reference
from looprnn.build import build_variant, buildable
from looprnn.server import Server
from looprnn.spec import RNNSpec
from looprnn.variants import load_spec
from looprnn.weights import load_weights

STREAMS, STEPS, CHUNKS, SEQUENCES = 200, 10, 20, 16
TARGET = 3.0
Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """Chunks to the stream model. chunks [sequences, chunks, 1, T, I]; the index of a call is
    sequence · CHUNKS + chunk.
    """

    protocol: str = "grpc"
    address: str
    model: str
    chunks: Array
    size: int = 0

    def calls(self, number: int) -> Generator[Call, bytes, None]:
        sequence = number % len(self.chunks)
        own = []
        for k, chunk in enumerate(self.chunks[sequence]):
            message = triton_message(
                self.model,
                {"input": chunk},
                outputs=["output"],
                sequence_id=number + 1,
                sequence_start=k == 0,
                sequence_end=k == CHUNKS - 1,
            )
            index = sequence * CHUNKS + k
            own.append(Call(index=index, request=grpc_request(INFER, message), size=self.size))
        while True:
            for call in own:  # noqa: UP028 a list does not take what is sent
                yield call


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """The same chunks to the variant itself: the states of each answer go into the next request."""

    protocol: str = "grpc"
    address: str
    model: str
    chunks: Array
    state: int
    size: int = 0

    def calls(self, number: int) -> Generator[Call, bytes, None]:
        sequence = number % len(self.chunks)
        marks = [np.full((1, 1, self.state), value, np.float32) for value in (1.5, 2.5)]
        framed, at = [], []
        for chunk in self.chunks[sequence]:
            arrays = {"input": chunk, "h_0": marks[0], "c_0": marks[1]}
            message = triton_message(self.model, arrays, outputs=["output", "h_n", "c_n"])
            framed.append(grpc_request(INFER, message))
            at.append([framed[-1].index(mark.tobytes()) for mark in marks])
        nbytes = marks[0].nbytes
        found: list[int] = []
        while True:
            states = [bytes(nbytes)] * 2  # zeros, where the stream model starts
            for k, request in enumerate(framed):
                filled = bytearray(request)
                for place, state in zip(at[k], states, strict=True):
                    filled[place : place + nbytes] = state
                index = sequence * CHUNKS + k
                answer = yield Call(index=index, request=bytes(filled), size=self.size)
                if not found:  # every answer has the same places
                    got = read_triton(answer)
                    found = [answer.index(got[name].tobytes()) for name in ("h_n", "c_n")]
                states = [answer[place : place + nbytes] for place in found]


class Truth:
    """What each chunk of each sequence must answer."""

    def __init__(self, spec: RNNSpec) -> None:
        rng = np.random.default_rng(5)
        shape = (SEQUENCES, CHUNKS * STEPS, spec.input_size)
        x = rng.standard_normal(shape, np.float32)
        inputs = spec.defaults(*shape[:2]) | {"input": x}
        output = reference.run(spec, load_weights(spec), inputs)["output"]
        self.chunks = x.reshape(SEQUENCES, CHUNKS, 1, STEPS, spec.input_size)
        self.want = output.reshape(SEQUENCES * CHUNKS, 1, STEPS, -1)

    def prove(self, what: str, index: int, answer: bytes) -> None:
        """Raises SystemExit where the answer is not the reference's: it is not timed."""
        worst = parity.difference(read_triton(answer)["output"], self.want[index])
        if not parity.agrees(worst):
            raise SystemExit(f"{what}: chunk {index} is wrong by {worst:.2g}; it is not timed")

    def prove_all(self, what: str, traffic: Traffic) -> int:
        """Several streams at once, chunk by chunk in turn, whole; the size of an answer."""
        lines = [traffic.calls(number) for number in range(SEQUENCES)]
        calls = [next(line) for line in lines]
        for _ in range(CHUNKS):
            answers = list(ask("grpc", traffic.address, [call.request for call in calls]))
            for call, answer in zip(calls, answers, strict=True):
                self.prove(what, call.index, answer)
            calls = [line.send(a) for line, a in zip(lines, answers, strict=True)]
        return len(answers[0])


def unbatched(repository: Path, name: str) -> None:
    """Take dynamic batching out of a model's config.pbtxt."""
    path = repository / name / "config.pbtxt"
    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    config.ClearField("dynamic_batching")
    path.write_text(text_format.MessageToString(config))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=STREAMS, help="live (%(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, help="per figure (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument(
        "--engine", choices=["onnxruntime", "fused"], default="onnxruntime", help="(%(default)s)"
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "streams.json")
    options = parser.parse_args()
    console = Console()
    spec = load_spec(ROOT / "variants/lstm_random.toml")
    truth = Truth(spec)
    hidden = spec.layers[0].hidden_size
    measured: dict[str, list[Measured]] = {"streams": [], "carried": [], "batched": []}
    with ExitStack() as running:
        scratch = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="streams-")))
        engines = buildable([options.engine])[0]
        for name in ("batched", "carried"):
            build_variant(spec, engines, scratch / name, progress=lambda *_: None)
        unbatched(scratch / "carried", spec.name)
        batched, alone = (
            running.enter_context(Server(scratch / name)).grpc for name in ("batched", "carried")
        )
        traffic: dict[str, Streams | Carried] = {
            "streams": Streams(address=batched, model=f"{spec.name}_stream", chunks=truth.chunks),
            "carried": Carried(address=alone, model=spec.name, chunks=truth.chunks, state=hidden),
            "batched": Carried(address=batched, model=spec.name, chunks=truth.chunks, state=hidden),
        }
        for name, one in traffic.items():
            traffic[name] = replace(one, size=truth.prove_all(name, one))
        # A bar that draws itself in the background would be in every figure.
        with Progress(console=console, transient=True, auto_refresh=False) as bar:
            task = bar.add_task("measuring", total=options.rounds * len(traffic))
            for _ in range(options.rounds):
                for name, one in traffic.items():
                    found = closed_loop(one, options.streams, options.seconds)
                    for index, answer in found.last:
                        truth.prove(name, index, answer)
                    measured[name].append(found)
                    bar.update(task, advance=1, refresh=True)
    library = {"onnxruntime": "onnxruntime", "fused": "cuda-bindings"}[options.engine]
    here = machine("nvidia-pytriton", library) | {"engine": options.engine}
    rows = [row(name, options.streams, found) for name, found in measured.items()]
    show(console, rows, here)
    result = {"machine": here, "rows": rows, "rounds": options.rounds, "seconds": options.seconds}
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(json.dumps(result, indent=2) + "\n")


def row(name: str, streams: int, found: list[Measured]) -> dict[str, Any]:
    """Medians of the rounds."""
    p50, p99 = np.median([np.percentile(m.latencies_ms, [50, 99]) for m in found], axis=0)
    cost = statistics.median(m.cpu_s / len(m.latencies_ms) for m in found)
    return {
        "system": name,
        "streams": streams,
        "throughput_rps": round(statistics.median(m.rate for m in found), 1),
        "p50_ms": round(float(p50), 3),
        "p99_ms": round(float(p99), 3),
        "generator_us": round(cost * 1e6, 1),
    }


def show(console: Console, rows: list[dict[str, Any]], here: dict[str, Any]) -> None:
    table = Table(
        "states", "chunks/s", "p50 ms", "p99 ms", "streams ÷ it", "generator µs",
        title=f"{rows[0]['streams']} live streams, chunks of T={STEPS}, LSTM 64→256",
        box=SIMPLE_HEAD,
    )  # fmt: skip
    best = rows[0]["throughput_rps"]
    for r in rows:
        table.add_row(
            r["system"], f"{r['throughput_rps']:.0f}", f"{r['p50_ms']:.1f}", f"{r['p99_ms']:.1f}",
            f"{best / r['throughput_rps']:.2f}", f"{r['generator_us']:.0f}",
        )  # fmt: skip
    console.print(table, sentence(here), sep="\n")
    ratio = best / rows[1]["throughput_rps"]
    console.print(f"streams do {ratio:.2f} times carried; the target is {TARGET:g}")


if __name__ == "__main__":
    main()
