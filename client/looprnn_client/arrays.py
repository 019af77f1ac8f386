"""One array at a time, whatever the model is: its type, its values, and how to mend it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from looprnn_client.errors import BadInput
from looprnn_client.transport import Array


def float32(name: str, value: object) -> Array:
    """value as the array it is. Raises BadInput for any other type: nothing is rounded unasked."""
    array = _array(name, value)
    if array.dtype != np.float32:
        raise BadInput(
            f"{name} is {array.dtype}, but the wire is float32; send {_mend(value, 'float32')}"
        )
    return array


def integers(name: str, value: object, what: str) -> NDArray[np.integer[Any]]:
    """value as an array of any integer type. Raises BadInput; `what` says what they mean."""
    array = _array(name, value)
    if array.dtype.kind not in "iu":
        raise BadInput(
            f"{name} is {array.dtype}, but {what} integers; if it holds whole numbers, send "
            f"{_mend(value, 'int32')}"
        )
    return array


def int32(array: NDArray[np.integer[Any]]) -> NDArray[np.int32]:
    """The type of the wire; check_range first, for this wraps."""
    return array.astype(np.int32, copy=False)


def check_range(name: str, array: NDArray[np.integer[Any]], most: int, limit: str) -> None:
    """Raises BadInput with the index of the first number that is not in 0..most."""
    good = (array >= 0) & (array <= most)
    if not good.all():
        index = _first_bad(good)
        raise BadInput(f"{name}{list(index)} is {array[index]}, but {limit}")


def check_finite(name: str, array: Array) -> None:
    """Raises BadInput with the index of the first NaN or Inf."""
    finite = np.isfinite(array)
    if not finite.all():
        index = _first_bad(finite)
        raise BadInput(
            f"{name}{list(index)} is {array[index]}; every value must be finite, because engines "
            "differ in what they make of NaN and Inf"
        )


def mend_state(got: tuple[int, ...], want: tuple[int, ...]) -> str:
    """What to do to a state of the shape `got`, where it can be guessed; `want` is [B, N, H]."""
    batch, recurrences, size = want
    if got == (recurrences, batch, size):
        return "; states come layers first from PyTorch: swapaxes(0, 1)"
    if got == (recurrences, size) and batch == 1:
        return "; add the batch axis: [np.newaxis]"
    if got == (batch, size) and recurrences == 1:
        return "; add the axis between them: [:, np.newaxis]"
    return ""


def _array(name: str, value: object) -> NDArray[Any]:
    if isinstance(value, np.ma.MaskedArray):
        raise BadInput(f"{name} is a masked array, and a mask cannot be sent; use x.filled(...)")
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise BadInput(f"{name} is not an array of numbers: {error}") from error


def _mend(value: object, kind: str) -> str:
    if isinstance(value, np.ndarray):
        return f"x.astype(np.{kind})"
    return f"np.asarray(x, dtype=np.{kind})"


def _first_bad(good: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(np.argmin(good), good.shape))
