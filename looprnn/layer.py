"""Activation, Layer and Head: the layers of a spec. One that exists is valid.

I input size, H hidden size, P what a step puts out (H, or proj_size), D directions, G gates.
"""

import difflib
from dataclasses import dataclass, fields
from typing import Final, Literal

import numpy as np

from looprnn.errors import SpecError

FLOAT32_MAX: Final = float(np.finfo(np.float32).max)
GATES: Final = {"rnn": "h", "lstm": "ifgo", "gru": "rzn"}  # house order, PyTorch's
DIRECTIONS: Final = {
    "forward": ("forward",),
    "reverse": ("reverse",),
    "bidirectional": ("forward", "reverse"),
}
MERGES: Final = ("concat", "sum", "mul", "average", "none")
# kind → default alpha, beta; 0 where it takes none; None where there is no common default and both
# must be given.
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


def is_finite(value: object) -> bool:
    """A number that float32 can hold."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= FLOAT32_MAX  # which NaN is not


def whole(what: str, value: object, least: int = 1) -> None:
    if type(value) is not int or value < least:
        raise SpecError(f"{what} must be a whole number of at least {least}, got {value!r}")


def booleans(part: object, *names: str) -> None:
    """Raises SpecError for a field that is not true or false: a quoted "no" would count as true."""
    for name in names:
        value = getattr(part, name)
        if type(value) is not bool:
            raise SpecError(f"{name} must be true or false, without quotes; got {value!r}")


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
            elif not is_finite(value):
                raise SpecError(f"{self.kind}: {name} must be a finite number, got {value!r}")
            elif default is not None and value != default[k] == 0:
                takers = [k_ for k_, d in ACTIVATIONS.items() if d is None or d[k] != 0]
                raise SpecError(f"{self.kind} takes no {name}; {', '.join(takers)} do")


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
        whole("hidden_size", self.hidden_size)
        booleans(self, "bias", "skip_input", "residual", "peepholes", "coupled", "layer_norm")
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
            if value is not None and not (is_finite(value) and value > 0):
                raise SpecError(f"{name} must be a number above 0, got {value!r}")
        if self.proj_size is not None:
            whole("proj_size", self.proj_size)
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

    @property
    def options(self) -> dict[str, object]:
        """What makes it another layer than PyTorch's of its cell, size, direction and
        activations.
        """
        usual = Layer(cell=self.cell, hidden_size=self.hidden_size)
        said = ("cell", "hidden_size", "direction", "activations", "activations_reverse")
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in said}
        return {name: value for name, value in own.items() if value != getattr(usual, name)}

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
        whole("head.size", self.size)
        booleans(self, "bias")
        one_of("head.on", self.on, ("output", "last"))
        one_of("head.activation", self.activation, ("none", "sigmoid", "softmax"))
