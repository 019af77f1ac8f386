"""A load generator that is not itself the limit: several processes, each a single thread that keeps
some calls in flight on connections of their own. What it costs is measured with the rest.
"""

import itertools
import multiprocessing
import os
import selectors
import time
from array import array
from collections.abc import Generator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from multiprocessing.synchronize import Barrier
from typing import Protocol

import numpy as np
from wire import Connection, connect

WARMUP_S = 0.5
DRAIN_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A framed request, the index by which its answer is known, and the answer's size in bytes: one
    of another size is wrong.
    """

    index: int
    request: bytes
    size: int


class Traffic(Protocol):
    """What is sent where; it travels to other processes."""

    @property
    def protocol(self) -> str: ...

    @property
    def address(self) -> str: ...

    def calls(self, number: int) -> Generator[Call, bytes, None]:
        """The calls of one connection, each given the answer to the one before. Endless."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """Requests framed once, which each connection sends over and over in an order of its own."""

    protocol: str
    address: str
    each: Sequence[Call]

    def calls(self, number: int) -> Generator[Call, bytes, None]:
        order = np.random.default_rng(number).permutation(len(self.each)).tolist()
        for k in itertools.cycle(order):
            yield self.each[k]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """latencies_ms [calls]; which [calls], each one's index; cpu_s is the generator's; last holds
    one answer of each process with its index.
    """

    seconds: float
    latencies_ms: np.ndarray[tuple[int], np.dtype[np.float64]]
    which: np.ndarray[tuple[int], np.dtype[np.int64]]
    cpu_s: float
    last: list[tuple[int, bytes]]

    @property
    def rate(self) -> float:
        return len(self.latencies_ms) / self.seconds


def closed_loop(traffic: Traffic, concurrency: int, seconds: float) -> Measured:
    """`concurrency` calls in flight for `seconds`, after a warm-up.

    Raises RuntimeError with the words of the first process that failed.
    """
    context = multiprocessing.get_context("spawn")  # beside threads, a fork may hang
    count = min(concurrency, os.cpu_count() or 1)
    bounds = [k * concurrency // count for k in range(count + 1)]
    barrier = context.Barrier(count)
    pipes = []
    processes = []
    for first, end in itertools.pairwise(bounds):
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=_work, args=(traffic, range(first, end), seconds, barrier, theirs), daemon=True
        )
        process.start()
        theirs.close()
        pipes.append(mine)
        processes.append(process)
    parts = [pipe.recv() for pipe in pipes]
    for process in processes:
        process.join()
    for part in parts:
        if isinstance(part, str):
            raise RuntimeError(f"{traffic.protocol}://{traffic.address}: {part}")
    return Measured(
        seconds=seconds,
        latencies_ms=np.concatenate([np.frombuffer(p[0]) for p in parts]) * 1e3,
        which=np.concatenate([np.frombuffer(p[1], np.int64) for p in parts]),
        cpu_s=sum(p[2] for p in parts),
        last=[p[3] for p in parts],
    )


def _work(traffic: Traffic, numbers: range, seconds: float, barrier: Barrier, pipe: Pipe) -> None:
    try:
        answer: object = _measure(traffic, numbers, seconds, barrier)
    except Exception as error:
        barrier.abort()
        answer = f"{type(error).__name__}: {error}"
    pipe.send(answer)


def _measure(
    traffic: Traffic, numbers: range, seconds: float, barrier: Barrier
) -> tuple[bytes, bytes, float, tuple[int, bytes]]:
    now = time.perf_counter
    took, which = array("d"), array("q")
    last = (0, b"")
    with ExitStack() as opened:
        selector = opened.enter_context(selectors.DefaultSelector())
        lines = []
        for number in numbers:
            connection = connect(traffic.protocol, traffic.address)
            opened.callback(connection.close)
            lines.append(Line(connection, traffic.calls(number)))
            selector.register(connection.socket, selectors.EVENT_READ, lines[-1])
        barrier.wait(60)
        first = now() + WARMUP_S
        end = first + seconds
        for line in lines:
            line.begin = now()
            line.connection.send(line.call.request)
        cpu: float | None = None
        while (moment := now()) < end:
            if cpu is None and moment >= first:
                cpu = time.process_time()
            for key, _ in selector.select(1.0):
                line = key.data
                answer = line.connection.receive()
                if answer is None:
                    continue
                moment = now()
                call = line.call
                if len(answer) != call.size:
                    raise ValueError(f"an answer of {len(answer)} bytes, wanted {call.size}")
                if first <= moment < end:
                    took.append(moment - line.begin)
                    which.append(call.index)
                    last = call.index, answer
                line.call = line.calls.send(answer)
                line.begin = now()
                line.connection.send(line.call.request)
        used = time.process_time() - (cpu or 0.0)
        _drain(selector, lines)
    return took.tobytes(), which.tobytes(), used, last


def _drain(selector: selectors.BaseSelector, lines: Sequence["Line"]) -> None:
    """Wait for what is in flight: a connection that closes earlier cancels its call, and that can
    crash tritonserver 2.51.
    """
    waiting = set(lines)
    deadline = time.perf_counter() + DRAIN_S
    while waiting and time.perf_counter() < deadline:
        for key, _ in selector.select(1.0):
            if key.data.connection.receive() is not None:
                waiting.discard(key.data)


class Line:
    """A connection and the call that is in flight on it."""

    def __init__(self, connection: Connection, calls: Generator[Call, bytes, None]) -> None:
        self.connection, self.calls = connection, calls
        self.call = next(calls)
        self.begin = 0.0
