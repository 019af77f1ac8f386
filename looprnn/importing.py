"""looprnn import: a trained model's file → a variant that build_engines.py takes from there."""

import argparse
import dataclasses
import math
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from looprnn import importers
from looprnn.errors import SpecError, WeightsError
from looprnn.profile import sizes
from looprnn.spec import Layer, RNNSpec
from looprnn.weights import shapes

SIZES = ("MIN", "OPT", "MAX")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", type=Path, metavar="FILE", help=f"one of {', '.join(importers.MODULES)}"
    )
    parser.add_argument("--name", required=True, help="what the variant will be called")
    parser.add_argument("--layer", metavar="PREFIX", help="which of the file's recurrent layers")
    parser.add_argument(
        "--lengths", action="store_true", help="requests may bring rows of different lengths"
    )
    parser.add_argument(
        "--streaming", action="store_true", help="serve live streams, too; implies --lengths"
    )
    parser.add_argument("--batch", type=int, nargs=3, metavar=SIZES, help="rows a request may have")
    parser.add_argument("--time", type=int, nargs=3, metavar=SIZES, help="steps they may have")
    parser.add_argument("--force", action="store_true", help="replace a variant of that name")


def run(options: argparse.Namespace, console: Console) -> int:
    """Writes variants/NAME.toml and NAME.safetensors. Raises SpecError or WeightsError, and then
    writes neither.
    """
    _check_free(options.file, options.variants, options.name, options.force)
    with console.status(f"reading {escape(str(options.file))}"):
        imported = importers.read(options.file, name=options.name, layer=options.layer)
        spec = _with_options(imported.spec, options)
        path = importers.write(dataclasses.replace(imported, spec=spec), options.variants)
    for line in (f"{path}: {summary(spec)}", *imported.notes):
        console.print(escape(line), soft_wrap=True, highlight=False)
    console.print(f"Build it: python build_engines.py --variant {spec.name}", soft_wrap=True)
    return 0


def _check_free(file: Path, variants: Path, name: str, force: bool) -> None:
    there = [p for p in (variants / f"{name}.toml", variants / f"{name}.safetensors") if p.exists()]
    if file.exists() and any(p.samefile(file) for p in there):
        raise WeightsError(
            f"{file}: the import would write over it. Take another --name, or move it elsewhere"
        )
    if there and not force:
        raise SpecError(
            f"{there[0]}: there is a variant of that name. Take another --name; --force replaces it"
        )


def _with_options(spec: RNNSpec, options: argparse.Namespace) -> RNNSpec:
    axes = {axis: getattr(options, axis) for axis in ("batch", "time")}
    given = {axis: sizes(axis, values) for axis, values in axes.items() if values}
    return dataclasses.replace(
        spec,
        lengths=spec.lengths or options.lengths or options.streaming,
        streaming=options.streaming,
        profile=dataclasses.replace(spec.profile, **given) if given else spec.profile,
    )


def summary(spec: RNNSpec) -> str:
    """The stack in one line: input → layers → head, and its parameters."""
    into = f"{spec.vocabulary} ids → {spec.input_size}" if spec.vocabulary else f"{spec.input_size}"
    parts = [into, *_runs(spec.layers)]
    if spec.head:
        parts.append(f"head {spec.head.size} on {spec.head.on}")
    count = sum(math.prod(shape) for shape in shapes(spec).values())
    serves = (", with lengths" if spec.lengths else "") + (", streaming" if spec.streaming else "")
    return f"{' → '.join(parts)}{serves}; {count:,} parameters"


def _runs(layers: tuple[Layer, ...]) -> list[str]:
    """Equal layers that follow each other are one: "2 × lstm 64"."""
    runs: list[tuple[Layer, int]] = []
    for layer in layers:
        if runs and runs[-1][0] == layer:
            runs[-1] = (layer, runs[-1][1] + 1)
        else:
            runs.append((layer, 1))
    return [(f"{count} × " if count > 1 else "") + _words(layer) for layer, count in runs]


def _words(layer: Layer) -> str:
    direction = "" if layer.direction == "forward" else f" {layer.direction}"
    options = "".join(f", {name} = {str(value).lower()}" for name, value in layer.options.items())
    return f"{layer.cell} {layer.hidden_size}{direction}{options}"
