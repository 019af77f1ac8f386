"""RNNSpec and its parts: what a model is. A spec that exists is valid.

B batch, T time, I input size, H hidden size, P what a step puts out (H, or proj_size), D
directions, L layers.
"""

import dataclasses
import difflib
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

FLOAT32_MAX: Final = float(np.finfo(np.float32).max)
GATES: Final = {"rnn": "h", "lstm": "ifgo", "gru": "rzn"}  # house order, PyTorch's
DIRECTIONS: Final = {
    "forward": ("forward",),
    "reverse": ("reverse",),
    "bidirectional": ("forward", "reverse"),
}
MERGES: Final = ("concat", "sum", "mul", "average", "none")
PRECISIONS: Final = ("fp32", "fp16", "fp16_state", "bf16")
# kind → default alpha, beta; None where the field has no common default and they must be given.
ACTIVATIONS: Final[dict[str, tuple[float, float] | None]] = {
    "tanh": (0.0, 0.0),
    "relu": (0.0, 0.0),
    "sigmoid": (0.0, 0.0),
    "softsign": (0.0, 0.0),
    "softplus": (0.0, 0.0),
    "hard_sigmoid": (0.2, 0.5),
    "leaky_relu": (0.01, 0.0),
    "elu": (1.0, 0.0),
    "thresholded_relu": (1.0, 0.0),
    "scaled_tanh": None,
    "affine": None,
}
# The activations of each cell by role: the gates' f, the candidate's g, the LSTM's h on its c.
ROLES: Final = {"rnn": ("tanh",), "gru": ("sigmoid", "tanh"), "lstm": ("sigmoid", "tanh", "tanh")}


def one_of(what: str, value: object, choices: tuple[str, ...]) -> None:
    """Raises SpecError, with the nearest choice, if the value is none of them."""
    if value not in choices:
        raise SpecError(
            f"{what} must be one of {', '.join(choices)}; got {value!r}{near(value, choices)}"
        )


def near(value: object, choices: tuple[str, ...]) -> str:
    """ ". Did you mean 'x'?", or nothing."""
    close = difflib.get_close_matches(str(value), choices, n=1)
    return f". Did you mean {close[0]!r}?" if close else ""


def _finite(value: object) -> bool:
    """A number that float32 can hold."""
    return type(value) in (int, float) and abs(value) <= FLOAT32_MAX  # type: ignore[operator]


def _whole(what: str, value: object, least: int = 1) -> None:
    if type(value) is not int or value < least:
        raise SpecError(f"{what} must be a whole number of at least {least}, got {value!r}")


@dataclass(frozen=True, slots=True)
class Range:
    """The sizes of one axis that an engine accepts (min, max) and is tuned for (opt)."""

    min: int
    opt: int
    max: int

    def __post_init__(self) -> None:
        if not all(type(n) is int for n in (self.min, self.opt, self.max)):
            raise SpecError(f"sizes must be whole numbers, got {self}")
        if not 1 <= self.min <= self.opt <= self.max:
            raise SpecError(f"sizes must satisfy 1 <= min <= opt <= max, got {self}")

    def __str__(self) -> str:
        return f"[{self.min}, {self.opt}, {self.max}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Batch rows B and time steps T; TensorRT's optimization profile is made from it."""

    batch: Range = field(default_factory=lambda: Range(1, 1, 8))
    time: Range = field(default_factory=lambda: Range(1, 32, 256))

    def __post_init__(self) -> None:
        if self.batch.min != 1:
            # Triton's dynamic batcher may always send a single row.
            raise SpecError(f"profile.batch must begin at 1, got {self.batch}")


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
            if value is not None and not _finite(value):
                raise SpecError(f"weights.{name} must be a finite number, got {value!r}")
        if self.seed is not None:
            _whole("weights.seed", self.seed, least=0)


