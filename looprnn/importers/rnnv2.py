"""TensorRT's removed RNNv2 layer: a class with its vocabulary, and the same as an .npz.

A script written for IRNNv2Layer changes its import and gives RNNv2 the input's size where the input
was. TensorRT's equations (NvInfer.h, RNNOperation) are this project's: the GRU resets after the
product with R and its bias, and h = (1 - z) n + z h. Only the names differ:

| op         | gate          | here |
|------------|---------------|------|
| RELU, TANH | INPUT         | h    |
| LSTM       | INPUT         | i    |
|            | FORGET        | f    |
|            | CELL          | g    |
|            | OUTPUT        | o    |
| GRU        | RESET         | r    |
|            | UPDATE        | z    |
|            | HIDDEN        | n    |

An .npz holds op ("LSTM"), layer_count, hidden_size, max_seq_length and, where they are not the
default, input_size, direction ("BIDIRECTION"), input_mode ("SKIP"), seq_lengths (true),
hidden_state, cell_state; and for each layer index l and gate: "l0/INPUT/W" [H, I], "l0/INPUT/R"
[H, H], "l0/INPUT/W_bias" and "l0/INPUT/R_bias" [H].
"""

import math
import re
from collections.abc import Iterator
from enum import IntEnum
from itertools import islice
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from looprnn.errors import WeightsError
from looprnn.importers import PLACEHOLDER, Imported, checked
from looprnn.spec import Activation, Layer, Profile, Range, RNNSpec
from looprnn.weights import suffix


class RNNOperation(IntEnum):
    RELU = 0
    TANH = 1
    LSTM = 2
    GRU = 3


class RNNDirection(IntEnum):
    UNIDIRECTION = 0
    BIDIRECTION = 1


class RNNInputMode(IntEnum):
    LINEAR = 0
    SKIP = 1


class RNNGateType(IntEnum):
    INPUT = 0
    OUTPUT = 1
    FORGET = 2
    UPDATE = 3
    RESET = 4
    CELL = 5
    HIDDEN = 6


# op → the gates in the order of spec.GATES
GATES: Final = {
    RNNOperation.RELU: (RNNGateType.INPUT,),
    RNNOperation.TANH: (RNNGateType.INPUT,),
    RNNOperation.LSTM: (
        RNNGateType.INPUT,
        RNNGateType.FORGET,
        RNNGateType.CELL,
        RNNGateType.OUTPUT,
    ),
    RNNOperation.GRU: (RNNGateType.RESET, RNNGateType.UPDATE, RNNGateType.HIDDEN),
}
PARTS: Final = {"weight_ih": "W", "weight_hh": "R", "bias_ih": "W_bias", "bias_hh": "R_bias"}
SETTINGS: Final = (
    "op", "layer_count", "hidden_size", "max_seq_length", "input_size", "direction", "input_mode",
    "seq_lengths", "hidden_state", "cell_state",
)  # fmt: skip
KEY: Final = re.compile(r"l(0|[1-9][0-9]{0,5})/([A-Z]+)/(W|R|W_bias|R_bias)")
Key = tuple[int, RNNGateType, str]  # layer index, gate, one of PARTS' values
Choice = TypeVar("Choice", bound=IntEnum)


