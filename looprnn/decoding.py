"""What a request brings → checked arrays. Engines are given nothing that they would misread.

NaN and Inf are refused: engines differ in what they turn them into.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from looprnn.errors import RequestError
from looprnn.spec import RNNSpec


class Decoder:
    """Checks the inputs of a spec. What it works out once is not worked out for every request."""

    def __init__(self, spec: RNNSpec) -> None:
        shapes = spec.shapes(1, 1)
        self._dtypes = {name: np.dtype(spec.dtype(name)) for name in spec.input_names}
        self._rows = {name: shapes[name][1:] for name in spec.input_names}
        self._step = shapes["input"][2:]
        self._ids = spec.vocabulary
        self._time = spec.profile.time

    def __call__(self, given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """The spec's inputs among the given ones, lengths as [B]; all but `input` may be missing.

        Raises RequestError that names the input, what came and what fits.
        """
        if "input" not in given:
            raise RequestError("input is missing")
        batch, time = self._size(given["input"])
        found = {}
        for name, row in self._rows.items():
            if name not in given:
                continue
            array = given[name]
            if name == "lengths" and array.shape == (batch, 1):
                array = array[:, 0]  # Triton's dims cannot be empty
            shape = (batch, time, *self._step) if name == "input" else (batch, *row)
            if array.shape != shape:
                raise RequestError(
                    f"{name} has the shape {list(array.shape)}, wanted {list(shape)}"
                )
            if array.dtype != self._dtypes[name]:
                raise RequestError(f"{name} is {array.dtype}, wanted {self._dtypes[name]}")
            check_values(name, array, time if name == "lengths" else (self._ids or 0) - 1)
            found[name] = array
        return found

    def _size(self, x: NDArray[Any]) -> tuple[int, int]:
        if x.ndim != 2 + len(self._step):
            wanted = f"[B, T, {self._step[0]}]" if self._step else "[B, T]"
            raise RequestError(f"input has the shape {list(x.shape)}, wanted {wanted}")
        if not x.shape[0]:
            raise RequestError("input has no rows, B = 0")
        if not self._time.min <= x.shape[1] <= self._time.max:
            raise RequestError(
                f"input has T = {x.shape[1]} steps, "
                f"this engine takes {self._time.min} to {self._time.max}"
            )
        return x.shape[0], x.shape[1]


def check_values(name: str, array: NDArray[Any], most: int) -> None:
    """Floats are finite; integers are 0..most. Raises RequestError with the first that is not."""
    whole = array.dtype == np.int32
    good = (array >= 0) & (array <= most) if whole else np.isfinite(array)
    if not good.all():
        where = np.argwhere(~good)[0].tolist()
        wanted = f"wanted 0 to {most}" if whole else "only finite numbers are served"
        raise RequestError(f"{name} holds {array[tuple(where)]} at {where}; {wanted}")
