"""RNNSpec and its parts: what a model is. A spec that exists is valid.

B batch, T time, I input size, H hidden size, P what a step puts out, D directions, L layers.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from looprnn.errors import SpecError
from looprnn.layer import (
    ACTIVATIONS,
    GATES,
    ROLES,
    Activation,
    Head,
    Layer,
    booleans,
    is_finite,
    one_of,
    whole,
)
from looprnn.profile import Profile, Range
from looprnn.stream import SUFFIX, Stream, check_streaming, stream_name

# Its parts are of it: who needs them finds them here.
__all__ = [
    "ACTIVATIONS",
    "GATES",
    "ROLES",
    "Activation",
    "Head",
    "Layer",
    "Profile",
    "RNNSpec",
    "Range",
    "Stream",
    "WeightSource",
]

PRECISIONS: Final = ("fp32", "fp16", "fp16_state", "bf16")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightSource:
    """Where the weights come from: a file, one constant, or a seed. Exactly one of the three.

    file      a .safetensors file beside the variant's TOML, canonical names (see weights.py)
    constant  every weight has this value and every bias is `bias`
    seed      uniform in ±1/sqrt(hidden_size), PyTorch's default, from NumPy's PCG64 with this seed
    """

    file: Path | None = None
    constant: float | None = None
    bias: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        given = [n for n in ("file", "constant", "seed") if getattr(self, n) is not None]
        if len(given) != 1:
            raise SpecError(
                "[weights] needs exactly one of file, constant, seed; "
                f"got {', '.join(given) or 'none'}"
            )
        for name in ("constant", "bias"):
            value = getattr(self, name)
            if value is not None and not is_finite(value):
                raise SpecError(f"weights.{name} must be a finite number, got {value!r}")
        if self.seed is not None:
            whole("weights.seed", self.seed, least=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RNNSpec:
    """A stack of recurrent layers, with an optional embedding in front and an optional linear head.

    h_0, c_0     the values every element of the initial states takes when a request brings none
    vocabulary   with one, input is integer ids [B, T] below it, embedded to input_size
    lengths      the model takes `lengths` [B]: the valid steps of each row, right-padded
    padding      what stands past a row's length: "zero", or "repeat" the last output (Keras)
    precision    of engines for GPUs: fp32; fp16 or bf16 products with fp32 gates and states;
                 fp16_state: all in fp16 but c
    refit        TensorRT engines take new weights without a rebuild
    streaming    a second model, NAME_stream, keeps the states of streams as `stream` says

    Raises SpecError, with the value, for anything that cannot be built.
    """

    name: str
    input_size: int
    layers: tuple[Layer, ...]
    h_0: float = 0.0
    c_0: float = 0.0
    vocabulary: int | None = None
    head: Head | None = None
    lengths: bool = False
    padding: Literal["zero", "repeat"] = "zero"
    precision: Literal["fp32", "fp16", "fp16_state", "bf16"] = "fp32"
    refit: bool = False
    streaming: bool = False
    stream: Stream = field(default_factory=Stream)
    profile: Profile = field(default_factory=Profile)
    weights: WeightSource

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", str(self.name)):
            raise SpecError(
                f"name must be letters, digits, _ and -, beginning with a letter; got {self.name!r}"
            )
        if self.name.endswith(SUFFIX):
            raise SpecError(
                f"{self.name}: names that end in {SUFFIX} are the stream models'. Call it "
                f"{self.name.removesuffix(SUFFIX)!r} and set streaming = true"
            )
        try:
            self._check()
        except SpecError as error:
            raise SpecError(f"{self.name}: {error}") from None

    def _check(self) -> None:
        whole("input_size", self.input_size)
        booleans(self, "lengths", "refit", "streaming")
        one_of("precision", self.precision, PRECISIONS)
        if self.padding in ("left", "pre"):
            raise SpecError(
                f"padding = {self.padding!r}: left padding is not served. Pad on the right, set "
                "lengths = true, and send lengths with the request"
            )
        one_of("padding", self.padding, ("zero", "repeat"))
        if not self.layers:
            raise SpecError("there must be at least one layer")
        for state in ("h_0", "c_0"):
            if not is_finite(getattr(self, state)):
                raise SpecError(f"{state} must be a finite number, got {getattr(self, state)!r}")
        if self.c_0 != 0 and "c" not in self.states:
            raise SpecError(f"only an lstm has c_0, got {self.c_0!r}")
        if self.vocabulary is not None:
            whole("vocabulary", self.vocabulary)
        if self.padding == "repeat" and not self.lengths:
            raise SpecError(
                "padding = 'repeat' says what stands past a row's length: set lengths = true"
            )
        for k, layer in enumerate(self.layers):
            into = self.layer_input(k)
            if layer.skip_input and into != layer.hidden_size:
                raise SpecError(
                    f"layer {k}: skip_input needs input and hidden size equal, "
                    f"got {into} and {layer.hidden_size}"
                )
            if layer.residual and into != layer.output_size:
                raise SpecError(
                    f"layer {k}: residual needs input and output size equal, "
                    f"got {into} and {layer.output_size}"
                )
            if layer.merge == "none" and (k + 1 < len(self.layers) or layer.residual):
                raise SpecError(
                    f"layer {k}: merge = 'none' gives two outputs, "
                    "so it is for the last layer, without residual"
                )
            if layer.residual and self.padding == "repeat":
                raise SpecError(f"layer {k}: residual and padding = 'repeat' do not go together")
        if self.head and self.head.on == "output" and self.layers[-1].merge == "none":
            raise SpecError("a head on output needs one output, not merge = 'none'")
        if self.streaming:
            check_streaming(self)
        elif self.stream != Stream():
            raise SpecError("[stream] says how streams are kept: set streaming = true as well")

    def layer_input(self, k: int) -> int:
        """The size of what layer k reads at each step."""
        return self.input_size if k == 0 else self.layers[k - 1].output_size

    @property
    def states(self) -> tuple[str, ...]:
        """("h",), or ("h", "c") if any layer is an LSTM."""
        return ("h", "c") if any(layer.cell == "lstm" for layer in self.layers) else ("h",)

    def state_slots(self, state: str) -> dict[tuple[int, str], tuple[int, int]]:
        """(layer, direction) → (offset, size) in the flat state [B, S]; layers in order, forward
        first.
        """
        slots, offset = {}, 0
        for k, layer in enumerate(self.layers):
            for direction in layer.directions if state in layer.states else ():
                size = layer.state_size(state)
                slots[k, direction] = (offset, size)
                offset += size
        return slots

    def state_dims(self, state: str) -> tuple[int, int]:
        """(L·D, H) where all recurrences have one size, else (1, S): the same numbers in a row."""
        sizes = [size for _, size in self.state_slots(state).values()]
        return (len(sizes), sizes[0]) if len(set(sizes)) == 1 else (1, sum(sizes))

    @property
    def models(self) -> tuple[str, ...]:
        """The models that Triton serves it as."""
        return (self.name, *([stream_name(self.name)] if self.streaming else []))

    @property
    def input_names(self) -> tuple[str, ...]:
        lengths = ("lengths",) if self.lengths else ()
        return ("input", *lengths, *(f"{s}_0" for s in self.states))

    @property
    def output_names(self) -> tuple[str, ...]:
        two = ("output_reverse",) if self.layers[-1].merge == "none" else ()
        head = ("head",) if self.head else ()
        return ("output", *two, *(f"{s}_n" for s in self.states), *head)

    @property
    def output_size(self) -> int:
        """The last axis of output."""
        return self.layers[-1].output_size

    @property
    def head_input(self) -> int:
        """F, what the head reads: an output, or the last layer's h_n with its directions side by
        side.
        """
        last = self.layers[-1]
        if self.head and self.head.on == "last":
            return len(last.directions) * last.state_size("h")
        return last.output_size

    def dtype(self, name: str) -> Any:
        """NumPy's type of an input or output."""
        whole = name == "lengths" or (name == "input" and self.vocabulary is not None)
        return np.int32 if whole else np.float32

    def shapes(self, batch: int, time: int) -> dict[str, tuple[int, ...]]:
        """The shape of every input and output for B rows and T steps."""
        found: dict[str, tuple[int, ...]] = {
            "input": (batch, time) if self.vocabulary else (batch, time, self.input_size),
            "lengths": (batch,),
            "output": (batch, time, self.output_size),
            "output_reverse": (batch, time, self.output_size),
        }
        for s in self.states:
            found[f"{s}_0"] = found[f"{s}_n"] = (batch, *self.state_dims(s))
        if self.head:
            every = (batch, time, self.head.size)
            found["head"] = every if self.head.on == "output" else (batch, self.head.size)
        return {name: found[name] for name in (*self.input_names, *self.output_names)}

    def defaults(self, batch: int, time: int) -> dict[str, NDArray[Any]]:
        """What a request need not bring: h_0, c_0 and lengths."""
        size = self.shapes(batch, time)
        found = {
            f"{s}_0": np.full(size[f"{s}_0"], getattr(self, f"{s}_0"), np.float32)
            for s in self.states
        }
        return {"lengths": np.full(batch, time, np.int32), **found} if self.lengths else found

    def network_dict(self) -> dict[str, Any]:
        """What decides the engine's bytes besides the weights themselves, as plain JSON values."""
        fields = dataclasses.asdict(self)
        for served_only in ("weights", "streaming", "stream"):
            del fields[served_only]
        plain: dict[str, Any] = json.loads(json.dumps(fields))
        return plain

    def digest(self) -> str:
        """SHA-256 of network_dict(): equal digests mean that an engine need not be rebuilt."""
        text = json.dumps(self.network_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def from_network_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of network_dict(), for readers of engine cards, where weights are baked
        in.
        """
        layers = tuple(
            Layer(
                **{
                    **layer,
                    **{
                        name: tuple(Activation(**a) for a in layer[name])
                        for name in ("activations", "activations_reverse")
                    },
                }
            )
            for layer in fields["layers"]
        )
        parts = {
            "layers": layers,
            "head": fields["head"] and Head(**fields["head"]),
            "profile": Profile(**{axis: Range(**s) for axis, s in fields["profile"].items()}),
            "weights": WeightSource(constant=0.0),
        }
        return cls(**{**fields, **parts})
