"""looprnn build: every variant asked for; a table of what became of each, and what was left out."""

import argparse
import time
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from looprnn.build import WORKSPACE, Outcome, build_variant, buildable
from looprnn.commands import whole
from looprnn.engines import ENGINES
from looprnn.errors import LoopRNNError, SpecError
from looprnn.spec import RNNSpec
from looprnn.variants import load_spec

MIB = 1 << 20
COLOR = {"built": "green", "unchanged": "dim", "failed": "red"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--variant", nargs="+", default=(), metavar="NAME", help="default: all")
    parser.add_argument("names", nargs="*", help=argparse.SUPPRESS)  # to say how it is typed
    parser.add_argument(
        "--spec",
        type=Path,
        nargs="+",
        default=(),
        metavar="FILE",
        help="variants elsewhere, by their TOML",
    )
    parser.add_argument(
        "--engine",
        nargs="+",
        choices=ENGINES,
        metavar="ENGINE",
        help=f"{', '.join(ENGINES)} (default: all that this host can build)",
    )
    parser.add_argument(
        "--workspace",
        type=whole(0),
        default=WORKSPACE // MIB,
        metavar="MIB",
        help="TensorRT's scratch memory (default: %(default)s)",
    )
    parser.add_argument("--force", action="store_true", help="rebuild what has not changed")
    parser.add_argument(
        "--keep",
        type=whole(0),
        default=1,
        metavar="N",
        help="old versions to keep (default: %(default)s)",
    )


def run(options: argparse.Namespace, console: Console) -> int:
    _, outcomes, left_out = build_all(options, console)
    return report(outcomes, left_out, console)


def selected(options: argparse.Namespace) -> list[Path]:
    """The variants that --variant and --spec name. Raises SpecError if there are none."""
    for name in options.names:
        raise SpecError(f"{name}: which variant to build is said by --variant {Path(name).stem}")
    for name in options.variant:
        if name != Path(name).stem:
            raise SpecError(
                f"--variant {name}: wanted a variant's name. Type: --variant {Path(name).stem}; "
                f"for a file elsewhere, --spec {name}"
            )
    paths = [*options.spec, *(options.variants / f"{name}.toml" for name in options.variant)]
    paths = paths or sorted(options.variants.glob("*.toml"))
    if not paths:
        raise SpecError(
            f"{options.variants}: no variants here, wanted NAME.toml files. Type it where "
            "variants/ is, or --variants DIR, or --spec FILE"
        )
    return paths


def build_all(
    options: argparse.Namespace, console: Console
) -> tuple[list[RNNSpec], list[Outcome], dict[str, str]]:
    """Build under a progress bar. The valid specs, what became of all, and engine → why it is left
    out.

    A variant that cannot be built at all is one failed Outcome, of the engine "-".
    """
    paths = selected(options)
    engines, left_out = buildable(options.engine)
    specs: list[RNNSpec] = []
    outcomes: list[Outcome] = []
    columns = (
        SpinnerColumn(),
        TextColumn("building engines"),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=len(paths))
        for path in paths:

            def show(phase: str, step: int, steps: int, name: str = path.stem) -> None:
                bar.update(task, description=f"{name}: {phase} {step}/{steps}")

            begin = time.perf_counter()
            try:
                specs.append(load_spec(path))
                outcomes += build_variant(
                    specs[-1],
                    engines,
                    options.repository,
                    progress=show,
                    force=options.force,
                    keep=options.keep,
                    workspace=options.workspace * MIB,
                )
            except (LoopRNNError, OSError, MemoryError) as error:
                failed = Outcome(
                    variant=path.stem,
                    engine="-",
                    status="failed",
                    seconds=time.perf_counter() - begin,
                    message=str(error) or "out of memory",
                )
                outcomes.append(failed)
            bar.advance(task)
    return specs, outcomes, left_out


def report(outcomes: list[Outcome], left_out: dict[str, str], console: Console) -> int:
    """The summary table, and below it what was not built and why; the exit status."""
    table = Table(
        Column("variant", overflow="fold"),
        *("engine", "status", "version", "difference", "seconds"),
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for o in outcomes:
        table.add_row(
            o.variant,
            o.engine,
            f"[{COLOR[o.status]}]{o.status}[/]",
            "" if o.version is None else str(o.version),
            _difference(o),
            f"{o.seconds:.2f}",
        )
    console.print(table)
    for name, reason in left_out.items():
        console.print(f"[dim]not built here: {name}: {escape(reason)}[/]", soft_wrap=True)
    failed = [o for o in outcomes if o.status == "failed"]
    errors = Console(stderr=True)
    for o in failed:
        errors.print(f"[red]{o.variant}, {o.engine}[/]: {escape(o.message)}", soft_wrap=True)
    if any(o.status == "built" for o in outcomes):
        serve = "Serve it: looprnn serve. One that runs serves it once it is started again"
        console.print(serve, soft_wrap=True)
    return 1 if failed else 0


def _difference(outcome: Outcome) -> str:
    if outcome.card is None:
        return ""
    return "not run here" if outcome.card.worst is None else f"{outcome.card.worst:.1e}"
