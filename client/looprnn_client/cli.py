"""The command `looprnn-client`: exit status 0 done, 1 the call or a file failed, 2 wrong usage."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from looprnn_client.client import Client, Result, list_models
from looprnn_client.errors import BadInput, LoopRNNClientError
from looprnn_client.explain import headline


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status; argparse itself exits with 2."""
    arguments = _parser().parse_args(argv)
    try:
        lines = arguments.run(arguments)
    except (LoopRNNClientError, OSError) as error:
        sys.stderr.write(f"looprnn-client: {error}\n")
        return 1
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


def infer(arguments: argparse.Namespace) -> list[str]:
    """Reads .npy files, runs the model, writes the .npz; returns a line for each array in it."""
    target: Path = arguments.output
    if not target.parent.is_dir():
        raise BadInput(f"{target.parent}: no such directory to write {target.name} into")
    x = _load(arguments.input)
    h_0, c_0, lengths = (
        None if path is None else _load(path)
        for path in (arguments.h0, arguments.c0, arguments.lengths)
    )
    with Client(arguments.url, arguments.model, timeout_s=arguments.timeout) as client:
        result = client.infer(x, h_0, c_0, lengths=lengths)
    got = _arrays(result)
    _save(target, got)
    return [f"{name} {list(array.shape)} {array.dtype}" for name, array in got.items()]


def models(arguments: argparse.Namespace) -> list[str]:
    """A line for each version of each model: name, version, state, the first line of the reason."""
    rows = [
        (s.name, s.version or "-", s.state or "-", headline(s.reason).split("\n")[0])
        for s in list_models(arguments.url, timeout_s=arguments.timeout)
    ]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    return ["  ".join([*map(str.ljust, row, widths), row[3]]).rstrip() for row in rows]


def _parser() -> argparse.ArgumentParser:
    server = argparse.ArgumentParser(add_help=False)
    server.add_argument(
        "--url", required=True, help="localhost:8001 (gRPC) or http://localhost:8000"
    )
    server.add_argument("--timeout", type=float, default=5.0, metavar="S", help="seconds (5)")
    parser = argparse.ArgumentParser(
        prog="looprnn-client", description="Calls recurrent networks that looprnn serves."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("infer", parents=[server], help="run a model over an array")
    run.add_argument("--model", required=True)
    run.add_argument(
        "--input", required=True, type=Path, help=".npy, float32 [B, T, I], or integers [B, T]: ids"
    )
    run.add_argument("--h0", type=Path, help=".npy, float32 [B, N, H]")
    run.add_argument("--c0", type=Path, help=".npy, float32 [B, N, H], LSTM only")
    run.add_argument("--lengths", type=Path, help=".npy, integers [B]: the steps of each row")
    run.add_argument("--output", required=True, type=Path, help="the .npz to write")
    run.set_defaults(run=infer)
    listing = commands.add_parser("models", parents=[server], help="list the server's models")
    listing.set_defaults(run=models)
    return parser


def _load(path: Path) -> NDArray[Any]:
    """One array from a .npy file; pickles are never opened. Raises BadInput."""
    try:
        loaded = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BadInput(f"{path}: not a .npy file that can be read: {error}") from error
    if not isinstance(loaded, np.ndarray):
        loaded.close()
        raise BadInput(f"{path}: holds several arrays (.npz); write one with np.save")
    return loaded


def _arrays(result: Result) -> dict[str, NDArray[Any]]:
    named = {field.name: getattr(result, field.name) for field in fields(result)}
    return {name: array for name, array in named.items() if array is not None}


def _save(target: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """Writes the .npz whole or not at all: a reader never sees half of it."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as file:
            np.savez(file, **arrays)
        part.replace(target)
    except BaseException:
        with suppress(FileNotFoundError):
            part.unlink()
        raise


if __name__ == "__main__":
    sys.exit(main())
