"""looprnn-client infer: run a model over an array."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from looprnn_client.commands import files, server, whole
from looprnn_client.commands.draw import draw


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True)
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument(
        "--input", type=Path, help=".npy, float32 [B, T, I], or integers [B, T]: ids"
    )
    given.add_argument(
        "--random",
        type=whole,
        nargs=2,
        metavar=("B", "T"),
        help="no file: B rows of T random steps",
    )
    parser.add_argument("--h0", type=Path, help=".npy, float32 [B, N, H]")
    parser.add_argument("--c0", type=Path, help=".npy, float32 [B, N, H], LSTM only")
    parser.add_argument("--lengths", type=Path, help=".npy, integers [B]: the steps of each row")
    parser.add_argument("--output", required=True, type=Path, help="the .npz to write")


def run(arguments: argparse.Namespace) -> Iterator[str]:
    """Reads .npy files, runs the model, writes the .npz; a line for each array in it."""
    files.check_target(arguments.output)
    x, h_0, c_0, lengths = (
        None if path is None else files.load(path)
        for path in (arguments.input, arguments.h0, arguments.c0, arguments.lengths)
    )
    with server.client(arguments, arguments.model) as client:
        if x is None:
            batch, time = arguments.random
            x = draw(client.signature, batch, time, np.random.default_rng())
        got = files.arrays(client.infer(x, h_0, c_0, lengths=lengths))
    files.save(arguments.output, got)
    yield from (f"{name} {list(array.shape)} {array.dtype}" for name, array in got.items())
