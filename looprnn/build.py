"""The build: for each variant, weights → engines → a new version, each engine proved where this
host can run it.
"""

import dataclasses
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from looprnn import engines, parity, repository, weights
from looprnn.card import Cards, EngineCard, file_digest, maker
from looprnn.engines import ENGINES, Engine, Progress
from looprnn.errors import EngineError, EngineMissing, LoopRNNError, ParityError, WeightsError
from looprnn.mirror import mirror
from looprnn.spec import RNNSpec
from looprnn.stream import stream_name
from looprnn.weights import Weights

WORKSPACE = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one engine of one variant: status is built, unchanged or failed."""

    variant: str
    engine: str
    status: str
    version: int | None = None
    card: EngineCard | None = None
    seconds: float = 0.0
    message: str = ""


def buildable(names: Iterable[str] | None = None) -> tuple[list[Engine], dict[str, str]]:
    """The engines to build, and for the others why not.

    None asks for all that this host can build; an engine asked for by name that it cannot build
    raises EngineError.
    """
    found: list[Engine] = []
    reasons: dict[str, str] = {}
    for name in names or ENGINES:
        try:
            engine = engines.get(name)
            reason = engine.cannot_build()
        except EngineMissing as error:
            reason = str(error)
        if reason is None:
            found.append(engine)
        else:
            reasons[name] = reason
    if names and reasons:
        raise EngineError("; ".join(f"cannot build {name}: {why}" for name, why in reasons.items()))
    if not found:
        raise EngineError("this host can build no engine: " + "; ".join(reasons.values()))
    return found, reasons


def build_variant(
    spec: RNNSpec,
    wanted: Sequence[Engine],
    folder: Path,
    *,
    progress: Progress,
    force: bool = False,
    keep: int = 1,
    workspace: int = WORKSPACE,
) -> list[Outcome]:
    """Bring model_repository/<name> (in `folder`) up to date, and <name>_stream of a variant that
    streams; one Outcome for each wanted engine of each.

    Engines of the newest version that still fit are carried over. A failed engine leaves the others
    alone, unless it differs from the reference; where nothing new was built, no version appears.
    Raises WeightsError.
    """
    try:
        arrays = weights.load_weights(spec)
    except (MemoryError, ValueError) as error:  # NumPy's words for sizes that cannot be held
        raise WeightsError(f"{spec.name}: {error}") from error
    made_of = (spec.digest(), weights.digest(arrays))
    with repository.locked(folder, spec.name) as model:
        newest = max(repository.built_versions(model), default=None)
        current = {} if newest is None else _fitting(model / str(newest), made_of)
        stale = [e for e in wanted if force or _is_stale(e, current.get(e.name))]
        outcomes = [
            Outcome(
                variant=spec.name,
                engine=e.name,
                status="unchanged",
                version=newest,
                card=current[e.name],
            )
            for e in wanted
            if e not in stale
        ]
        if stale:
            outcomes += _build_version(
                spec, arrays, stale, current, folder, made_of, progress, workspace
            )
        built = any(o.status == "built" for o in outcomes)
        # After the rename, at once: a config that is late is mended by the next build, which finds
        # a version that fits; one that is early would stand beside a version it does not fit.
        if current or built:
            repository.write_config(folder, spec)
        if built:
            repository.prune(model, keep)
        if current or built:
            outcomes += _streams(spec, folder, outcomes, keep)
    return outcomes


def _streams(spec: RNNSpec, folder: Path, outcomes: Sequence[Outcome], keep: int) -> list[Outcome]:
    """The same for the variant's stream model, which takes the engines over."""
    if (found := mirror(folder, spec, keep)) is None:
        return []
    version, is_new = found
    return [
        dataclasses.replace(
            o,
            variant=stream_name(spec.name),
            status="built" if is_new else "unchanged",
            version=version,
            seconds=0.0,
        )
        for o in outcomes
        if o.status != "failed"
    ]


def _is_stale(engine: Engine, card: EngineCard | None) -> bool:
    """Whether a build here would make another engine than the card's, which fits the spec."""
    if card is None or (card.libraries, card.looprnn) != (engine.libraries(), maker()):
        return True
    # An engine that names no GPU is for a list of them, and the list is part of maker().
    return card.gpu is not None and engine.cannot_run(card) is not None


