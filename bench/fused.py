"""The fused engine against cuDNN, layer by layer: parity first, then time. Needs a GPU and torch.

    python bench/fused.py        prints one table, writes bench/results/fused.json and fused.png

µs a step of the whole layer, input projection included: the kernels of one request as a CUDA
graph, over T; medians of 100. cuDNN is torch.nn.LSTM, GRU and RNN with weights of the row's type,
eager and as a CUDA graph; in bf16 torch repacks the weights at each call, and that is in its
figure. The floor is the persistent kernel's alone: its barrier, and its R over the rate at which
it can be read.
"""

import argparse
import json
import multiprocessing
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from fused_plot import draw
from machine import RESULTS, machine
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from looprnn import cuda, parity
from looprnn.engines import fused_compile, fused_plan
from looprnn.engines.fused import persistent_r
from looprnn.engines.fused_file import FusedFile
from looprnn.engines.fused_pack import pack_weights
from looprnn.engines.fused_session import FusedSession
from looprnn.spec import Layer, Profile, Range, RNNSpec, WeightSource
from looprnn.weights import load_weights

ROUNDS = 100
TORCH = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Row(NamedTuple):
    cell: str
    B: int
    T: int
    H: int
    dtype: str
    target: float
    bidirectional: bool = False

    @property
    def spec(self) -> RNNSpec:
        layer = Layer(
            cell=self.cell,  # type: ignore[arg-type]
            hidden_size=self.H,
            direction="bidirectional" if self.bidirectional else "forward",
        )
        return RNNSpec(
            name="row",
            input_size=self.H,
            layers=(layer,),
            precision=self.dtype,  # type: ignore[arg-type]
            profile=Profile(batch=Range(1, self.B, self.B), time=Range(1, self.T, self.T)),
            weights=WeightSource(seed=1),
        )

    def __str__(self) -> str:
        name = ("bi" if self.bidirectional else "") + self.cell.upper()
        return f"{name} {self.B}, {self.T}, {self.H} {self.dtype}"


ROWS = [
    Row("lstm", 1, 32, 128, "fp32", 0.8),
    Row("lstm", 1, 128, 256, "fp16", 0.75),
    Row("lstm", 1, 128, 512, "fp16", 0.85),
    Row("lstm", 1, 128, 512, "fp32", 1.3),
    Row("lstm", 1, 512, 1024, "fp16", 1.6),
    Row("lstm", 1, 128, 512, "fp16", 0.95, bidirectional=True),
    Row("lstm", 8, 128, 512, "fp16", 1.1),
    Row("lstm", 32, 128, 512, "fp16", 1.4),
    Row("lstm", 32, 128, 512, "fp16", 2.0, bidirectional=True),
    Row("lstm", 64, 128, 512, "fp16", 2.0),
    Row("lstm", 32, 128, 1024, "fp16", 2.8),
    Row("lstm", 16, 1024, 768, "fp16", 1.5),
    Row("lstm", 128, 128, 1024, "bf16", 8.0),
    Row("gru", 1, 128, 512, "fp16", 0.8),
    Row("gru", 32, 128, 512, "fp16", 1.4),
    Row("rnn", 1, 128, 512, "fp16", 0.7),
]


def build(row: Row, path: Path) -> str:
    """The engine of a row at `path`, with what its own B needs alone; answers how it runs."""
    spec = row.spec
    weights = load_weights(spec)
    ways = [way for way in fused_plan.choose(spec) if way.first <= row.B <= way.last]
    units = fused_plan.units(spec, ways)
    cubins = {name: fused_compile.cubin(unit, "9.0") for name, unit in units.items()}
    arrays = pack_weights(spec, weights)
    for way in ways:
        if way.plan:
            name = fused_plan.packed_name(way.layer, way.plan)
            arrays[name] = persistent_r(spec, weights, way)
    FusedFile(units=units, cubins=cubins, arrays=arrays, ways=ways).write(path)
    return ways[0].why


def module(row: Row, dtype: torch.dtype) -> torch.nn.Module:
    """torch's layer with the row's weights."""
    kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[row.cell]
    layer = kind(row.H, row.H, batch_first=True, bidirectional=row.bidirectional)
    state = {k: torch.from_numpy(np.array(w)) for k, w in load_weights(row.spec).items()}
    layer.load_state_dict(state)
    layer = layer.to("cuda", dtype).eval()
    layer.flatten_parameters()
    return layer


