"""looprnn build | serve | demo: arguments in, words and an exit status out.

Exit status: 0 all is well, 1 something asked for did not work (the message says what), 2 wrong arguments.
"""

import argparse
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from looprnn.build import WORKSPACE, Outcome, build_variant, buildable
from looprnn.card import Cards
from looprnn.engines import ENGINES
from looprnn.errors import LoopRNNError, SpecError
from looprnn.repository import built_versions
from looprnn.server import Server
from looprnn.spec import RNNSpec, load_spec

MIB = 1 << 20


def main(arguments: Sequence[str] | None = None, root: Path | None = None) -> int:
    """Run one command; `root` holds variants/ and model_repository/, the working directory by default."""
    options = _parser(root or Path()).parse_args(arguments)
    console = Console()
    logging.basicConfig(
        level=logging.DEBUG if options.verbose else logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=console, show_path=False)],
    )
    try:
        status: int = options.command(options, console)
        return status
    except LoopRNNError as error:
        Console(stderr=True).print(f"[red]{type(error).__name__}[/]: {escape(str(error))}", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser(root: Path) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="looprnn", description="Recurrent networks as engines for Triton.")
    commands = parser.add_subparsers(required=True, metavar="build | serve | demo")

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=run)
        sub.add_argument("--repository", type=Path, default=root / "model_repository", metavar="DIR",
                         help="the model repository (default: %(default)s)")
        sub.add_argument("--verbose", action="store_true", help="show what the libraries log")
        return sub

    def selects_variants(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--variants", type=Path, default=root / "variants", metavar="DIR",
                         help="where NAME.toml lie (default: %(default)s)")
        sub.add_argument("--variant", nargs="+", metavar="NAME", help="default: all")

    build = command("build", _build, "Weights → engines in the model repository, each proved where it can run.")
    selects_variants(build)
    build.add_argument("--spec", type=Path, nargs="+", metavar="FILE", help="variants elsewhere, by their TOML")
    build.add_argument("--engine", nargs="+", choices=ENGINES, metavar="ENGINE",
                       help=f"{', '.join(ENGINES)} (default: all that this host can build)")
    build.add_argument("--workspace", type=int, default=WORKSPACE // MIB, metavar="MIB",
                       help="TensorRT's scratch memory (default: %(default)s)")
    build.add_argument("--force", action="store_true", help="rebuild what has not changed")
    build.add_argument("--keep", type=int, default=1, metavar="N", help="old versions to keep (default: %(default)s)")

    serve = command("serve", _serve, "Run tritonserver on the model repository until Ctrl-C.")
    serve.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default: %(default)s)")
    for name, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        serve.add_argument(f"--{name}-port", type=int, default=port, help="default: %(default)s")
    serve.add_argument("--log", type=Path, metavar="FILE", help="keep tritonserver's log")

    demo = command("demo", _demo, "Build, serve, ask every variant over gRPC and HTTP, compare with NumPy.")
    selects_variants(demo)
    return parser


def selected(options: argparse.Namespace) -> list[RNNSpec]:
    """The specs that --variant and --spec name. Raises SpecError."""
    if getattr(options, "spec", None):
        paths = [*options.spec, *(options.variants / f"{name}.toml" for name in options.variant or ())]
    elif options.variant:
        paths = [options.variants / f"{name}.toml" for name in options.variant]
    else:
        paths = sorted(options.variants.glob("*.toml"))
    if not paths:
        raise SpecError(f"{options.variants}: no variants here, wanted NAME.toml files. Type: --spec FILE")
    return [load_spec(path) for path in paths]


@contextmanager
def _bar(console: Console, what: str, total: int | None) -> Iterator[tuple[Progress, int]]:
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[now]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=total, now="")
        yield progress, task


def build_all(options: argparse.Namespace, console: Console, specs: list[RNNSpec]) -> list[Outcome]:
    """Build every spec under a progress bar."""
    engines, reasons = buildable(getattr(options, "engine", None))
    for name, reason in reasons.items():
        logging.getLogger(__name__).info("not building %s: %s", name, reason)
    outcomes: list[Outcome] = []
    with _bar(console, "building engines", len(specs)) as (progress, task):
        for done, spec in enumerate(specs):
            def show(phase: str, step: int, steps: int, name: str = spec.name, done: int = done) -> None:
                progress.update(task, now=f"{name}: {phase} {step}/{steps}", completed=done)

            outcomes += build_variant(
                spec, engines, options.repository, progress=show,
                force=getattr(options, "force", False),
                keep=getattr(options, "keep", 1),
                workspace=getattr(options, "workspace", WORKSPACE // MIB) * MIB,
            )
            progress.update(task, completed=done + 1)
    return outcomes


def _build(options: argparse.Namespace, console: Console) -> int:
    outcomes = build_all(options, console, selected(options))
    table = Table("variant", "engine", "status", "version", "for", "difference", "seconds")
    color = {"built": "green", "unchanged": "dim", "failed": "red"}
    for o in outcomes:
        worst = "" if o.card is None else "not run here" if o.card.worst is None else f"{o.card.worst:.1e}"
        table.add_row(
            o.variant, o.engine, f"[{color[o.status]}]{o.status}[/]", "" if o.version is None else str(o.version),
            o.card.target if o.card else "", worst, f"{o.seconds:.2f}",
        )
    console.print(table)
    failed = [o for o in outcomes if o.status == "failed"]
    for o in failed:
        console.print(f"[red]{o.variant}, {o.engine}[/]: {escape(o.message)}", soft_wrap=True)
    return 1 if failed else 0


def _serve(options: argparse.Namespace, console: Console) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # docker stop ends it as Ctrl-C does
    with _bar(console, "starting tritonserver", None) as (progress, task):
        server = Server(
            options.repository, host=options.host, log=options.log, strict=False,
            ports=(options.http_port, options.grpc_port, options.metrics_port),
            waiting=lambda: progress.update(task, now=""),
        )
        server.__enter__()
    with server.opened():
        for name, state in server.models().items():
            console.print(f"  {'[green]ready[/]' if state == '' else '[red]not served[/]'}  {name}  {escape(state)}",
                          soft_wrap=True)
        console.print(
            f"gRPC {server.grpc}, HTTP {server.http}, metrics {server.metrics}. Ask it:\n"
            f"  looprnn-client infer --url {server.grpc} --model lstm --input x.npy --output y.npz\n"
            "Ctrl-C stops it."
        )
        try:
            status = server.wait()
        except KeyboardInterrupt:
            console.print("stopping")
            return 0
    Console(stderr=True).print(f"[red]tritonserver ended by itself with status {status}[/]")
    return 1


def _demo(options: argparse.Namespace, console: Console) -> int:
    from looprnn.demo import run_demo  # needs looprnn_client

    specs = selected(options)
    if any(o.status == "failed" for o in build_all(options, console, specs)):
        return _build(options, console)
    with (
        _bar(console, "starting tritonserver", None) as (progress, task),
        Server(options.repository, waiting=lambda: progress.advance(task)) as server,
    ):
        progress.update(task, description="asking", total=len(specs), completed=0)
        return run_demo(server, specs, options.repository, console, lambda: progress.advance(task))


def newest_cards(repository: Path, name: str) -> Cards:
    """The cards of the version that Triton serves."""
    model = repository / name
    return Cards.read(model / str(max(built_versions(model), default=1)))


if __name__ == "__main__":
    sys.exit(main())
