"""RNNSpec and Profile: what a model is. A spec that exists is valid.

A variant is one TOML file. Its keys are the fields of RNNSpec, with two tables: [weights] says
where the numbers come from, [profile] for which sizes engines are built.
"""

import dataclasses
import difflib
import hashlib
import json
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from looprnn.errors import SpecError

GATES: Final = {"rnn": "h", "lstm": "ifgo"}  # house order, PyTorch's
DIRECTIONS: Final = {
    "forward": ("forward",),
    "reverse": ("reverse",),
    "bidirectional": ("forward", "reverse"),
}
ACTIVATIONS: Final = ("tanh", "relu")


def _one_of(what: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise SpecError(
            f"{what} must be one of {', '.join(choices)}; got {value!r}{_near(value, choices)}"
        )


def _finite(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _near(value: object, choices: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(str(value), choices, n=1)
    return f". Did you mean {close[0]!r}?" if close else ""


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
        if self.seed is not None and (type(self.seed) is not int or self.seed < 0):
            raise SpecError(f"weights.seed must be a whole number of at least 0, got {self.seed!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RNNSpec:
    """One recurrent layer.

    h_0, c_0 are the values every element of the initial states takes when a request brings none.
    Raises SpecError, with the value, for anything that cannot be built.
    """

    name: str
    cell: Literal["rnn", "lstm"]
    input_size: int
    hidden_size: int
    direction: Literal["forward", "reverse", "bidirectional"] = "forward"
    activation: Literal["tanh", "relu"] = "tanh"
    h_0: float = 0.0
    c_0: float = 0.0
    profile: Profile = field(default_factory=Profile)
    weights: WeightSource

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", str(self.name)):
            raise SpecError(
                f"name must be letters, digits, _ and -, beginning with a letter; got {self.name!r}"
            )
        _one_of(f"{self.name}: cell", self.cell, tuple(GATES))
        _one_of(f"{self.name}: direction", self.direction, tuple(DIRECTIONS))
        _one_of(f"{self.name}: activation", self.activation, ACTIVATIONS)
        for size in ("input_size", "hidden_size"):
            value = getattr(self, size)
            if type(value) is not int or value < 1:
                raise SpecError(
                    f"{self.name}: {size} must be a whole number of at least 1, got {value!r}"
                )
        for state in ("h_0", "c_0"):
            value = getattr(self, state)
            if not _finite(value):
                raise SpecError(f"{self.name}: {state} must be a finite number, got {value!r}")
        if self.cell == "lstm" and self.activation != "tanh":
            raise SpecError(
                f"{self.name}: an lstm has the activation tanh, got {self.activation!r}"
            )
        if self.cell == "rnn" and self.c_0 != 0:
            raise SpecError(f"{self.name}: an rnn has no c_0, got {self.c_0!r}")

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

    @property
    def input_names(self) -> tuple[str, ...]:
        return ("input", *(f"{s}_0" for s in self.states))

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("output", *(f"{s}_n" for s in self.states))

    @property
    def output_size(self) -> int:
        """D·H, the last axis of output."""
        return len(self.directions) * self.hidden_size

    def shapes(self, batch: int, time: int) -> dict[str, tuple[int, int, int]]:
        """The shape of every input and output for B rows and T steps."""
        state = (batch, len(self.directions), self.hidden_size)
        return {
            "input": (batch, time, self.input_size),
            "output": (batch, time, self.output_size),
            **{f"{s}_{end}": state for s in self.states for end in ("0", "n")},
        }

    def initial_states(self, batch: int) -> dict[str, NDArray[np.float32]]:
        """h_0, c_0 [B, D, H] of a request that brings none."""
        return {
            name: np.full(self.shapes(batch, 1)[name], getattr(self, name), np.float32)
            for name in self.input_names[1:]
        }

    def network_dict(self) -> dict[str, Any]:
        """What decides the engine's bytes besides the weights themselves, as plain JSON values."""
        fields = dataclasses.asdict(self)
        del fields["weights"]
        return fields

    def digest(self) -> str:
        """SHA-256 of network_dict(): equal digests mean that an engine need not be rebuilt."""
        text = json.dumps(self.network_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def from_network_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of network_dict(), for readers of engine cards, where weights are baked
        in.
        """
        profile = Profile(**{axis: Range(**sizes) for axis, sizes in fields["profile"].items()})
        baked = WeightSource(constant=0.0)
        return cls(**{**fields, "profile": profile, "weights": baked})


def load_spec(path: Path) -> RNNSpec:
    """Read one variant. Raises SpecError naming the file and the line or key, and the nearest valid
    key.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = sorted(p.stem for p in path.parent.glob("*.toml"))
        hint = f" There are: {', '.join(there)}." if there else ""
        raise SpecError(f"{path}: no such variant.{hint}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise SpecError(f"{path}: {error}") from error  # tomllib names line and column
    try:
        table.setdefault("name", path.stem)
        if table["name"] != path.stem:
            raise SpecError(f"name is {table['name']!r}, but the file is called {path.name}")
        _check_keys(table, RNNSpec)
        return RNNSpec(
            **{
                **table,
                "profile": _profile(table.get("profile", {})),
                "weights": _weight_source(table.get("weights", {}), path.parent),
            }
        )
    except (SpecError, TypeError) as error:
        raise SpecError(f"{path}: {error}") from error


def _check_keys(table: Any, cls: type, where: str = "") -> None:
    if not isinstance(table, dict):
        raise SpecError(f"[{where}] must be a table, got {table!r}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in table:
        if key not in fields:
            place = f" in [{where}]" if where else ""
            near = _near(key, tuple(fields)) or f". Valid keys: {', '.join(fields)}"
            raise SpecError(f"unknown key {key!r}{place}{near}")
    missing = [
        name
        for name, f in fields.items()
        if f.default is f.default_factory is dataclasses.MISSING and name not in table
    ]
    if missing and not where:
        raise SpecError(f"missing {', '.join(missing)}")


def _profile(table: Any) -> Profile:
    _check_keys(table, Profile, "profile")
    for axis, sizes in table.items():
        if not isinstance(sizes, list) or len(sizes) != 3:
            raise SpecError(f"profile.{axis} must be [min, opt, max], got {sizes!r}")
    return Profile(**{axis: Range(*sizes) for axis, sizes in table.items()})


def _weight_source(table: Any, folder: Path) -> WeightSource:
    _check_keys(table, WeightSource, "weights")
    if "file" in table:
        table = {**table, "file": folder / str(table["file"])}
    return WeightSource(**table)
