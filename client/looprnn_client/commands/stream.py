"""Run a model over a sequence as it comes, chunk by chunk, its state kept by the server. Prints the
head of each step, or where there is none its output: on a terminal as a table of the last steps,
else every number, a line a step: its number, and its values.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from looprnn_client import Result, StreamState
from looprnn_client.commands import files, live, server, whole
from looprnn_client.commands.chunks import chunks
from looprnn_client.errors import BadInput
from looprnn_client.stream_core import stream_name

STATES = ("h_n", "c_n")
LAST, SHOWN = 12, 6  # steps and values of a step in the table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="lstm is streamed as lstm_stream")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument(
        "--input",
        metavar="FILE",
        help=".npy [T, I]; .wav; or - for standard input: a line of I numbers a step",
    )
    given.add_argument("--random", type=whole, metavar="T", help="no file: T random steps")
    parser.add_argument(
        "--raw", action="store_true", help="standard input is little-endian float32 (ids: int32)"
    )
    parser.add_argument(
        "--chunk", type=whole, default=16, metavar="T", help="most steps at once (16)"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="the .npz to write at the end")
    parser.add_argument(
        "--resume", type=Path, metavar="FILE", help="go on from a state that --save-state wrote"
    )
    parser.add_argument(
        "--save-state", type=Path, metavar="FILE", help="the .npz of the state at the end"
    )


def run(arguments: argparse.Namespace) -> Iterator[str]:
    """Ctrl-C ends the stream as the end of the input does: what came until then is written."""
    for target in (arguments.output, arguments.save_state):
        if target is not None:
            files.check_target(target)
    state = None
    if arguments.resume is not None:
        files.check_source(arguments.resume)
        state = StreamState.load(arguments.resume)
    model = stream_name(arguments.model)
    took: list[float] = []
    kept: list[Result] = []
    interrupted = False
    with ExitStack() as opened:
        client = opened.enter_context(server.client(arguments, model))
        signature = client.signature
        shown = "head" if "head" in signature.outputs else "output"
        outputs = None if arguments.output else [shown]
        stream = opened.enter_context(
            client.stream(model, outputs=outputs)
            if state is None
            else client.resume(state, model, outputs=outputs)
        )
        source = chunks(
            arguments.input or arguments.random, signature, arguments.chunk, raw=arguments.raw
        )
        board = opened.enter_context(live.board()) if live.on_terminal() else None
        last: deque[list[str]] = deque(maxlen=LAST)
        try:
            for chunk in source:
                first, begin = stream.steps, time.perf_counter()
                result = stream.send(chunk)
                took.append((time.perf_counter() - begin) * 1e3)
                if arguments.output:
                    kept.append(result)
                values = steps_of(getattr(result, shown))
                first += chunk.shape[1] - len(values)  # a head on the last step alone
                if board is None:
                    for k, row in enumerate(values):
                        yield " ".join([str(first + k), *(f"{v:.6g}" for v in row)])
                else:
                    last.extend(_cells(first + k, row) for k, row in enumerate(values))
                    board.show(
                        f"{shown} of {model} at {arguments.url}",
                        ("step", *(str(k) for k in range(len(last[0]) - 1))),
                        list(last),
                        f"{stream.steps} steps, {statistics.median(took):.1f} ms a chunk",
                    )
        except KeyboardInterrupt:
            interrupted = True
        if not took:
            raise BadInput(f"{arguments.input}: not one step came")
        if arguments.save_state:
            stream.state().save(arguments.save_state)
    if arguments.output:
        files.save(arguments.output, joined(kept))
    if interrupted:
        raise KeyboardInterrupt


def steps_of(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """[1, T, n] → [T, n]; a head on the last step, [1, n], is one row as it is."""
    return array[0] if array.ndim == 3 else array


def joined(results: list[Result]) -> dict[str, NDArray[Any]]:
    """The chunks' answers as one: steps below each other, and the last states."""
    every = [files.arrays(result) for result in results]
    return {
        name: last
        if name in STATES or last.ndim == 2
        else np.concatenate([arrays[name] for arrays in every], axis=1)
        for name, last in every[-1].items()
    }


def _cells(step: int, row: NDArray[np.float32]) -> list[str]:
    return [str(step), *(f"{v:.4f}" for v in row[:SHOWN]), *(["…"] if len(row) > SHOWN else [])]
