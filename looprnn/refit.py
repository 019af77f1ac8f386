"""looprnn refit: new weights of the same spec, without a rebuild, as the next version.

A plan built with refit = true takes arrays by the names of its constants. Those arrays are not the
weights: they are transposed, summed and rounded. So the code of the build makes them: it fills a
network that is thrown away (network.define), whose constants have the same names. A plan of another
looprnn is refused. An engine that is no plan is rebuilt, and each is proved against the reference.
"""

import argparse
import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, SpinnerColumn, TextColumn
from rich.progress import Progress as Bar
from rich.table import Table

from looprnn import engines, repository, weights
from looprnn.build import prove
from looprnn.card import Cards, EngineCard, file_digest, maker
from looprnn.commands import whole
from looprnn.engines import Engine, Progress
from looprnn.engines.tensorrt_refit import opened
from looprnn.errors import EngineError, EngineMismatch, EngineMissing, SpecError, WeightsError
from looprnn.mirror import mirror
from looprnn.network import define
from looprnn.spec import RNNSpec, WeightSource
from looprnn.variants import load_spec
from looprnn.weights import Weights

PLANS: Final = ("tensorrt", "tensorrt_rtx")

Constants = dict[str, NDArray[Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a variant with refit = true")
    parser.add_argument(
        "--weights", type=Path, required=True, metavar="FILE", help="a .safetensors of its arrays"
    )
    parser.add_argument(
        "--keep", type=whole(0), default=1, metavar="N", help="old versions to keep (default: 1)"
    )


def run(options: argparse.Namespace, console: Console) -> int:
    """0 if the next version is there, or the newest has these weights already."""
    spec = load_spec(options.variants / f"{options.name}.toml")
    arrays = read(spec, options.weights)
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def show(phase: str, step: int, steps: int) -> None:
            bar.update(task, description=f"{spec.name}: {phase}", completed=step, total=steps)

        version, cards = refit(spec, arrays, options.repository, progress=show, keep=options.keep)
    if not cards:
        console.print(f"{spec.name}/{version} has these weights already", soft_wrap=True)
        return 0
    table = Table("engine", "", "difference", box=SIMPLE_HEAD, pad_edge=False)
    for name, card in cards.items():
        table.add_row(name, "refitted" if name in PLANS else "rebuilt", f"{card.worst or 0:.1e}")
    console.print(f"{spec.name}/{version}")
    console.print(table)
    if note := differs_from_variant(spec, arrays, options):
        console.print(escape(note), soft_wrap=True, highlight=False)
    return 0


def read(spec: RNNSpec, file: Path) -> Weights:
    """Raises WeightsError, naming the array that does not fit the spec."""
    if file.suffix != ".safetensors":
        raise WeightsError(
            f"{file}: refit reads .safetensors with the variant's array names. Make one: "
            f"looprnn import {file} --name OTHER writes OTHER.safetensors"
        )
    return weights.load_weights(dataclasses.replace(spec, weights=WeightSource(file=file)))


def differs_from_variant(spec: RNNSpec, arrays: Weights, options: argparse.Namespace) -> str | None:
    """A sentence where the variant still names other weights, to which a build would go back."""
    try:
        if weights.digest(weights.load_weights(spec)) == weights.digest(arrays):
            return None
    except WeightsError:
        pass  # its file is gone: all the more to say
    toml = options.variants / f"{spec.name}.toml"
    return (
        f"{toml} still names other weights: the next build goes back to them. To keep these, copy "
        f'{options.weights} beside it and write there: [weights] file = "{options.weights.name}"'
    )


def refit(
    spec: RNNSpec, arrays: Weights, folder: Path, *, progress: Progress, keep: int = 1
) -> tuple[int, dict[str, EngineCard]]:
    """The new version and its cards; no cards where the newest version has these weights already.

    All engines of the newest version come along, or there is no new version. Raises SpecError,
    EngineError or ParityError.
    """
    if not spec.refit:
        raise SpecError(
            f"{spec.name}: refit is not set. Write refit = true into {spec.name}.toml, then: "
            f"python build_engines.py --variant {spec.name}"
        )
    newest = max(repository.built_versions(folder / spec.name), default=None)
    if newest is None:
        raise EngineMissing(
            f"{folder / spec.name}: nothing was built. "
            f"Type: python build_engines.py --variant {spec.name}"
        )
    with repository.locked(folder, spec.name) as model:
        newest = max(repository.built_versions(model))
        old = model / str(newest)
        cards = Cards.read(old)
        made_of = (spec.digest(), weights.digest(arrays))
        made = [(c.spec_digest, c.weights_digest) for c in cards.engines.values()]
        if made and set(made) == {made_of}:
            mirror(folder, spec, keep)  # a refit that was killed may have left it behind
            return newest, {}
        check(spec, cards, old)
        with repository.staged_version(folder, spec.name) as staging:
            renewed = {}
            for name, card in cards.engines.items():
                make = refitted if name in PLANS else rebuilt
                make(engines.get(name), spec, arrays, card, old, staging, progress)
                renewed[name] = proved(name, spec, arrays, card, made_of[1], staging, progress)
            Cards(spec=spec, engines=renewed).write(staging)
        version = max(repository.built_versions(model))
        repository.prune(model, keep)
        mirror(folder, spec, keep)
        return version, renewed


def check(spec: RNNSpec, cards: Cards, version: Path) -> None:
    """Raises EngineError unless every engine of this version can take new weights here."""
    rebuild = f"Type: python build_engines.py --variant {spec.name}"
    if not any(name in PLANS for name in cards.engines):
        raise EngineMissing(
            f"{version}: holds no TensorRT plan, only {', '.join(cards.engines) or 'nothing'}: "
            f"there is nothing to refit. Put the weights into the variant and rebuild. {rebuild}"
        )
    for name, card in cards.engines.items():
        card.check_file(version)
        if card.spec_digest != spec.digest():
            raise EngineMismatch(f"{version}: {name} was built from another spec. {rebuild}")
        if name in PLANS and card.looprnn != maker():
            raise EngineMismatch(
                f"{version}: {name} was built by looprnn {card.looprnn or 'of unknown version'}, "
                f"this is {maker()}: its constants may have changed. {rebuild}"
            )
        if reason := engines.cannot_run(name, card):
            raise EngineError(f"{version}: {name} cannot be refitted here: {reason}")


def rebuilt(
    engine: Engine,
    spec: RNNSpec,
    arrays: Weights,
    card: EngineCard,
    old: Path,
    staging: Path,
    progress: Progress,
) -> None:
    """An engine that is no plan; it is quick."""
    if reason := engine.cannot_build():
        raise EngineError(f"cannot rebuild {engine.name}: {reason}")
    engine.build(spec, arrays, staging / card.file, progress=progress, workspace=0)


def refitted(
    engine: Any,
    spec: RNNSpec,
    arrays: Weights,
    card: EngineCard,
    old: Path,
    staging: Path,
    progress: Progress,
) -> None:
    progress(f"refitting {engine.name}", 0, 1)
    with opened(engine.trt, old / card.file) as plan:
        plan.take(constants(engine.trt, spec, arrays), essential(engine.trt, spec))
        (staging / card.file).write_bytes(plan.serialized())
    progress(f"refitting {engine.name}", 1, 1)


def proved(
    name: str,
    spec: RNNSpec,
    arrays: Weights,
    card: EngineCard,
    digest: str,
    staging: Path,
    progress: Progress,
) -> EngineCard:
    """The new engine's card. Raises ParityError if it is not the reference's equal."""
    engine = engines.get(name)
    progress("comparing with the reference", 0, 1)
    found = prove(engine, staging / card.file, spec, arrays, card.precision)
    progress("comparing with the reference", 1, 1)
    return dataclasses.replace(
        card,
        sha256=file_digest(staging / card.file),
        weights_digest=digest,
        libraries=engine.libraries(),
        looprnn=maker(),
        built=datetime.now(UTC).isoformat(timespec="seconds"),
        difference=found,
    )


# The constants of a plan


def constants(trt: Any, spec: RNNSpec, arrays: Weights) -> Constants:
    """Name → array of every constant that the build would make of these weights."""
    from looprnn.engines.tensorrt import make_logger

    builder = trt.Builder(make_logger(trt))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    found = define(trt, network, spec, arrays)
    named = dict(found)
    if len(named) != len(found):
        raise EngineError(f"{spec.name}: two constants of its network share a name")
    return named


def essential(trt: Any, spec: RNNSpec) -> set[str]:
    """The constants that depend on the weights: weights of 0 and of 1 give different ones."""
    zeros, ones = (
        constants(
            trt, spec, {n: np.full(s, k, np.float32) for n, s in weights.shapes(spec).items()}
        )
        for k in (0, 1)
    )
    return {name for name, array in zeros.items() if not np.array_equal(array, ones[name])}