class RNNv2:
    """What add_rnn_v2 returned: settings to assign, weights to set gate by gate.

    direction, input_mode       as in TensorRT
    hidden_state, cell_state    None for zeros, or constants [..., L·D, H] or one number
    seq_lengths                 anything but None or False: the model takes `lengths` [B]
    """

    def __init__(
        self,
        input_size: int,
        layer_count: int,
        hidden_size: int,
        max_seq_length: int,
        op: RNNOperation,
    ) -> None:
        for what, value in (
            ("input_size", input_size),
            ("layer_count", layer_count),
            ("hidden_size", hidden_size),
            ("max_seq_length", max_seq_length),
        ):
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
                raise WeightsError(
                    f"RNNv2: {what} must be a whole number of at least 1, got {value!r}"
                )
        self.data_length, self.num_layers = int(input_size), int(layer_count)
        self.hidden_size, self.max_seq_length = int(hidden_size), int(max_seq_length)
        self.op = choice(RNNOperation, op)
        self.direction = RNNDirection.UNIDIRECTION
        self.input_mode = RNNInputMode.LINEAR
        self.hidden_state: Any = None
        self.cell_state: Any = None
        self.seq_lengths: Any = None
        self._arrays: dict[Key, NDArray[np.float32]] = {}

    def set_weights_for_gate(
        self, layer_index: int, gate: RNNGateType, is_w: bool, weights: Any
    ) -> None:
        """W [H, I] or R [H, H] of a gate, two-dimensional or flat and row-major. Bidirectional
        layer k has the indices 2k, forward, and 2k + 1, backward; above the first layer I is D·H.
        """
        self._set((layer_index, gate, "W" if is_w else "R"), weights)

    def set_bias_for_gate(self, layer_index: int, gate: RNNGateType, is_w: bool, bias: Any) -> None:
        """The bias [H] beside W or R of a gate. TensorRT wanted both, so zeros must be set too."""
        self._set((layer_index, gate, "W_bias" if is_w else "R_bias"), bias)

    def to_imported(self, name: str) -> Imported:
        """The layer as spec and weights.

        Raises WeightsError naming layer, gate and W or R of what is missing, misshapen or left
        over. Raises SpecError for what no spec can express.
        """
        return checked(self._imported(name), f"RNNv2 {name}")

    def _set(self, key: Key, given: Any) -> None:
        index, gate, part = key
        gate = choice(RNNGateType, gate)
        if isinstance(index, bool) or not isinstance(index, int | np.integer) or index < 0:
            raise WeightsError(f"RNNv2: layer index {index!r}, wanted 0 or more")
        key = (int(index), gate, part)
        if gate not in GATES[self.op]:
            have = ", ".join(g.name for g in GATES[self.op])
            raise WeightsError(f"RNNv2: {self.op.name} has no gate {gate.name}; it has {have}")
        array = np.asarray(given.numpy() if hasattr(given, "numpy") else given)
        if not np.issubdtype(array.dtype, np.floating):
            raise WeightsError(f"{_words(key)} is {array.dtype}, wanted floating numbers")
        with np.errstate(over="ignore"):  # Inf, which the check of all weights names
            self._arrays[key] = np.array(array, np.float32)

    def _imported(self, name: str) -> Imported:
        arrays = dict(self._arrays)  # what is left at the end belongs to no layer
        self.direction = choice(RNNDirection, self.direction)
        self.input_mode = choice(RNNInputMode, self.input_mode)
        if missing := list(islice((key for key in self._wanted() if key not in arrays), 9)):
            more = " and more" if len(missing) > 8 else ""
            raise WeightsError(
                f"RNNv2 {name}: not set: {'; '.join(map(_words, missing[:8]))}{more}"
            )
        notes: list[str] = []
        spec = RNNSpec(
            name=name,
            input_size=self.data_length,
            layers=self._layers(),
            h_0=self._constant("hidden_state", "h_0", notes),
            c_0=self._constant("cell_state", "c_0", notes),
            lengths=self.seq_lengths is not None and self.seq_lengths is not False,
            profile=Profile(time=Range(1, self.max_seq_length, self.max_seq_length)),
            weights=PLACEHOLDER,
        )
        found = {}
        for k, layer in enumerate(spec.layers):
            for number, direction in enumerate(layer.directions):
                index = k * len(layer.directions) + number
                for canonical, part in PARTS.items():
                    if part == "W" and layer.skip_input:
                        continue
                    columns = spec.layer_input(k) if part == "W" else self.hidden_size
                    bias = part.endswith("bias")
                    shape = (self.hidden_size,) if bias else (self.hidden_size, columns)
                    blocks = [
                        _shaped((index, gate, part), arrays.pop((index, gate, part)), shape)
                        for gate in GATES[self.op]
                    ]
                    found[f"{canonical}_{suffix(k, direction)}"] = np.concatenate(blocks)
        if arrays:
            raise WeightsError(
                f"RNNv2 {name}: {'; '.join(map(_words, sorted(arrays)[:8]))} set, but "
                f"{self.num_layers} {self.direction.name} layers with input mode "
                f"{self.input_mode.name} have no such weights"
            )
        return Imported(spec, found, tuple(notes))

    def _wanted(self) -> Iterator[Key]:
        directions = 2 if self.direction == RNNDirection.BIDIRECTION else 1
        for index in range(self.num_layers * directions):
            for gate in GATES[self.op]:
                for part in PARTS.values():
                    skipped = self.input_mode == RNNInputMode.SKIP and index < directions
                    if part != "W" or not skipped:
                        yield index, gate, part

    def _layers(self) -> tuple[Layer, ...]:
        plain = self.op in (RNNOperation.RELU, RNNOperation.TANH)
        both = self.direction == RNNDirection.BIDIRECTION
        return tuple(
            Layer(
                cell="rnn" if plain else "lstm" if self.op == RNNOperation.LSTM else "gru",
                hidden_size=self.hidden_size,
                direction="bidirectional" if both else "forward",
                activations=(Activation(self.op.name.lower()),) if plain else (),
                skip_input=k == 0 and self.input_mode == RNNInputMode.SKIP,
            )
            for k in range(self.num_layers)
        )

    def _constant(self, attribute: str, state: str, notes: list[str]) -> float:
        """The one number that an initial state consists of; if it has several, a note and 0."""
        given = getattr(self, attribute)
        if given is None:
            return 0.0
        if state == "c_0" and self.op != RNNOperation.LSTM:
            raise WeightsError(f"RNNv2: only an LSTM has a cell_state, this is {self.op.name}")
        array = np.asarray(given)
        if array.dtype.kind not in "fiu" or array.size == 0:
            raise WeightsError(f"RNNv2: {attribute} must be constants or None, got {given!r:.80}")
        rows = self.num_layers * (2 if self.direction == RNNDirection.BIDIRECTION else 1)
        if array.ndim and (array.ndim < 2 or array.shape[-2:] != (rows, self.hidden_size)):
            raise WeightsError(
                f"RNNv2: {attribute} is {list(array.shape)}, "
                f"wanted [..., {rows}, {self.hidden_size}]"
            )
        if array.min() == array.max() and np.isfinite(array.max()):
            return float(array.max())
        if not np.isfinite(array).all():
            raise WeightsError(f"RNNv2: {attribute} holds NaN or Inf")
        notes.append(
            f"{attribute} is not one number throughout, and a spec keeps one: the default {state} "
            f"is 0. Send {state} [B, {rows}, {self.hidden_size}] with each request"
        )
        return 0.0


def _words(key: Key) -> str:
    return f"layer {key[0]}, gate {key[1].name}, {key[2]}"


def _shaped(key: Key, array: NDArray[np.float32], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The array as `shape`, if it is that or the same number of values in a row."""
    if array.shape not in (shape, (math.prod(shape),)):
        raise WeightsError(
            f"{_words(key)} is {list(array.shape)}, wanted {list(shape)} or [{math.prod(shape)}]"
        )
    return array.reshape(shape)


def choice(kind: type[Choice], value: Any) -> Choice:
    """The member, from itself, from TensorRT's own enum of the same names, or from its name."""
    named = value if isinstance(value, str) else getattr(value, "name", None)
    for member in kind:
        if member.name == named or (named is None and member.value == value):
            return member
    raise WeightsError(
        f"RNNv2: {value!r:.80} is no {kind.__name__}; there are "
        f"{', '.join(member.name for member in kind)}"
    )
