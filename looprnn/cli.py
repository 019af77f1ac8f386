"""looprnn build | serve | demo: arguments in, words and an exit status out.

Exit status: 0 all is well, 1 something asked for did not work (the message says what), 2 wrong
arguments.
"""

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from looprnn.build import WORKSPACE, Outcome, build_variant, buildable
from looprnn.engines import ENGINES
from looprnn.errors import LoopRNNError, ServerError, SpecError
from looprnn.server import Server
from looprnn.spec import RNNSpec
from looprnn.variants import load_spec

MIB = 1 << 20


def main(arguments: Sequence[str] | None = None, root: Path | None = None) -> int:
    """Run one command; `root` holds variants/ and model_repository/, the working directory by
    default.
    """
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
        Console(stderr=True).print(
            f"[red]{type(error).__name__}[/]: {escape(str(error))}", soft_wrap=True
        )
        return 1
    except KeyboardInterrupt:
        return 130


def _parser(root: Path) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="looprnn", description="Recurrent networks as engines for Triton."
    )
    commands = parser.add_subparsers(required=True, metavar="build | serve | demo")

    def command(name: str, run: object, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        sub.set_defaults(command=run)
        sub.add_argument(
            "--repository",
            type=Path,
            default=root / "model_repository",
            metavar="DIR",
            help="the model repository (default: %(default)s)",
        )
        sub.add_argument("--verbose", action="store_true", help="show what the libraries log")
        return sub

    def builds(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--variants",
            type=Path,
            default=root / "variants",
            metavar="DIR",
            help="where NAME.toml lie (default: %(default)s)",
        )
        sub.add_argument("--variant", nargs="+", default=(), metavar="NAME", help="default: all")
        sub.add_argument(
            "--spec",
            type=Path,
            nargs="+",
            default=(),
            metavar="FILE",
            help="variants elsewhere, by their TOML",
        )
        sub.add_argument(
            "--engine",
            nargs="+",
            choices=ENGINES,
            metavar="ENGINE",
            help=f"{', '.join(ENGINES)} (default: all that this host can build)",
        )
        sub.add_argument(
            "--workspace",
            type=int,
            default=WORKSPACE // MIB,
            metavar="MIB",
            help="TensorRT's scratch memory (default: %(default)s)",
        )
        sub.add_argument("--force", action="store_true", help="rebuild what has not changed")
        sub.add_argument(
            "--keep",
            type=int,
            default=1,
            metavar="N",
            help="old versions to keep (default: %(default)s)",
        )

    builds(
        command(
            "build",
            _build,
            "Weights → engines in the model repository, each proved where it can run.",
        )
    )
    builds(
        command(
            "demo", _demo, "Build, serve, ask every variant over gRPC and HTTP, compare with NumPy."
        )
    )
    serve = command("serve", _serve, "Run tritonserver on the model repository until Ctrl-C.")
    serve.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default: %(default)s)"
    )
    for name, port in (("http", 8000), ("grpc", 8001), ("metrics", 8002)):
        serve.add_argument(f"--{name}-port", type=int, default=port, help="default: %(default)s")
    serve.add_argument(
        "--client-shared-memory",
        action="store_true",
        help="let clients pass arrays in shared memory",
    )
    serve.add_argument("--log", type=Path, metavar="FILE", help="keep tritonserver's log")
    return parser


def selected(options: argparse.Namespace) -> list[RNNSpec]:
    """The specs that --variant and --spec name. Raises SpecError."""
    paths = [*options.spec, *(options.variants / f"{name}.toml" for name in options.variant)]
    paths = paths or sorted(options.variants.glob("*.toml"))
    if not paths:
        raise SpecError(
            f"{options.variants}: no variants here, wanted NAME.toml files. Type: --spec FILE"
        )
    return [load_spec(path) for path in paths]


def build_all(options: argparse.Namespace, console: Console, specs: list[RNNSpec]) -> list[Outcome]:
    """Build every spec under a progress bar."""
    engines, reasons = buildable(options.engine)
    for name, reason in reasons.items():
        logging.getLogger(__name__).info("not building %s: %s", name, reason)
    outcomes: list[Outcome] = []
    columns = (
        SpinnerColumn(),
        TextColumn("building engines"),
        BarColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=len(specs))
        for spec in specs:

            def show(phase: str, step: int, steps: int, name: str = spec.name) -> None:
                bar.update(task, description=f"{name}: {phase} {step}/{steps}")

            outcomes += build_variant(
                spec,
                engines,
                options.repository,
                progress=show,
                force=options.force,
                keep=options.keep,
                workspace=options.workspace * MIB,
            )
            bar.advance(task)
    return outcomes


def report(outcomes: list[Outcome], console: Console) -> int:
    """The summary table; the exit status."""
    table = Table(
        *("variant", "engine", "status", "version", "difference", "seconds"),
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    color = {"built": "green", "unchanged": "dim", "failed": "red"}
    for o in outcomes:
        worst = (
            ""
            if o.card is None
            else "not run here"
            if o.card.worst is None
            else f"{o.card.worst:.1e}"
        )
        table.add_row(
            o.variant,
            o.engine,
            f"[{color[o.status]}]{o.status}[/]",
            "" if o.version is None else str(o.version),
            worst,
            f"{o.seconds:.2f}",
        )
    console.print(table)
    failed = [o for o in outcomes if o.status == "failed"]
    for o in failed:
        console.print(f"[red]{o.variant}, {o.engine}[/]: {escape(o.message)}", soft_wrap=True)
    return 1 if failed else 0


def _build(options: argparse.Namespace, console: Console) -> int:
    return report(build_all(options, console, selected(options)), console)


def _demo(options: argparse.Namespace, console: Console) -> int:
    from looprnn.demo import run_demo  # needs looprnn_client

    specs = selected(options)
    outcomes = build_all(options, console, specs)
    if any(o.status == "failed" for o in outcomes):
        return report(outcomes, console)
    with console.status("starting tritonserver") as status, Server(options.repository) as server:
        status.stop()
        return run_demo(server, specs, options.repository, console)


def _serve(options: argparse.Namespace, console: Console) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # docker stop ends it as Ctrl-C does
    ports = (options.http_port, options.grpc_port, options.metrics_port)
    server = Server(
        options.repository,
        host=options.host,
        ports=ports,
        log=options.log,
        strict=False,
        client_shared_memory=options.client_shared_memory,
    )
    with console.status("starting tritonserver") as status, server:
        status.stop()
        for name, reason in server.models().items():
            state = f"[red]not served[/] {escape(reason)}" if reason else "[green]ready[/]"
            console.print(f"{name}: {state}", soft_wrap=True)
        console.print(
            f"gRPC {server.grpc}, HTTP {server.http}, metrics {server.metrics}. Ask it:\n"
            f"  looprnn-client infer --url {server.grpc} --model lstm "
            "--input x.npy --output y.npz\n"
            "Ctrl-C stops it."
        )
        try:
            ended = server.wait()
        except KeyboardInterrupt:
            console.print("stopping")
            return 0
    raise ServerError(f"tritonserver ended by itself with status {ended}")


if __name__ == "__main__":
    sys.exit(main())
