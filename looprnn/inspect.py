"""looprnn inspect: what is inside a variant, a weights file, a trained model, a version or a plan.

FLOPs are those of one step of one row: 2 for each multiply-add of W·x, R·h, the projection and the
head; the gates' own few are left out. A head on the last state runs once a sequence, not once a
step.
"""

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from looprnn import engines, importers, repository, weights
from looprnn.card import CARDS, Cards
from looprnn.errors import EngineError, EngineMissing, LoopRNNError, WeightsError
from looprnn.inspect_tables import Found, show
from looprnn.spec import Activation, RNNSpec
from looprnn.stream import check_model, stream_name, variant_of
from looprnn.variants import load_spec

COUNTED: Final = "2 for each multiply-add of W·x, R·h, projection and head"
PLANS: Final = {"model.plan": "tensorrt", "model.rtx.plan": "tensorrt_rtx", "model.fused": "fused"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        metavar="NAME|FILE",
        help=f"a variant; a .toml; {', '.join(importers.MODULES)}; engine.json, a version's folder "
        "or a plan",
    )
    parser.add_argument("--layer", metavar="PREFIX", help="which of a file's recurrent layers")
    parser.add_argument("--json", action="store_true", help="JSON alone, for machines")


def run(options: argparse.Namespace, console: Console) -> int:
    """0 if it could be read; several layers and none chosen are an answer, too."""
    found = look(options.what, options.variants, options.repository, options.layer)
    if options.json:
        console.out(json.dumps(found, indent=2, allow_nan=False), highlight=False)
    else:
        show(found, console)
    return 0


def look(what: str, variants: Path, folder: Path, layer: str | None = None) -> Found:
    """Everything that is known of `what`, as plain JSON values. Raises LoopRNNError."""
    path = Path(what)
    variant = variants / f"{variant_of(what)}.toml"
    if not path.suffix and variant.is_file():
        return _variant(variant, folder, what)
    if path.is_dir():
        return _version(_version_of(path))
    if path.name == CARDS:
        return _version(path.parent)
    if path.suffix in (".plan", ".fused"):
        return _plan(path)
    if path.suffix in importers.MODULES:
        return _trained(path, layer)
    if path.suffix == ".toml" or not path.exists():
        path = path if path.suffix == ".toml" else variant
        return _variant(path, folder, path.stem)
    raise WeightsError(
        f"{path}: nothing that looprnn reads; known are {', '.join(importers.MODULES)}, .toml, "
        f".plan, .fused, {CARDS} and a version's folder"
    )


def _version_of(folder: Path) -> Path:
    """The folder itself, or the newest version in a model's. Raises EngineMissing."""
    if (folder / CARDS).is_file():
        return folder
    if versions := repository.built_versions(folder):
        return folder / str(versions[-1])
    if (folder / "config.pbtxt").is_file():
        raise EngineMissing(
            f"{folder}: nothing was built. Type: python build_engines.py --variant "
            f"{variant_of(folder.resolve().name)}"
        )
    raise EngineMissing(f"{folder}: neither a model's folder nor a version's, with {CARDS} in it")


# What each kind of thing holds


def _variant(path: Path, folder: Path, model: str) -> Found:
    """A variant, and what was built of it: of its stream model, if that is the one asked for."""
    spec = load_spec(path)
    check_model(spec, model)
    found = {"kind": "variant", "file": str(path), **described(spec), "engines": [], "notes": []}
    source = dataclasses.asdict(spec.weights)
    if spec.weights.constant is None:
        del source["bias"]
    found["weights"] = {k: str(v) for k, v in source.items() if v is not None}
    newest = max(repository.built_versions(folder / model), default=None)
    if newest is None:
        found["notes"] += [f"not built: python build_engines.py --variant {spec.name}"]
        return found
    version = folder / model / str(newest)
    try:
        cards = Cards.read(version)
        found |= {"version": newest, "engines": _cards(cards, version)}
        digests = (spec.digest(), weights.digest(weights.load_weights(spec)))
    except LoopRNNError as error:
        found["notes"] += [str(error)]
        return found
    for name, card in cards.engines.items():
        if (card.spec_digest, card.weights_digest) != digests:
            rebuild = f"rebuild: python build_engines.py --variant {spec.name}"
            found["notes"] += [f"{name} was built from another spec or weights; {rebuild}"]
    return found


