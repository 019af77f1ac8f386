"""A tensor's value as the interpreter holds it: an array and the TensorRT type it stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

NUMPY = {  # TensorRT's type → what holds it here
    "FLOAT": np.float32,
    "HALF": np.float16,
    "BF16": np.float32,  # NumPy has no bfloat16: float32, rounded
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}
FLOATS = ("FLOAT", "HALF", "BF16")


class InterpreterError(Exception):
    """TensorRT would refuse this network or these inputs, or they are not modelled."""


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """An array and the TensorRT type it stands for, which can hold every entry exactly."""

    array: np.ndarray
    type: str

    @property
    def wide(self) -> np.ndarray:
        """The array to calculate with: float32 for every float type, else as it is."""
        return self.array.astype(np.float32) if self.type == "HALF" else self.array

    def __str__(self) -> str:
        return f"{self.type} {list(self.array.shape)}"


def round_to_bf16(array: np.ndarray) -> np.ndarray:
    """The nearest bfloat16, ties to even, as float32."""
    bits = np.array(array, np.float32, order="C").view(np.uint32).astype(np.uint64)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    rounded = bits.astype(np.uint32).view(np.float32)
    return np.where(np.isnan(array), np.float32(np.nan), rounded)


def store(array: Any, type_: str) -> Value:
    """Round what was calculated to the type that is stored; 0-d stays 0-d."""
    held = np.asarray(array).astype(NUMPY[type_])
    return Value(np.asarray(round_to_bf16(held)) if type_ == "BF16" else held, type_)


def require(condition: object, message: str) -> None:
    if not condition:
        raise InterpreterError(message)


def one_type(*values: Value) -> str:
    types = {v.type for v in values}
    require(len(types) == 1, f"inputs of different types: {', '.join(map(str, values))}")
    return types.pop()


def integers(value: Value, what: str, rank: int) -> Any:
    """A shape tensor as int (rank 0) or list of int (rank 1)."""
    require(value.type in ("INT32", "INT64"), f"{what} must be INT32 or INT64, got {value}")
    require(value.array.ndim == rank, f"{what} must have rank {rank}, got {value}")
    return value.array.tolist()


def masked_axes(mask: int, rank: int) -> tuple[int, ...]:
    axes = tuple(axis for axis in range(mask.bit_length()) if mask >> axis & 1)
    require(axes and axes[-1] < rank, f"axes mask {mask:#b} does not fit rank {rank}")
    return axes
