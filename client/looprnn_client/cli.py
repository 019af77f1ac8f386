"""The command `looprnn-client`: exit status 0 done, 1 the call or a file failed, 2 wrong usage."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from looprnn_client.commands import bench, infer, models, server, stream
from looprnn_client.errors import LoopRNNClientError

COMMANDS = {
    "models": (models, "list the server's models"),
    "infer": (infer, "run a model over an array"),
    "stream": (stream, "run a model over a sequence as it comes, chunk by chunk"),
    "bench": (bench, "put a model under load, and say how fast it answered"),
}
INTERRUPTED = 130  # as a shell has it: 128 and SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status; argparse itself exits with 2."""
    arguments = _parser().parse_args(argv)
    try:
        for line in arguments.run(arguments):
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough: `looprnn-client stream … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (LoopRNNClientError, OSError) as error:
        sys.stderr.write(f"looprnn-client: {error}\n")
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    server.add_arguments(shared)
    parser = argparse.ArgumentParser(
        prog="looprnn-client", description="Calls recurrent networks that looprnn serves."
    )
    parser.add_argument(
        "--version", action="version", version=f"%(prog)s {version('looprnn-client')}"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (command, text) in COMMANDS.items():
        own = commands.add_parser(name, parents=[shared], help=text, description=command.__doc__)
        command.add_arguments(own)
        own.set_defaults(run=command.run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
