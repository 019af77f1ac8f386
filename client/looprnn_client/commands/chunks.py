"""A sequence in chunks, from a file or as it comes: [1, T, I] float32, or ids [1, T] int32.

.npy    float32 [T, I] or [1, T, I]; where the model has a vocabulary, integers [T] or [1, T]
.wav    PCM, scaled to -1..1. As many channels as the model has inputs: a frame is a step. Mono:
        a step is the next I samples; the last is filled up with silence
-       standard input. Lines of text: one step each, its numbers parted by blanks or commas; or,
        raw, little-endian float32 (int32 for ids), step after step. What has come is sent at once,
        however little it is
"""

from __future__ import annotations

import sys
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from looprnn_client.commands import files
from looprnn_client.commands.draw import draw
from looprnn_client.errors import BadInput
from looprnn_client.signature import Signature

STDIN = "-"
READ = 1 << 16
SCALE = {1: 128.0, 2: 2.0**15, 3: 2.0**31, 4: 2.0**31}  # by bytes a sample; 3 are widened to 4


def chunks(
    source: str | int, signature: Signature, most: int, *, raw: bool
) -> Iterator[NDArray[Any]]:
    """Chunks of at most `most` steps; of as many random ones, where source is a number. Raises
    BadInput that names the file and the place in it."""
    if source == STDIN:
        steps = _raw(sys.stdin.buffer, signature) if raw else _text(sys.stdin.buffer, signature)
    elif raw:
        raise BadInput(f"--raw is for standard input alone, --input -; got {source}")
    elif isinstance(source, int):
        steps = iter(draw(signature, 1, source, np.random.default_rng()))
    elif Path(source).suffix.lower() == ".wav":
        steps = _wav(Path(source), signature, most)
    else:
        steps = iter([_whole(Path(source), signature)])
    for part in steps:
        for at in range(0, len(part), most):
            yield np.ascontiguousarray(part[np.newaxis, at : at + most])


def _whole(path: Path, signature: Signature) -> NDArray[Any]:
    """The steps of a .npy: without the batch axis of one row, if it has one."""
    array = files.load(path)
    rank = len(signature.takes["input"])
    if array.ndim == rank + 1 and len(array) == 1:
        array = array[0]
    if array.ndim != rank:
        wanted = "[T] or [1, T]" if rank == 1 else "[T, I] or [1, T, I]"
        raise BadInput(f"{path}: is {list(array.shape)}, a stream is one sequence: {wanted}")
    return array


def _wav(path: Path, signature: Signature, most: int) -> Iterator[NDArray[np.float32]]:
    width = _width(signature, path)
    files.check_source(path)
    try:
        with wave.open(str(path), "rb") as file:
            channels, size = file.getnchannels(), file.getsampwidth()
            if channels not in (1, width):
                raise BadInput(
                    f"{path}: has {channels} channels, but {signature.model} takes {width} numbers "
                    f"a step: one channel, of which {width} samples are a step, or {width} channels"
                )
            while data := file.readframes(most * width // channels):
                samples = _samples(data, size)
                if missing := -len(samples) % width:
                    samples = np.concatenate([samples, np.zeros(missing, np.float32)])
                yield samples.reshape(-1, width)
    except (wave.Error, EOFError, OSError) as error:
        raise BadInput(f"{path}: not a .wav of PCM that can be read: {error}") from error


def _samples(data: bytes, size: int) -> NDArray[np.float32]:
    if size == 3:
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        data = wide.tobytes()
    kind = {1: "u1", 2: "<i2", 3: "<i4", 4: "<i4"}[size]
    numbers = np.frombuffer(data, kind).astype(np.float64)
    return ((numbers - 128.0 * (size == 1)) / SCALE[size]).astype(np.float32)


def _text(file: BinaryIO, signature: Signature) -> Iterator[NDArray[Any]]:
    """The whole lines of each read."""
    number, rest = 0, b""
    while data := _read(file):
        *lines, rest = (rest + data).split(b"\n")
        found = [_step(line, number + k + 1, signature) for k, line in enumerate(lines)]
        number += len(lines)
        if steps := [step for step in found if step]:
            yield _array(steps, signature)
    if step := _step(rest, number + 1, signature):
        yield _array([step], signature)


def _step(line: bytes, number: int, signature: Signature) -> list[float]:
    """The numbers of one line; none where it is blank."""
    words = line.decode("utf-8", "replace").replace(",", " ").split()
    width = 1 if signature.vocabulary else _width(signature, STDIN)
    try:
        step = [float(word) if signature.vocabulary is None else int(word) for word in words]
    except ValueError as error:
        raise BadInput(f"line {number} of standard input: {error}") from error
    if step and len(step) != width:
        raise BadInput(
            f"line {number} of standard input: {len(step)} numbers, but {signature.model} takes "
            f"{width} a step"
        )
    return step


def _array(steps: list[list[float]], signature: Signature) -> NDArray[Any]:
    if signature.vocabulary is not None:
        return np.array(steps)[:, 0]
    with np.errstate(over="ignore"):  # what is too large becomes Inf, which is refused by name
        return np.array(steps, np.float32)


def _raw(file: BinaryIO, signature: Signature) -> Iterator[NDArray[Any]]:
    """The whole steps of each read."""
    ids = signature.vocabulary is not None
    kind = np.dtype("<i4" if ids else "<f4")
    width = 1 if ids else _width(signature, STDIN)
    rest = b""
    while data := _read(file):
        rest += data
        whole = len(rest) - len(rest) % (width * kind.itemsize)
        if whole:
            steps = np.frombuffer(rest[:whole], kind)
            yield steps if ids else steps.reshape(-1, width)
        rest = rest[whole:]
    if rest:
        raise BadInput(
            f"standard input ends within a step: {len(rest)} bytes are left over, a step is "
            f"{width * kind.itemsize}"
        )


def _read(file: BinaryIO) -> bytes:
    """What has come by now; waits only when nothing has."""
    return bytes(file.read1(READ) if hasattr(file, "read1") else file.read(READ))


def _width(signature: Signature, source: object) -> int:
    if signature.inputs is None:
        raise BadInput(f"{source}: {signature.model} takes ids, one a step, not numbers or sound")
    return signature.inputs