def _version(folder: Path) -> Found:
    cards = Cards.read(folder)
    return {"kind": "version", "file": str(folder), **described(cards.spec),
            "engines": _cards(cards, folder), "notes": []}  # fmt: skip


def _plan(path: Path) -> Found:
    """A plan's card and network, from the engine.json beside it, and TensorRT's own words; or a
    fused engine's.
    """
    if not path.is_file():
        raise EngineMissing(f"{path}: no such file")
    found: Found = {"kind": "plan", "file": str(path), "bytes": path.stat().st_size, "engines": []}
    found |= {"notes": [], "inspector": None}
    name = PLANS.get(path.name, "tensorrt_rtx" if path.name.endswith(".rtx.plan") else "tensorrt")
    try:
        cards = Cards.read(path.parent)
        own = {n: card for n, card in cards.engines.items() if card.file == path.name}
        if not own:
            found["notes"] += [f"{path.parent / CARDS} has no card for it"]
        for n in own:
            name = n
            found |= described(cards.spec)
        found["engines"] = _cards(dataclasses.replace(cards, engines=own), path.parent)
    except EngineError as error:
        found["notes"] += [f"no card: {error}"]
    if name == "fused":
        return found
    try:
        found["inspector"] = inspected(name, path)
    except LoopRNNError as error:
        found["notes"] += [f"TensorRT's inspector cannot run here: {error}"]
    return found


def _trained(path: Path, layer: str | None) -> Found:
    """A file that an importer reads: the layer it suggests, or the list of those it has."""
    found: Found = {"kind": "trained", "file": str(path), "engines": [], "notes": []}
    if path.is_file():
        found["bytes"] = path.stat().st_size
    if path.suffix == ".safetensors":
        from looprnn.importers.torch_file import in_safetensors

        tensors = in_safetensors(path)  # raises for what is no such file
        found["arrays"] = [_array(n, t.shape, t.dtype) for n, t in tensors.items()]
    try:
        imported = importers.read(path, name="layer", layer=layer)
    except LoopRNNError as error:
        several = layer is None and "--layer " in str(error)
        if not several and path.suffix != ".safetensors":
            raise
        return {**found, "notes": [str(error)]}
    arrays = found.get("arrays")
    found |= described(imported.spec)
    if arrays:
        found["arrays"] = arrays  # what the file holds, not what the spec needs
    found["name"] = path.stem
    found["notes"] = [*imported.notes, f"looprnn import {path} --name NAME makes it a variant"]
    return found


def described(spec: RNNSpec) -> Found:
    """A spec in numbers: layers, arrays, states, FLOPs."""
    shapes = weights.shapes(spec)
    parameters = sum(math.prod(shape) for shape in shapes.values())
    once = spec.head is not None and spec.head.on == "last"
    head = 2 * spec.head.size * spec.head_input if spec.head else 0
    layers = [_layer(spec, k) for k in range(len(spec.layers))]
    every = sum(layer["flops_per_step"] for layer in layers)
    one, two = spec.shapes(1, 1), spec.shapes(1, 2)
    return {
        "name": spec.name,
        "input_size": spec.input_size,
        "vocabulary": spec.vocabulary,
        "lengths": spec.lengths,
        "padding": spec.padding,
        "precision": spec.precision,
        "refit": spec.refit,
        "stream": _stream(spec) if spec.streaming else None,
        "layers": layers,
        "head": dataclasses.asdict(spec.head) if spec.head else None,
        "arrays": [_array(n, shape, "F32") for n, shape in shapes.items()],
        "parameters": parameters,
        "weight_bytes": 4 * parameters,
        "flops": {
            "counted": COUNTED,
            "per_step_and_row": every + (0 if once else head),
            "per_sequence_and_row": head if once else 0,
        },
        "inputs": {n: _dims(one[n], two[n]) for n in spec.input_names},
        "outputs": {n: _dims(one[n], two[n]) for n in spec.output_names},
        "states": {
            f"{s}_0": {"value": getattr(spec, f"{s}_0"), "dims": list(spec.state_dims(s))}
            for s in spec.states
        },
        "profile": dataclasses.asdict(spec.profile),
    }