def _fitting(version: Path, made_of: tuple[str, str]) -> dict[str, EngineCard]:
    """The cards of a version whose engines are whole and were built from these digests."""
    try:
        cards = Cards.read(version).engines
    except EngineError:
        return {}
    fitting = {}
    for name, card in cards.items():
        try:
            card.check_file(version)
        except EngineError:
            continue
        if (card.spec_digest, card.weights_digest) == made_of:
            fitting[name] = card
    return fitting


def _build_version(
    spec: RNNSpec,
    arrays: Weights,
    stale: Sequence[Engine],
    current: dict[str, EngineCard],
    folder: Path,
    made_of: tuple[str, str],
    progress: Progress,
    workspace: int,
) -> list[Outcome]:
    model = folder / spec.name
    outcomes: list[Outcome] = []
    differs: list[str] = []
    try:
        with repository.staged_version(folder, spec.name) as staging:
            cards: dict[str, EngineCard] = {}
            for engine in stale:
                begin = time.perf_counter()
                try:
                    cards[engine.name] = _build_engine(
                        engine, spec, arrays, staging, made_of, progress, workspace
                    )
                    status, message = "built", ""
                except LoopRNNError as error:
                    status, message = "failed", str(error)
                    differs += [engine.name] if isinstance(error, ParityError) else []
                outcomes.append(
                    Outcome(
                        variant=spec.name,
                        engine=engine.name,
                        status=status,
                        card=cards.get(engine.name),
                        seconds=time.perf_counter() - begin,
                        message=message,
                    )
                )
            if differs or not cards:
                raise _NothingKept
            newest = max(repository.built_versions(model), default=None)
            for name, card in current.items():
                if name not in cards:
                    shutil.copy2(model / str(newest) / card.file, staging / card.file)
                    cards[name] = card
            Cards(spec=spec, engines=cards).write(staging)
    except _NothingKept:
        # They share the weights and the network: what is wrong in one may be wrong in all.
        why = f"not kept: {', '.join(differs)}, of the same weights, differs from the reference"
        return [
            o
            if o.status == "failed"
            else dataclasses.replace(o, status="failed", card=None, message=why)
            for o in outcomes
        ]
    version = max(repository.built_versions(model))
    return [
        o if o.status == "failed" else dataclasses.replace(o, version=version) for o in outcomes
    ]


class _NothingKept(Exception):
    """Leaves the staged version behind."""


def _build_engine(
    engine: Engine,
    spec: RNNSpec,
    arrays: Weights,
    staging: Path,
    made_of: tuple[str, str],
    progress: Progress,
    workspace: int,
) -> EngineCard:
    path = staging / engine.file
    try:
        target = engine.build(spec, arrays, path, progress=progress, workspace=workspace)
        card = EngineCard(
            engine=engine.name,
            file=engine.file,
            sha256=file_digest(path),
            spec_digest=made_of[0],
            weights_digest=made_of[1],
            libraries=engine.libraries(),
            looprnn=maker(),
            built=datetime.now(UTC).isoformat(timespec="seconds"),
            difference=None,
            **target,
        )
        if engine.cannot_run(card):
            return card
        progress("comparing with the reference", 0, 1)
        found = prove(engine, path, spec, arrays, card.precision)
        progress("comparing with the reference", 1, 1)
        return dataclasses.replace(card, difference=found)
    except LoopRNNError:
        path.unlink(missing_ok=True)
        raise


def prove(
    engine: Engine, path: Path, spec: RNNSpec, arrays: Weights, precision: str
) -> dict[str, float]:
    """The largest difference of each output from the reference, over small, typical and odd sizes.

    Raises ParityError, naming the case, if one is over the tolerance.
    """
    batch, steps = spec.profile.batch, spec.profile.time
    cases = {
        (1, steps.min),
        (batch.opt, steps.opt),
        (min(batch.opt + 1, batch.max), min(steps.opt + 3, steps.max)),
    }
    worst = dict.fromkeys(spec.output_names, 0.0)
    with engine.session(path, spec) as session:
        for seed, (rows, length) in enumerate(sorted(cases)):
            inputs = parity.draw_inputs(spec, rows, length, seed)
            found = parity.differences(spec, arrays, inputs, session.run(inputs))
            for name, value in found.items():
                if not parity.agrees(value, precision):
                    raise ParityError(
                        f"{spec.name}: {engine.name} differs from the reference by {value:.2g} "
                        f"in {name} (B={rows}, T={length}); at most "
                        f"{parity.TOLERANCE[precision]:g} is allowed. Not kept."
                    )
                worst[name] = max(worst[name], value)
    return worst
