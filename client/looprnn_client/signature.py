"""What a model takes and gives, and the check of every array against it.

B batch, T time, I input size, H hidden size, L layers, D directions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from looprnn_client.errors import BadInput, ServerError
from looprnn_client.explain import nearest
from looprnn_client.transport import Array


@dataclass(frozen=True, slots=True, kw_only=True)
class Signature:
    """One model's sizes. `input` is [B, T, inputs], h_0 and c_0 are [B, states, hidden].

    `output` is [B, T, directions·hidden], h_n and c_n are [B, states, hidden].
    states is L·D; time_max is None when the server names no limit; engine is None when unnamed.
    """

    model: str
    inputs: int
    hidden: int
    states: int
    directions: int
    has_cell: bool
    batch_max: int
    time_max: int | None
    engine: str | None

    @classmethod
    def from_config(cls, model: str, config: Mapping[str, Any]) -> Signature:
        """From Triton's ModelConfig as JSON. Raises ServerError when the contract is another."""
        try:
            takes = {row["name"]: _dims(row) for row in config["input"]}
            gives = {row["name"]: _dims(row) for row in config["output"]}
            notes = {k: v["string_value"] for k, v in config.get("parameters", {}).items()}
            (time, inputs), (_, width), (states, hidden) = (
                takes["input"], gives["output"], gives["h_n"],
            )  # fmt: skip
            signature = cls(
                model=model,
                inputs=inputs,
                hidden=hidden,
                states=states,
                directions=width // hidden,
                has_cell="c_n" in gives,
                batch_max=int(config.get("max_batch_size", 0)),
                time_max=int(notes["time_max"]) if "time_max" in notes else None,
                engine=notes.get("engine"),
            )
            sizes = (inputs, hidden, states, signature.batch_max, signature.directions)
            if (
                time != -1
                or min(sizes) < 1
                or width % hidden
                or ("c_0" in takes) != ("c_n" in gives)
            ):
                raise ValueError(f"inputs {takes}, outputs {gives}, batch {signature.batch_max}")
        except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
            raise ServerError(
                f"{model!r} is not a model that looprnn made: its configuration does not fit "
                f"input [T, I] and output, h_n ({type(error).__name__}: {error})"
            ) from error
        return signature

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names a caller may ask for."""
        return ("output", "h_n", "c_n") if self.has_cell else ("output", "h_n")

    def shape(self, output: str, batch: int, time: int) -> tuple[int, int, int]:
        """What the array called `output` must be for an input of batch rows and time steps."""
        if output == "output":
            return (batch, time, self.directions * self.hidden)
        return (batch, self.states, self.hidden)

    def check_outputs(self, names: Sequence[str] | None) -> tuple[str, ...]:
        """The outputs to ask for, each once; None is all of them. Raises BadInput."""
        if names is None:
            return self.outputs
        if isinstance(names, str):
            raise BadInput(f"outputs must be a list of names, got {names!r}; pass [{names!r}]")
        wanted = tuple(dict.fromkeys(names))
        for name in wanted:
            if name not in self.outputs:
                raise BadInput(
                    f"{self.model} has no output {name!r}; did you mean "
                    f"{nearest(str(name), self.outputs)!r}? It has: {', '.join(self.outputs)}"
                )
        if not wanted:
            raise BadInput("outputs is empty, so there is nothing to ask for; None asks for all")
        return wanted

    def check_inputs(self, x: object, h_0: object, c_0: object) -> dict[str, Array]:
        """The arrays to send, by wire name. Raises BadInput, which names array and limit."""
        if c_0 is not None and not self.has_cell:
            raise BadInput(f"c_0 was given, but {self.model} has no cell state; leave c_0 out")
        arrays = {"input": _float32("input", x)}
        batch = self._check_input(arrays["input"])
        want = (batch, self.states, self.hidden)
        for name, state in (("h_0", h_0), ("c_0", c_0)):
            if state is None:
                continue
            arrays[name] = array = _float32(name, state)
            if array.shape != want:
                raise BadInput(
                    f"{name} is {list(array.shape)}, but {self.model} takes [B, L·D, H] = "
                    f"{list(want)} with this input, batch first{_mend_state(array.shape, want)}"
                )
        for name, array in arrays.items():
            _check_finite(name, array)
        return arrays

    def _check_input(self, x: Array) -> int:
        """The batch size of x."""
        takes = (
            f"{self.model} takes [B, T, I] = [1..{self.batch_max}, {self._times}, {self.inputs}]"
        )
        got = f"input is {list(x.shape)}, but {takes}"
        if x.ndim != 3:
            hint = "; one sequence is a batch of one: x[np.newaxis]" if x.ndim == 2 else ""
            raise BadInput(f"{got}{hint}")
        batch, time, inputs = x.shape
        if inputs != self.inputs:
            raise BadInput(f"{got}; the last axis is the input size")
        if batch < 1:
            raise BadInput(f"{got}; there is no row to compute")
        if time < 1:
            raise BadInput(f"{got}; there is no step to compute")
        if batch > self.batch_max:
            raise BadInput(f"{got}; send it in parts of at most {self.batch_max} rows")
        if self.time_max is not None and time > self.time_max:
            raise BadInput(
                f"{got}; cut the sequence at {self.time_max} steps"
                + ("" if self.directions == 2 else " and carry h_n (and c_n) on as h_0 (and c_0)")
            )
        return batch

    @property
    def _times(self) -> str:
        return "1.." if self.time_max is None else f"1..{self.time_max}"


def _dims(row: Mapping[str, Any]) -> list[int]:
    """Dims without B. JSON from protobuf writes its 64-bit numbers as strings."""
    if row["data_type"] != "TYPE_FP32":
        raise ValueError(f"{row['name']} is {row['data_type']}, not TYPE_FP32")
    return [int(dim) for dim in row["dims"]]


def _float32(name: str, value: object) -> Array:
    if isinstance(value, np.ma.MaskedArray):
        raise BadInput(f"{name} is a masked array, and a mask cannot be sent; use x.filled(...)")
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:
        raise BadInput(f"{name} is not an array of numbers: {error}") from error
    if array.dtype != np.float32:
        mend = "x.astype(np.float32)"
        if not isinstance(value, np.ndarray):
            mend = "np.asarray(x, dtype=np.float32)"
        raise BadInput(f"{name} is {array.dtype}, but the wire is float32; send {mend}")
    return array


def _check_finite(name: str, array: Array) -> None:
    finite = np.isfinite(array)
    if not finite.all():
        index = tuple(int(i) for i in np.unravel_index(np.argmin(finite), array.shape))
        raise BadInput(
            f"{name}{list(index)} is {array[index]}; every value must be finite, because engines "
            "differ in what they make of NaN and Inf"
        )


def _mend_state(got: tuple[int, ...], want: tuple[int, int, int]) -> str:
    if got == (want[1], want[0], want[2]):
        return "; states come layers first from PyTorch: swapaxes(0, 1)"
    if got == want[1:] and want[0] == 1:
        return "; add the batch axis: [np.newaxis]"
    return ""
