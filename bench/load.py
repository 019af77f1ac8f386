"""A load generator that is not itself the limit: several processes, each a single thread that keeps
some calls in flight; requests are framed once. What it costs is measured with the rest.
"""

import multiprocessing
import os
import selectors
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from multiprocessing.synchronize import Barrier

import numpy as np
from wire import connect

WARMUP_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Framed requests that each connection sends in an order of its own, and the size of each
    answer: one of another size is wrong.
    """

    protocol: str
    address: str
    requests: Sequence[bytes]
    answer_sizes: Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """latencies_ms [requests]; which [requests], the index of each one's request; cpu_s is the
    generator's; last holds one answer of each process with its index.
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
    shares = [concurrency // count + (k < concurrency % count) for k in range(count)]
    barrier = context.Barrier(count)
    pipes = []
    processes = []
    for k, share in enumerate(shares):
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=_work, args=(traffic, share, seconds, k, barrier, theirs), daemon=True
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


def _work(
    traffic: Traffic, share: int, seconds: float, seed: int, barrier: Barrier, pipe: Pipe
) -> None:
    try:
        answer: object = _measure(traffic, share, seconds, seed, barrier)
    except Exception as error:
        barrier.abort()
        answer = f"{type(error).__name__}: {error}"
    pipe.send(answer)


def _measure(
    traffic: Traffic, share: int, seconds: float, seed: int, barrier: Barrier
) -> tuple[bytes, bytes, float, tuple[int, bytes]]:
    now = time.perf_counter
    order = np.random.default_rng(seed).permutation(len(traffic.requests)).tolist()
    connections = [connect(traffic.protocol, traffic.address) for _ in range(share)]
    took, which = array("d"), array("q")
    last = (0, b"")
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
        barrier.wait(60)
        first = now() + WARMUP_S
        end = first + seconds
        sent: dict[object, tuple[int, float]] = {}
        at = 0
        for connection in connections:
            index = order[at % len(order)]
            at += 1
            sent[connection] = index, now()
            connection.send(traffic.requests[index])
        cpu: float | None = None
        while (moment := now()) < end:
            if cpu is None and moment >= first:
                cpu = time.process_time()
            for key, _ in selector.select(1.0):
                connection = key.data
                answer = connection.receive()
                if answer is None:
                    continue
                index, begin = sent[connection]
                moment = now()
                if len(answer) != traffic.answer_sizes[index]:
                    raise ValueError(
                        f"an answer of {len(answer)} bytes, wanted {traffic.answer_sizes[index]}"
                    )
                if first <= moment < end:
                    took.append(moment - begin)
                    which.append(index)
                    last = index, answer
                index = order[at % len(order)]
                at += 1
                sent[connection] = index, now()
                connection.send(traffic.requests[index])
        used = time.process_time() - (cpu or 0.0)
    for connection in connections:
        connection.close()
    return took.tobytes(), which.tobytes(), used, last
