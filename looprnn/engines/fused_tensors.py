"""Where the tensors of a request lie: side by side, here and on the GPU, and in such an order that
most requests are one copy in and one copy out.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from looprnn.spec import RNNSpec

ALIGNMENT: Final = 256  # bytes: what cudaMalloc gives, and more than any load takes


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor's offset in bytes, shape and type."""

    offset: int
    shape: tuple[int, ...]
    dtype: Any

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


def places(spec: RNNSpec, batch: int, time: int) -> dict[str, Place]:
    """Every tensor in its order, the numbers of slots among them.

    Initial states come first for those who read them beside slots; else they lie where the last
    ones will, between what goes in and what comes out.
    """
    shapes = {**spec.shapes(batch, time), "slots": (2, batch)}
    first, last = ([f"{s}_{when}" for s in spec.states] for when in "0n")
    into = [name for name in spec.input_names if name not in first]
    out = [name for name in reversed(spec.output_names) if name not in last]
    found, offset = {}, 0
    for name in (*first, "slots", *into, *last, *out):
        dtype = np.int32 if name == "slots" else spec.dtype(name)
        found[name] = Place(offset, shapes[name], dtype)
        offset += -(-found[name].nbytes // ALIGNMENT) * ALIGNMENT
    return found


def room(spec: RNNSpec) -> int:
    """The bytes that the largest request of the profile takes."""
    *_, last = places(spec, spec.profile.batch.max, spec.profile.time.max).values()
    return last.offset + last.nbytes


def stretches(where: Mapping[str, Place], names: Collection[str]) -> list[tuple[int, int]]:
    """(offset, bytes) of these tensors, neighbours as one."""
    found: list[tuple[int, int]] = []
    joins = False
    for name, place in where.items():
        if name in names:
            start = found.pop()[0] if joins else place.offset
            found.append((start, place.offset + place.nbytes - start))
        joins = name in names
    return found
