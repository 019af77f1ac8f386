"""Requests of different B and T ↔ padded runs of the engine.

A run is as long as its longest row; what the shorter ones lack is padding, computed for nothing.
So requests are sorted by T, longest first, and a run ends where one more request would make padding
more than MOST_WASTE of the steps it computes. B rows of a run, T steps, I input size.

    for run in plan(sizes, most_rows):
        outputs = session.run(batch.fill(requests, run))
        for k, share in batch.shares(outputs, requests, run): ...
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from looprnn.spec import RNNSpec

Arrays = Mapping[str, NDArray[Any]]
# Of a run's B·T steps. At 0.25, 8 ragged requests were 9 % slower: runs of too few rows.
MOST_WASTE: Final = 0.4


class Piece(NamedTuple):
    """Rows of one request that run together."""

    request: int  # its index
    rows: slice


def plan(
    sizes: Sequence[tuple[int, int]], most_rows: int, most_waste: float = MOST_WASTE
) -> list[list[Piece]]:
    """Which rows of which requests, (rows, T) each, run together: every row in exactly one run.

    A run has at most most_rows rows, and padding is at most most_waste of its B·T steps; 0 puts
    equal T together only. A request of more rows than that is cut, any other stays whole.
    """
    runs: list[list[Piece]] = []
    rows = steps = longest = 0  # of the last run
    for k in sorted(range(len(sizes)), key=lambda k: -sizes[k][1]):
        count, time = sizes[k]
        for first in range(0, count, most_rows):
            n = min(most_rows, count - first)
            computed = (rows + n) * longest
            wasted = computed - steps - n * time
            if not runs or rows + n > most_rows or wasted > most_waste * computed:
                runs.append([])
                rows, steps, longest = 0, 0, time
            runs[-1].append(Piece(k, slice(first, first + n)))
            rows, steps = rows + n, steps + n * time
    return runs


def places(run: Sequence[Piece]) -> list[slice]:
    """Where each piece's rows lie in the run."""
    ends = list(accumulate(rows.stop - rows.start for _, rows in run))
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def useful_steps(requests: Sequence[Arrays], run: Sequence[Piece]) -> int:
    """The steps of a run that its requests asked for: the rest of its B·T are padding."""
    return sum((rows.stop - rows.start) * requests[k]["input"].shape[1] for k, rows in run)


class Batch:
    """The padded inputs of one run at a time, in buffers allocated once for the profile's largest.

    What fill() answers is valid until the next fill(). A request is a mapping of the spec's inputs,
    shapes as in RNNSpec.shapes; all but `input` may be missing.
    """

    def __init__(self, spec: RNNSpec) -> None:
        self._spec = spec
        # Pages that are never touched cost no memory, so a large profile is no matter.
        largest = spec.shapes(spec.profile.batch.max, spec.profile.time.max)
        self._buffers = {n: np.empty(largest[n], spec.dtype(n)) for n in spec.input_names}
        one, two = spec.shapes(1, 1), spec.shapes(1, 2)
        self._timed = {name for name in spec.output_names if one[name] != two[name]}

    def fill(
        self, requests: Sequence[Arrays], run: Sequence[Piece], names: Sequence[str] = ()
    ) -> dict[str, NDArray[Any]]:
        """These inputs of the spec, by default all, for session.run: [B, T, …] padded with 0 to the
        longest T of the run; where a request brings none, lengths of its own T and the spec's
        states.

        A run of one request takes its arrays uncopied.
        """
        filled = {}
        for name in names or self._spec.input_names:
            given = [requests[k][name][rows] for k, rows in run if name in requests[k]]
            if len(run) == 1 and given:
                filled[name] = given[0]
            elif name == "input":
                filled[name] = self._padded(given, places(run))
            else:
                filled[name] = self._joined(name, requests, run)
        return filled

    def shares(
        self, outputs: Arrays, requests: Sequence[Arrays], run: Sequence[Piece]
    ) -> Iterator[tuple[int, dict[str, NDArray[Any]]]]:
        """The inverse: each request's index with its own rows and steps of every output, as views.

        A request that plan() cut comes once a run, its rows in order.
        """
        for (k, _), place in zip(run, places(run), strict=True):
            steps = requests[k]["input"].shape[1]
            yield (
                k,
                {
                    name: array[place, :steps] if name in self._timed else array[place]
                    for name, array in outputs.items()
                },
            )

    def _padded(self, given: list[NDArray[Any]], where: list[slice]) -> NDArray[Any]:
        rows, time = where[-1].stop, max(x.shape[1] for x in given)
        shape = (rows, time, *given[0].shape[2:])
        padded: NDArray[Any] = self._buffers["input"].reshape(-1)[: math.prod(shape)].reshape(shape)
        for place, x in zip(where, given, strict=True):
            steps = x.shape[1]
            padded[place, :steps] = x
            padded[place, steps:] = 0
        return padded

    def _joined(self, name: str, requests: Sequence[Arrays], run: Sequence[Piece]) -> NDArray[Any]:
        where = places(run)
        joined: NDArray[Any] = self._buffers[name][: where[-1].stop]
        for place, (k, rows) in zip(where, run, strict=True):
            array = requests[k].get(name)
            joined[place] = self._default(name, requests[k]) if array is None else array[rows]
        return joined

    def _default(self, name: str, request: Arrays) -> float:
        return request["input"].shape[1] if name == "lengths" else getattr(self._spec, name)