def _stream(spec: RNNSpec) -> Found:
    numbers = sum(math.prod(spec.state_dims(s)) for s in spec.states)
    return {"model": stream_name(spec.name), "state_bytes": 4 * numbers,
            **dataclasses.asdict(spec.stream)}  # fmt: skip


def _layer(spec: RNNSpec, k: int) -> Found:
    layer = spec.layers[k]
    shapes = weights.layer_shapes(layer, spec.layer_input(k))
    matrices = [shape for name, shape in shapes.items() if len(shape) == 2]
    directions = len(layer.directions)
    return {
        "cell": layer.cell,
        "direction": layer.direction,
        "input_size": spec.layer_input(k),
        "hidden_size": layer.hidden_size,
        "output_size": layer.output_size,
        "gates": layer.gates,
        "activations": {d: [_activation(a) for a in layer.activations_of(d)]
                        for d in layer.directions},
        "options": layer.options,
        "parameters": directions * sum(math.prod(shape) for shape in shapes.values()),
        "flops_per_step": directions * sum(2 * math.prod(shape) for shape in matrices),
    }  # fmt: skip


def _activation(activation: Activation) -> str:
    """tanh; elu(0.7) where its numbers are not 0."""
    numbers = [activation.alpha or 0.0, activation.beta or 0.0]
    while numbers and not numbers[-1]:
        numbers.pop()
    return (
        f"{activation.kind}({', '.join(f'{n:g}' for n in numbers)})" if numbers else activation.kind
    )


def _array(name: str, shape: tuple[int, ...], dtype: str) -> Found:
    return {"name": name, "shape": list(shape), "dtype": dtype, "numbers": math.prod(shape)}


def _dims(one: tuple[int, ...], two: tuple[int, ...]) -> list[int | str]:
    """["B", "T", 7]"""
    return ["B", *("T" if a != b else a for a, b in zip(one[1:], two[1:], strict=True))]


def _cards(cards: Cards, folder: Path) -> list[Found]:
    found = []
    for name, card in cards.engines.items():
        state: Found = {"bytes": None, "problem": None, "runs_here": False, "plan": []}
        try:
            state["bytes"] = card.check_file(folder).stat().st_size
            state["problem"] = engines.cannot_run(name, card)
            state["runs_here"] = state["problem"] is None
            state["plan"] = engines.get(name).plan(folder / card.file)
        except EngineError as error:
            state["problem"] = str(error)
        found.append(
            {**dataclasses.asdict(card), "engine": name, "target": card.target,
             "largest_difference": card.worst if card.difference else None, **state}
        )  # fmt: skip
    return found


def inspected(name: str, path: Path) -> Any:
    """What trt.EngineInspector says of a plan, as JSON. Raises EngineError where the plan cannot be
    loaded here.
    """
    from looprnn.engines.tensorrt import make_logger, no_gpu

    trt: Any = engines.get(name).trt  # type: ignore[attr-defined]
    if reason := no_gpu():
        raise EngineError(reason)
    log = make_logger(trt)
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise EngineError(f"{path}: TensorRT cannot load this plan: {'; '.join(log.errors)}")
    inspector = engine.create_engine_inspector()
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text