def agree(row: Row, session: FusedSession) -> float:
    """The largest difference of a run from torch in float64; AssertionError over the tolerance."""
    inputs = parity.draw_inputs(row.spec, row.B, row.T)
    states = [
        torch.from_numpy(inputs[f"{s}_0"]).transpose(0, 1).contiguous().to("cuda", torch.float64)
        for s in row.spec.states
    ]
    with torch.inference_mode():
        x = torch.from_numpy(inputs["input"]).to("cuda", torch.float64)
        start = tuple(states) if len(states) == 2 else states[0]
        output, last = module(row, torch.float64)(x, start)
    got = session.run(inputs)
    want = {"output": output}
    want |= zip(("h_n", "c_n"), last if isinstance(last, tuple) else (last,), strict=False)
    found = 0.0
    for name, tensor in want.items():
        array = tensor.cpu().numpy()
        array = array if name == "output" else array.swapaxes(0, 1)
        found = max(found, parity.difference(got[name], array))
    assert parity.agrees(found, row.dtype), f"{row}: differs by {found}"
    return found


def fused_us(row: Row, session: FusedSession) -> float:
    graph, found = session.graph(row.B, row.T, (), copies=False), []
    with cuda.Event() as begin, cuda.Event() as end:
        for k in range(ROUNDS + 10):
            begin.record(session.stream)
            graph.launch()
            end.record(session.stream)
            if k >= 10:
                found.append(end.microseconds_since(begin))
    return statistics.median(found) / row.T


def torch_us(row: Row, ask: Callable[[], Any]) -> float:
    found = []
    for k in range(ROUNDS + 10):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        ask()
        end.record()
        end.synchronize()
        if k >= 10:
            found.append(begin.elapsed_time(end) * 1e3)
    return float(statistics.median(found)) / row.T


def cudnn_us(row: Row) -> tuple[float, float]:
    """Eager, and as a CUDA graph."""
    layer = module(row, TORCH[row.dtype])
    x = torch.randn(row.B, row.T, row.H, device="cuda", dtype=TORCH[row.dtype])
    with torch.inference_mode():
        eager = torch_us(row, lambda: layer(x))
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            layer(x)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            layer(x)
        return eager, torch_us(row, graph.replay)


def measure(row: Row, path: Path, why: str) -> dict[str, Any]:
    plan = fused_plan.choose(row.spec)
    own = next((w.plan for w in plan if w.first <= row.B <= w.last), None)
    with FusedSession(path, row.spec) as session:
        difference = agree(row, session)
        took = fused_us(row, session)
    eager, graph = cudnn_us(row)
    return {
        "cell": row.cell, "B": row.B, "T": row.T, "I": row.H, "H": row.H, "dtype": row.dtype,
        "bidirectional": row.bidirectional, "us_per_step": took,
        "cudnn_eager_us_per_step": eager, "cudnn_graph_us_per_step": graph,
        "target_us_per_step": row.target, "difference": difference,
        "floor_us_per_step": own.floor_us_per_step if own else None, "plan": why,
    }  # fmt: skip


def table(found: list[tuple[Row, dict[str, Any]]], here: dict[str, Any]) -> Table:
    made = Table(box=SIMPLE_HEAD, caption=f"µs a step; {here['gpu']}, torch {here['torch']}")
    for name in ("layer: B, T, H", "fused", "floor", "target", "cuDNN graph", "eager", "ratio"):
        made.add_column(name, justify="left" if name.startswith("layer") else "right")
    for row, figures in found:
        best = min(figures["cudnn_graph_us_per_step"], figures["cudnn_eager_us_per_step"])
        floor = figures["floor_us_per_step"]
        took = figures["us_per_step"]
        made.add_row(
            str(row), f"{took:.2f}", f"{floor:.2f}" if floor else "-",
            f"{row.target:.2f} {'✓' if took <= row.target else ' '}",
            f"{figures['cudnn_graph_us_per_step']:.2f}",
            f"{figures['cudnn_eager_us_per_step']:.2f}", f"{best / took:.1f}×",
        )  # fmt: skip
    return made


def main() -> int:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    console = Console()
    torch.backends.cuda.matmul.allow_tf32 = True
    here = machine("torch") | {"gpu": torch.cuda.get_device_name()}
    found: list[tuple[Row, dict[str, Any]]] = []
    with TemporaryDirectory() as name, console.status("compiling") as status:
        paths = [Path(name) / f"{k}.fused" for k in range(len(ROWS))]
        with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
            ways = list(pool.map(build, ROWS, paths))
        for row, path, why in zip(ROWS, paths, ways, strict=True):
            status.update(f"measuring {row}")
            found.append((row, measure(row, path, why)))
    console.print(table(found, here))
    rows = [figures for _, figures in found]
    (RESULTS / "fused.json").write_text(json.dumps({"machine": here, "rows": rows}, indent=1))
    draw(rows, f"{here['gpu']}, torch {here['torch']}").savefig(RESULTS / "fused.png", dpi=150)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
