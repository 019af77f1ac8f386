"""What `looprnn verify` asks an engine: its docstring says which cases there are, and why."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from looprnn import parity, reference
from looprnn.spec import RNNSpec
from looprnn.weights import Weights

SECONDS: Final = 1.0
TINY: Final = 1e-6
LARGE: Final = {"fp32": 50.0, "fp16": 4.0, "fp16_state": 4.0, "bf16": 4.0}

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Case:
    """Inputs of one kind for B rows and T steps, allowed `times` the tolerance."""

    kind: str
    batch: int
    time: int
    inputs: Arrays
    times: float = 1.0

    def __str__(self) -> str:
        return f"{self.kind}, B={self.batch}, T={self.time}"


def cases(spec: RNNSpec, arrays: Weights, precision: str) -> Iterator[Case]:
    """Every case of this spec, seeded: the same each time."""
    batch, steps = spec.profile.batch, spec.profile.time
    affordable = max(1, int(SECONDS / seconds_per_step(spec, arrays)))

    def sized(rows: int, length: int) -> tuple[int, int]:
        rows = max(1, min(rows, affordable // steps.min))
        return rows, max(steps.min, min(length, affordable // rows))

    sizes = [(1, steps.min), (batch.opt, steps.opt), (batch.max, steps.min), (1, steps.max)]
    sizes.append((batch.max, steps.max))
    for seed, (rows, length) in enumerate(dict.fromkeys(sized(*size) for size in sizes)):
        inputs = parity.draw_inputs(spec, rows, length, seed)
        if spec.lengths:
            inputs["lengths"] = np.full(rows, length, np.int32)
        yield Case("random", rows, length, inputs)
    if spec.lengths:
        rows, length = sized(batch.max, min(steps.max, 2 * steps.opt))
        ragged = parity.draw_inputs(spec, rows, length, 100)
        ragged["lengths"][: rows - 1 : 3] = 0
        ragged["lengths"][-1] = length
        yield Case("ragged", rows, length, ragged)
        none = np.zeros(rows, np.int32)
        yield Case("only empty rows", rows, length, {**ragged, "lengths": none})
    rows, length = sized(batch.opt, steps.opt)
    drawn = parity.draw_inputs(spec, rows, length, 200)
    if spec.lengths:
        drawn["lengths"] = np.full(rows, length, np.int32)
    for kind, size, state in (
        ("zeros", 0.0, 0.0),
        ("large", LARGE[precision], 1.0),
        ("tiny", TINY, TINY),
    ):
        yield Case(kind, rows, length, _extreme(spec, drawn, size, state), max(1.0, size))


def _extreme(spec: RNNSpec, drawn: Arrays, size: float, state: float) -> Arrays:
    """Input of ±size, states of ±state, lengths as drawn; ids are 0, or the greatest for a large
    size.
    """
    made = dict(drawn)
    for name, array in drawn.items():
        if name == "input" and spec.vocabulary:
            made[name] = np.full_like(array, spec.vocabulary - 1 if size > 1 else 0)
        elif name != "lengths":
            # NumPy's sign of 0 is 0, which no normal draw is.
            made[name] = np.sign(array) * np.float32(size if name == "input" else state)
    return made


def seconds_per_step(spec: RNNSpec, arrays: Weights) -> float:
    """What the reference needs for one row and step, measured on one."""
    inputs = parity.draw_inputs(spec, 1, 1)
    reference.run(spec, arrays, inputs)  # warm
    begin = time.perf_counter()
    reference.run(spec, arrays, inputs)
    return max(time.perf_counter() - begin, 1e-6)
