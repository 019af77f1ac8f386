"""A variant's TOML ↔ RNNSpec.

Top-level keys are RNNSpec's and, since most stacks are uniform, a Layer's: `cell = "lstm"`,
`hidden_size = 256`, `num_layers = 2`. Where layers differ, each [[layers]] table holds what differs
from the top level.
"""

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

from looprnn.errors import SpecError
from looprnn.layer import near
from looprnn.profile import sizes
from looprnn.spec import Activation, Head, Layer, Profile, Range, RNNSpec, Stream, WeightSource
from looprnn.stream import variant_of

LAYER_KEYS = tuple(f.name for f in dataclasses.fields(Layer))
MISSING = {
    "weights": ": a table [weights] with file = 'NAME.safetensors', or a seed, or a constant",
    "input_size": ": the features of a step",
}
# What a variant does not say: key → who does.
ELSEWHERE = {
    "engine": ": every engine is built. Which one serves is the parameter engine in the model's "
    "config.pbtxt; which are built, python build_engines.py --engine NAME"
}
SPEC_KEYS = tuple(f.name for f in dataclasses.fields(RNNSpec) if f.name != "layers")


def load_spec(path: Path) -> RNNSpec:
    """Read one variant. Raises SpecError naming the file and the line or key, and the nearest valid
    key.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = sorted(p.stem for p in path.parent.glob("*.toml"))
        hint = f" There are: {', '.join(there)}." if there else ""
        if not path.parent.is_dir():
            hint = f" There is no folder {path.parent}. Type it where that is, or --variants DIR"
        if (variant := variant_of(path.stem)) != path.stem and variant in there:
            hint = f" It is built along with its variant: {variant}."
        raise SpecError(f"{path}: no such variant.{hint}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise SpecError(f"{path}: {error}") from error  # tomllib names line and column
    try:
        if table.get("name", path.stem) != path.stem:
            raise SpecError(f"name is {table['name']!r}, but the file is called {path.name}")
        return _spec({**table, "name": path.stem}, path.parent)
    except (SpecError, TypeError) as error:
        raise SpecError(f"{path}: {error}") from error


def _spec(table: dict[str, Any], folder: Path) -> RNNSpec:
    _known_keys(table, (*SPEC_KEYS, *LAYER_KEYS, "num_layers", "layers"))
    shared = {key: table[key] for key in LAYER_KEYS if key in table}
    own = {key: value for key, value in table.items() if key in SPEC_KEYS}
    for key in ("weights", "input_size"):
        if key not in own:
            raise SpecError(f"missing {key}{MISSING[key]}")
    if "head" in own:
        head = _table(own["head"], Head, "head")
        if "size" not in head:
            raise SpecError("missing size in [head]")
        own["head"] = Head(**head)
    if "stream" in own:
        own["stream"] = Stream(**_table(own["stream"], Stream, "stream"))
    own["profile"] = _profile(own.get("profile", {}))
    own["weights"] = _weight_source(own["weights"], folder)
    return RNNSpec(**own, layers=_layers(table, shared))


def _layers(table: dict[str, Any], shared: dict[str, Any]) -> tuple[Layer, ...]:
    if "layers" in table and "num_layers" in table:
        raise SpecError("num_layers is for equal layers; with [[layers]] leave it out")
    given = table.get("layers", [{}] * _count(table.get("num_layers", 1)))
    if not isinstance(given, list):
        raise SpecError(f"[[layers]] must be a list of tables, got {given!r}")
    return tuple(_layer({**shared, **_table(own, Layer, "layers")}) for own in given)


def _layer(table: dict[str, Any]) -> Layer:
    for key in ("cell", "hidden_size"):
        if key not in table:
            raise SpecError(f"missing {key}")
    for key in ("activations", "activations_reverse"):
        if key in table:
            table[key] = _activations(key, table[key])
    return Layer(**table)


def _activations(key: str, given: Any) -> tuple[Activation, ...]:
    if not isinstance(given, list) or not all(isinstance(a, str | dict) for a in given):
        raise SpecError(f"{key} must be a list such as ['sigmoid', 'tanh'], got {given!r}")
    return tuple(
        Activation(a) if isinstance(a, str) else Activation(**_table(a, Activation, key))
        for a in given
    )


def _profile(table: Any) -> Profile:
    for axis, values in _table(table, Profile, "profile").items():
        if not isinstance(values, list) or len(values) != 3:
            raise SpecError(f"profile.{axis} must be [min, opt, max], got {values!r}")
    return Profile(**{axis: sizes(axis, values) for axis, values in table.items()})


def _weight_source(table: Any, folder: Path) -> WeightSource:
    table = _table(table, WeightSource, "weights")
    if "file" in table:
        table = {**table, "file": folder / str(table["file"])}
    return WeightSource(**table)


def _count(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise SpecError(f"num_layers must be a whole number of at least 1, got {value!r}")
    return value


def _table(table: Any, cls: type, where: str) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise SpecError(f"[{where}] must be a table, got {table!r}")
    _known_keys(table, tuple(f.name for f in dataclasses.fields(cls)), f" in [{where}]")
    return table


def _known_keys(table: dict[str, Any], valid: tuple[str, ...], place: str = "") -> None:
    for key in table:
        if key not in valid:
            hint = ELSEWHERE.get(key) or near(key, valid) or f". Valid keys: {', '.join(valid)}"
            raise SpecError(f"unknown key {key!r}{place}{hint}")


def dump_spec(spec: RNNSpec) -> str:
    """The TOML that load_spec reads back as this spec; values that are the default are left out."""
    lines = []
    for key in SPEC_KEYS:
        value = getattr(spec, key)
        if key not in ("name", "profile", "head", "stream", "weights") and not _is_default(
            RNNSpec, key, value
        ):
            lines.append(f"{key} = {_toml(value)}")
    equal = len(set(spec.layers)) == 1
    if equal:
        lines += _layer_lines(spec.layers[0])
        lines += [f"num_layers = {len(spec.layers)}"] if len(spec.layers) > 1 else []
    for layer in () if equal else spec.layers:
        lines += ["", "[[layers]]", *_layer_lines(layer)]
    for name in ("head", "weights", "stream", "profile"):
        part = getattr(spec, name)
        if part is not None and part != Stream():
            lines += ["", f"[{name}]"]
            lines += [
                f"{f.name} = {_toml(getattr(part, f.name))}"
                for f in dataclasses.fields(part)
                if not _is_default(type(part), f.name, getattr(part, f.name))
            ]
    return "\n".join(lines) + "\n"


def _layer_lines(layer: Layer) -> list[str]:
    usual = Layer(cell=layer.cell, hidden_size=layer.hidden_size)
    lines = []
    for key in LAYER_KEYS:
        value = getattr(layer, key)
        same_as = layer.activations if key == "activations_reverse" else getattr(usual, key)
        if key in ("cell", "hidden_size") or value != same_as:
            lines.append(f"{key} = {_toml(value)}")
    return lines


def _is_default(cls: type, key: str, value: Any) -> bool:
    (found,) = (f for f in dataclasses.fields(cls) if f.name == key)
    return found.default is not dataclasses.MISSING and bool(value == found.default)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Path):
        return _toml(value.name)
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, Range):
        return str(value)
    if isinstance(value, Activation):
        if value == _bare(value.kind):
            return _toml(value.kind)
        return f"{{ kind = {_toml(value.kind)}, alpha = {value.alpha!r}, beta = {value.beta!r} }}"
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return repr(value)


def _bare(kind: str) -> Activation | None:
    try:
        return Activation(kind)
    except SpecError:
        return None
