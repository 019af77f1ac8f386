"""looprnn COMMAND: arguments in, words and an exit status out.

Exit status: 0 all is well, 1 something asked for did not work (the message says what), 2 wrong
arguments, 128 + n ended by signal n.
"""

import argparse
import importlib
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from looprnn.errors import LoopRNNError

# A command's module and its help. The module has add_arguments(parser) and run(options, console),
# which answers the exit status; it is imported when its command is typed.
COMMANDS: Final = {
    "build": (
        "looprnn.commands.build",
        "Weights → engines in the model repository, each proved where it can run.",
    ),
    "verify": (
        "looprnn.verify",
        "Every engine of a variant that runs here, against the reference.",
    ),
    "inspect": (
        "looprnn.inspect",
        "Layers, arrays, FLOPs and engines of a variant, a trained file, a version or a plan.",
    ),
    "import": ("looprnn.importing", "A trained file of another framework becomes a variant."),
    "refit": ("looprnn.refit", "New weights into a TensorRT engine, without a rebuild."),
    "serve": ("looprnn.commands.serve", "Run tritonserver on the model repository until Ctrl-C."),
    "demo": (
        "looprnn.commands.demo",
        "Build, serve, ask every variant over gRPC and HTTP, compare with NumPy.",
    ),
}


def main(arguments: Sequence[str] | None = None, root: Path | None = None) -> int:
    """Run one command; `root` holds variants/ and model_repository/, the working directory by
    default.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _signals_end_it():
            options = _parser(given, root or Path()).parse_args(given)
            console = Console()
            logging.basicConfig(
                level=logging.DEBUG if options.verbose else logging.WARNING,
                format="%(message)s",
                handlers=[RichHandler(console=console, show_path=False)],
            )
            status: int = options.run(options, console)
            return status
    except (LoopRNNError, OSError, MemoryError, ImportError) as error:
        message = f"[red]{type(error).__name__}[/]: {escape(str(error))}"
        Console(stderr=True).print(message, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


@contextmanager
def _signals_end_it() -> Iterator[None]:
    """SIGTERM and SIGHUP leave every `with` in order, as Ctrl-C does: a server is stopped, a half
    build removed.
    """

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before: dict[int, Any] = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # what nohup asks for
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _parser(given: list[str], root: Path) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="looprnn", description="Recurrent networks as engines for Triton."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('looprnn')}")
    commands = parser.add_subparsers(required=True, metavar=" | ".join(COMMANDS))
    for name, (module, text) in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text)
        for option, folder in (("repository", "model_repository"), ("variants", "variants")):
            sub.add_argument(
                f"--{option}",
                type=Path,
                default=root / folder,
                metavar="DIR",
                help="default: %(default)s",
            )
        sub.add_argument("--verbose", action="store_true", help="show what the libraries log")
        if given[:1] == [name]:
            command = importlib.import_module(module)
            command.add_arguments(sub)
            sub.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
