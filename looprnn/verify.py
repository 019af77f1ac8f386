"""looprnn verify: every engine of a variant that runs here, against the reference.

    random    the profile's least, usual and greatest B and T
    ragged    where the model takes lengths: rows of 0 steps, of T, and between; and only rows of 0
    extreme   zeros, the greatest ids or ±50, and ±1e-6

W·x is rounded in proportion to x, so an input of ±50 is allowed 50 times the tolerance: 5e-4 in
fp32, where an LSTM of 1024 differs by 2e-5 and the smallest wiring bug by 0.07. In the half types
the large input is ±4. The reference is slow on purpose, so a case has at most as many steps as it
computes in SECONDS, unless even one row of T's minimum takes longer.
"""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from looprnn import engines, parity, reference, repository, weights
from looprnn.card import Cards, EngineCard
from looprnn.errors import EngineMissing, LoopRNNError, ParityError
from looprnn.spec import RNNSpec
from looprnn.stream import check_model, variant_of
from looprnn.variants import load_spec
from looprnn.verify_cases import Case, cases
from looprnn.weights import Weights

GREATEST: Final = {"fp16": 65504.0, "fp16_state": 65504.0}  # else float32's

Progressed = Callable[[int, int], None]  # cases done, cases in all


@dataclass(slots=True)
class Output:
    """One output over all cases: its largest difference (parity.difference), measured by what its
    case allows, and that case.

    Where one is over the tolerance: the first such case, and in it the first step and its row; a
    state and a head on the last state have no step. NaN counts as infinite.
    """

    name: str
    difference: float = 0.0
    at_most: float = math.inf
    case: str = ""
    first: dict[str, Any] | None = None


@dataclass(slots=True)
class Verdict:
    """One engine: status is "agrees", "differs", "not run here" or "failed"; why, where it is said.

    skipped holds the cases whose truth the engine's type cannot hold.
    """

    variant: str
    version: int
    engine: str
    status: str
    why: str = ""
    precision: str = ""
    tolerance: float | None = None
    cases: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    outputs: list[Output] = field(default_factory=list)

    @property
    def is_well(self) -> bool:
        return self.status in ("agrees", "not run here")


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be verified: a variant as it is written now, and a model's newest version."""

    spec: RNNSpec
    arrays: Weights
    folder: Path
    cards: Cards

    @property
    def model(self) -> str:
        """The variant's name, or its stream model's."""
        return self.folder.parent.name


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME", help="a variant, or its stream model")
    parser.add_argument("--json", action="store_true", help="JSON alone, for machines")


def run(options: argparse.Namespace, console: Console) -> int:
    """0 if every engine that runs here agrees, and one does; the others are named with why."""
    targets = [find(options.variants, options.repository, name) for name in options.names]
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    verdicts: list[Verdict] = []
    with Progress(*columns, console=console, transient=True, disable=options.json) as bar:
        for target in targets:
            for name, card in target.cards.engines.items():
                task = bar.add_task(f"{target.model}: {name}", total=None)

                def show(done: int, every: int, task: Any = task) -> None:
                    bar.update(task, completed=done, total=every)

                verdicts.append(verify(target, name, card, show))
    compared = any(v.status == "agrees" for v in verdicts)
    well = compared and all(v.is_well for v in verdicts)
    if options.json:
        content = {"well": well, "engines": [_plain(asdict(v)) for v in verdicts]}
        console.out(json.dumps(content, indent=2, allow_nan=False), highlight=False)
    else:
        show_table(verdicts, console)
        if not compared:
            console.print("[red]nothing was compared:[/] no engine agrees, or none runs here")
    return 0 if well else 1


def find(variants: Path, folder: Path, name: str) -> Target:
    """Raises SpecError, WeightsError, EngineMissing or EngineMismatch."""
    spec = load_spec(variants / f"{variant_of(name)}.toml")
    check_model(spec, name)
    newest = max(repository.built_versions(folder / name), default=None)
    if newest is None:
        raise EngineMissing(
            f"{folder / name}: nothing was built. "
            f"Type: python build_engines.py --variant {spec.name}"
        )
    version = folder / name / str(newest)
    return Target(spec, weights.load_weights(spec), version, Cards.read(version))


def stale(target: Target, card: EngineCard) -> str | None:
    """Why the engine is not this variant's any more, or None."""
    spec = target.spec
    changed = [
        what
        for what, built, now in (
            ("spec", card.spec_digest, spec.digest()),
            ("weights", card.weights_digest, weights.digest(target.arrays)),
        )
        if built != now
    ]
    if not changed:
        return None
    return (
        f"built from another {' and other '.join(changed)}; "
        f"rebuild: python build_engines.py --variant {spec.name}"
    )