@dataclass(frozen=True, slots=True)
class Activation:
    """A scalar function by ONNX's name and formula, in snake case; alpha and beta where it has
    them.

    hard_sigmoid is max(0, min(1, alpha·x + beta)): alpha 0.2 in ONNX and Keras 2, 1/6 in Keras 3
    and PyTorch. scaled_tanh alpha·tanh(beta·x), affine alpha·x + beta, leaky_relu and elu have
    alpha, thresholded_relu is x where x > alpha, else 0.
    """

    kind: str
    alpha: float | None = None
    beta: float | None = None

    def __post_init__(self) -> None:
        one_of("activation", self.kind, tuple(ACTIVATIONS))
        default = ACTIVATIONS[self.kind]
        for k, name in enumerate(("alpha", "beta")):
            value = getattr(self, name)
            if value is None and default is None:
                raise SpecError(
                    f"{self.kind} needs alpha and beta: "
                    f"{{ kind = {self.kind!r}, alpha = …, beta = … }}"
                )
            if value is None and default is not None:
                object.__setattr__(self, name, default[k])
            elif not _finite(value):
                raise SpecError(f"{self.kind}: {name} must be a finite number, got {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One recurrent layer, in one or both directions.

    activations          by role: rnn (f,), gru (f, g), lstm (f, g, h); empty for the usual ones
    activations_reverse  those of the reverse direction, where they differ
    merge                how two directions join: concat on the feature axis, sum, mul, average, or
                         none: two outputs
    bias                 False: no bias arrays
    skip_input           TensorRT's SKIP mode: no W, every gate reads the input itself; needs I = H
    residual             the layer's input is added to its output; needs equal sizes
    peepholes            LSTM (Gers 2000): i and f see the old c, o the new c
    coupled              LSTM (Greff 2015, CIFG): f = 1 - i
    proj_size            LSTM (Sak 2014): h is projected to this size
    clip                 the input of every gate's activation is clipped to ±clip
    cell_clip            LSTM: c is clipped to ±cell_clip
    reset                GRU: it acts "after" the product with R (PyTorch), or "before" (Cho 2014)
    layer_norm           LSTM (Ba 2016, eq. 20-22, as in haste): W·x, R·h and c are normalized
    """

    cell: Literal["rnn", "lstm", "gru"]
    hidden_size: int
    direction: Literal["forward", "reverse", "bidirectional"] = "forward"
    activations: tuple[Activation, ...] = ()
    activations_reverse: tuple[Activation, ...] = ()
    merge: Literal["concat", "sum", "mul", "average", "none"] = "concat"
    bias: bool = True
    skip_input: bool = False
    residual: bool = False
    peepholes: bool = False
    coupled: bool = False
    proj_size: int | None = None
    clip: float | None = None
    cell_clip: float | None = None
    reset: Literal["after", "before"] = "after"
    layer_norm: bool = False

    def __post_init__(self) -> None:
        one_of("cell", self.cell, tuple(GATES))
        one_of("direction", self.direction, tuple(DIRECTIONS))
        one_of("merge", self.merge, MERGES)
        one_of("reset", self.reset, ("after", "before"))
        _whole("hidden_size", self.hidden_size)
        if not self.activations:
            usual = tuple(Activation(kind) for kind in ROLES[self.cell])
            object.__setattr__(self, "activations", usual)
        if not self.activations_reverse:
            object.__setattr__(self, "activations_reverse", self.activations)
        for name in ("activations", "activations_reverse"):
            if len(getattr(self, name)) != len(ROLES[self.cell]):
                raise SpecError(
                    f"{name}: {self.cell} has {len(ROLES[self.cell])} (usually "
                    f"{', '.join(ROLES[self.cell])}), got {len(getattr(self, name))}"
                )
        if self.direction != "bidirectional" and self.merge != "concat":
            raise SpecError(
                f"merge = {self.merge!r} is for bidirectional layers, this is {self.direction}"
            )
        self._check_cell_options()

    def _check_cell_options(self) -> None:
        if self.cell != "lstm":
            for name in ("peepholes", "coupled", "proj_size", "cell_clip", "layer_norm"):
                if getattr(self, name):
                    raise SpecError(f"{name} is the lstm's, this is {self.cell}")
        if self.cell != "gru" and self.reset != "after":
            raise SpecError(f"reset is the gru's, this is {self.cell}")
        for name in ("clip", "cell_clip"):
            value = getattr(self, name)
            if value is not None and not (_finite(value) and value > 0):
                raise SpecError(f"{name} must be a number above 0, got {value!r}")
        if self.proj_size is not None:
            _whole("proj_size", self.proj_size)
            if self.proj_size >= self.hidden_size:
                raise SpecError(
                    "proj_size must be below hidden_size, "
                    f"got {self.proj_size} and {self.hidden_size}"
                )
        if self.layer_norm and self.skip_input:
            raise SpecError("layer_norm normalizes W·x; with skip_input there is no W")

    @property
    def gates(self) -> str:
        """One letter a gate, in the order the weights are stacked."""
        return GATES[self.cell]

    @property
    def directions(self) -> tuple[str, ...]:
        """The recurrences of the layer; D is their number."""
        return DIRECTIONS[self.direction]

    @property
    def states(self) -> tuple[str, ...]:
        """The recurrent states: ("h",) or ("h", "c")."""
        return ("h", "c") if self.cell == "lstm" else ("h",)

    def state_size(self, state: str) -> int:
        """P for h, H for c."""
        return self.proj_size or self.hidden_size if state == "h" else self.hidden_size

    @property
    def output_size(self) -> int:
        """The last axis of the layer's output: D·P, or P where the directions are merged into
        one.
        """
        joined = len(self.directions) if self.merge == "concat" else 1
        return joined * self.state_size("h")

    def activations_of(self, direction: str) -> tuple[Activation, ...]:
        return self.activations if direction == "forward" else self.activations_reverse


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A linear layer at the end: activation(W·y + b), W [size, F].

    on = "output": y is every step's output, and head is [B, T, size].
    on = "last": y is the last layer's h_n, its directions side by side, and head is [B, size].
    """

    size: int
    on: Literal["output", "last"] = "output"
    activation: Literal["none", "sigmoid", "softmax"] = "none"
    bias: bool = True

    def __post_init__(self) -> None:
        _whole("head.size", self.size)
        one_of("head.on", self.on, ("output", "last"))
        one_of("head.activation", self.activation, ("none", "sigmoid", "softmax"))


@dataclass(frozen=True, slots=True, kw_only=True)
class RNNSpec:
    """A stack of recurrent layers, with an optional embedding in front and an optional linear head.

    h_0, c_0     the values every element of the initial states takes when a request brings none
    vocabulary   with one, input is integer ids [B, T] below it, embedded to input_size
    lengths      the model takes `lengths` [B]: the valid steps of each row, right-padded
    padding      what stands past a row's length: "zero", or "repeat" the last output (Keras)
    precision    of TensorRT engines: fp32; fp16 or bf16 products with fp32 gates and states;
    fp16_state: all in fp16 refit        TensorRT engines take new weights without a rebuild
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
    profile: Profile = field(default_factory=Profile)
    weights: WeightSource

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", str(self.name)):
            raise SpecError(
                f"name must be letters, digits, _ and -, beginning with a letter; got {self.name!r}"
            )
        try:
            self._check()
        except SpecError as error:
            raise SpecError(f"{self.name}: {error}") from None

    def _check(self) -> None:
        _whole("input_size", self.input_size)
        one_of("precision", self.precision, PRECISIONS)
        one_of("padding", self.padding, ("zero", "repeat"))
        if not self.layers:
            raise SpecError("there must be at least one layer")
        for state in ("h_0", "c_0"):
            if not _finite(getattr(self, state)):
                raise SpecError(f"{state} must be a finite number, got {getattr(self, state)!r}")
        if self.c_0 != 0 and "c" not in self.states:
            raise SpecError(f"only an lstm has c_0, got {self.c_0!r}")
        if self.vocabulary is not None:
            _whole("vocabulary", self.vocabulary)
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
        """(L·D, H) where all recurrences have one size, else (1, S): the same numbers, side by
        side.
        """
        sizes = [size for _, size in self.state_slots(state).values()]
        return (len(sizes), sizes[0]) if len(set(sizes)) == 1 else (1, sum(sizes))

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
        del fields["weights"]
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
