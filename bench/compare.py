"""Inputs with their truth, requests proved before they are timed, and what was measured."""

import statistics
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from load import Call, Measured, Requests
from numpy.typing import NDArray
from systems import System
from wire import ask

from looprnn import parity, reference
from looprnn.spec import RNNSpec
from looprnn.weights import load_weights

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """xs: inputs [1, T, I]; want: the reference's outputs of each."""

    xs: list[Array]
    want: list[dict[str, NDArray[np.float64]]]

    @classmethod
    def draw(cls, spec: RNNSpec, times: tuple[int, int], count: int = 64) -> "Inputs":
        """T drawn between `times`, both included."""
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

    def requests(self, system: System) -> Requests:
        """Framed for the system, once each of its answers is proved."""
        framed = [system.frame(x) for x in self.xs]
        each = []
        for index, answer in enumerate(ask(system.protocol, system.address, framed)):
            self.prove(system, index, answer)
            each.append(Call(index=index, request=framed[index], size=len(answer)))
        return Requests(protocol=system.protocol, address=system.address, each=each)


@dataclass(slots=True, kw_only=True)
class Cell:
    """One system under one load, over the rounds. steps: useful ones a second; generator_us: CPU
    that a request cost the load generator.
    """

    system: System
    traffic: str
    concurrency: int
    rates: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    p99: list[float] = field(default_factory=list)
    steps: list[float] = field(default_factory=list)
    generator_us: list[float] = field(default_factory=list)

    def add(self, measured: Measured, inputs: Inputs) -> None:
        """One round, of which the last answers are proved."""
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
        """Medians of the rounds."""
        return {
            "system": self.system.name,
            "traffic": self.traffic,
            "concurrency": self.concurrency,
            "throughput_rps": round(statistics.median(self.rates), 1),
            "p50_ms": round(statistics.median(self.p50), 3),
            "p99_ms": round(statistics.median(self.p99), 3),
        }