def verify(target: Target, name: str, card: EngineCard, progress: Progressed) -> Verdict:
    """One engine, over all cases; an engine's error becomes its verdict."""
    verdict = Verdict(target.model, int(target.folder.name), name, "failed")
    verdict.precision = card.precision
    verdict.tolerance = parity.TOLERANCE.get(card.precision)
    try:
        path = card.check_file(target.folder)
        if reason := stale(target, card):
            verdict.why = reason
        elif verdict.tolerance is None:
            verdict.why = f"its card says precision {card.precision!r}, which has no tolerance"
        elif reason := engines.cannot_run(name, card):
            verdict.status, verdict.why = "not run here", reason
        else:
            _compare(target, path, name, verdict, progress)
    except LoopRNNError as error:
        verdict.status, verdict.why = "failed", str(error)
    return verdict


def _compare(target: Target, path: Path, name: str, verdict: Verdict, progress: Progressed) -> None:
    spec, precision = target.spec, verdict.precision
    outputs = {n: Output(n) for n in spec.output_names}
    chosen = list(cases(spec, target.arrays, precision))
    with engines.get(name).session(path, spec) as session:
        for done, case in enumerate(chosen):
            progress(done, len(chosen))
            with np.errstate(over="ignore", invalid="ignore"):
                want = reference.run(spec, target.arrays, case.inputs)
            most = GREATEST.get(precision, float(np.finfo(np.float32).max))
            if not all((np.abs(array) <= most).all() for array in want.values()):
                verdict.skipped.append(f"{case}: the truth is beyond {precision}")
                continue
            got = session.run(case.inputs)
            verdict.cases.append(str(case))
            for n, output in outputs.items():
                if n not in got:
                    raise ParityError(f"{spec.name}: no {n} in the answer")
                _record(output, case, got[n], want[n], precision)
        progress(len(chosen), len(chosen))
    verdict.outputs = list(outputs.values())
    agree = all(o.first is None and o.difference <= o.at_most for o in verdict.outputs)
    verdict.status = "agrees" if agree else "differs"
    if not verdict.cases:
        verdict.status, verdict.why = "failed", "no case could be compared"


def _record(
    output: Output, case: Case, got: NDArray[Any], want: NDArray[Any], precision: str
) -> None:
    found = parity.difference(got, want)
    found = math.inf if math.isnan(found) else found
    at_most = case.times * parity.TOLERANCE[precision]
    if found / at_most > output.difference / output.at_most or not output.case:
        output.difference, output.at_most, output.case = found, at_most, str(case)
    if output.first is None and not found <= at_most:
        output.first = {"case": str(case), **first_over(output.name, got, want, at_most)}


def first_over(
    name: str, got: NDArray[Any], want: NDArray[Any], at_most: float
) -> dict[str, int | None]:
    """The first step over the tolerance, and the first row at it. [B, T, F], or [B, …] without
    steps, whose rows alone are told apart.
    """
    has_steps = name.startswith("output") or (name == "head" and want.ndim == 3)
    for step in range(want.shape[1]) if has_steps else [None]:
        for row in range(want.shape[0]):
            at = (row,) if step is None else (row, step)
            if not parity.difference(got[at], want[at]) <= at_most:  # which NaN is not
                return {"row": row, "step": step}
    raise AssertionError("the whole differs, but no part of it does")


def show_table(verdicts: list[Verdict], console: Console) -> None:
    for v in verdicts:
        color = {"agrees": "green", "not run here": "yellow"}.get(v.status, "red")
        who = f"{v.variant}/{v.version} {v.engine}: [{color}]{v.status}[/]"
        console.print(f"{who}: {escape(v.why)}" if v.why else who, soft_wrap=True)
        if v.outputs:
            console.print(_outputs(v))
        for skipped in v.skipped:
            console.print(f"not compared: {escape(skipped)}", soft_wrap=True)


def _outputs(verdict: Verdict) -> Table:
    names = ("output", "difference", "at most", "in", "first over at")
    table = Table(*(Column(n, overflow="fold") for n in names), box=SIMPLE_HEAD, pad_edge=False)
    for o in verdict.outputs:
        color = "red" if o.first else "green"
        differs = f"[{color}]{o.difference:.1e}[/]"
        table.add_row(o.name, differs, f"{o.at_most:g}", o.case, _where(o.first))
    return table


def _where(first: dict[str, Any] | None) -> str:
    if first is None:
        return ""
    step = "" if first["step"] is None else f", step {first['step']}"
    return f"row {first['row']}{step} ({first['case']})"


def _plain(value: Any) -> Any:
    """The same without Inf, which JSON lacks: there it is "inf"."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return "inf" if isinstance(value, float) and math.isinf(value) else value
