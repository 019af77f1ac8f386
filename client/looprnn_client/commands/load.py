"""Load on a server: closed loop or Poisson arrivals, and what came of it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from looprnn_client.errors import LoopRNNClientError

PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)
TICK_S = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """`concurrency` requests in flight, each sent when another is answered; or, where there is a
    rate, that many arrivals a second, Poisson, of which at most `concurrency` are in flight.
    """

    concurrency: int
    rate: float | None = None

    def __str__(self) -> str:
        return f"{self.concurrency} in flight" if self.rate is None else f"{self.rate:g}/s"


@dataclass(frozen=True, slots=True)
class Sample:
    """One request; due and end in seconds since the load began; no steps: it failed."""

    due: float
    end: float
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Of the requests that ended within `seconds`.

    unsent: arrivals for which no call was free until the end; the latencies are of the others.
    throughput_rps, steps_per_s: of what was answered. latency_ms: percentiles by
    name, "p50". curve: [percentile, ms], as far as there are requests for it. timeline: [second,
    requests/s].
    """

    level: Level
    seconds: float
    requests: int
    failed: int
    unsent: int
    throughput_rps: float
    steps_per_s: float
    latency_ms: dict[str, float]
    curve: list[tuple[float, float]]
    timeline: list[tuple[float, float]]
    failures: dict[str, int]

    def row(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "concurrency": self.level.concurrency,
            "rate": self.level.rate,
            **{name: getattr(self, name) for name in self.__slots__ if name != "level"},
        }


class Load:
    """Runs one level in threads. `ask(k)` sends the k-th request, gives its time steps, and raises
    LoopRNNClientError, which is counted.

    A latency begins when the request was due. In an open loop that may be before it could be sent:
    the queue is part of what a caller waits for.
    """

    def __init__(
        self,
        level: Level,
        ask: Callable[[int], int],
        *,
        seconds: float,
        warmup_s: float,
        seed: int = 0,
    ) -> None:
        self.level, self.warmup_s = level, warmup_s
        self.end = warmup_s + seconds
        self._ask = ask
        self._rng = np.random.default_rng(seed)
        self._lock = threading.Lock()
        self._samples: list[Sample] = []
        self._failures: Counter[str] = Counter()
        self._stop = threading.Event()
        self._sent = self._unsent = 0
        self._due = 0.0
        self._begin = 0.0
        self.interrupted = False

    def run(self, tick: Callable[[], None]) -> Report:
        """Blocks until what was sent has ended; tick() a few times a second.

        KeyboardInterrupt ends it early, with what was measured until then.
        """
        # daemons: if a call hangs beyond its timeout, the program ends all the same
        threads = [
            threading.Thread(target=self._work, daemon=True) for _ in range(self.level.concurrency)
        ]
        self._begin = time.perf_counter()
        for thread in threads:
            thread.start()
        try:
            while alive := [thread for thread in threads if thread.is_alive()]:
                alive[0].join(TICK_S)
                tick()
        except KeyboardInterrupt:
            self.end, self.interrupted = self.elapsed, True
        finally:
            self._stop.set()
        for thread in threads:
            thread.join()
        while self.level.rate is not None and self._due < self.end:
            self._unsent += self._due >= self.warmup_s
            self._arrive()
        return self.report()

    @property
    def elapsed(self) -> float:
        """Seconds since it began, the warm-up included."""
        return time.perf_counter() - self._begin

    def report(self, last_s: float | None = None) -> Report:
        """So far, or of the last seconds alone."""
        end = min(self.elapsed, self.end)
        first = self.warmup_s if last_s is None else max(self.warmup_s, end - last_s)
        seconds = max(end - first, 1e-9)
        with self._lock:
            samples, failures = list(self._samples), dict(self._failures)
        ended = [s for s in samples if first <= s.end < end]
        good = [s for s in ended if s.steps]
        latencies = [(s.end - s.due) * 1e3 for s in good]
        return Report(
            level=self.level,
            seconds=round(seconds, 3),
            requests=len(ended),
            failed=len(ended) - len(good),
            unsent=self._unsent,
            throughput_rps=round(len(good) / seconds, 3),
            steps_per_s=round(sum(s.steps for s in good) / seconds, 3),
            latency_ms=_named(latencies),
            curve=_curve(latencies) if last_s is None else [],
            timeline=_timeline(good, first, end) if last_s is None else [],
            failures=failures,
        )

    def _next(self) -> tuple[int, float] | None:
        """The next request and when it is due; None when there is none."""
        with self._lock:
            now = self.elapsed
            due = now if self.level.rate is None else self._due
            if self._stop.is_set() or max(now, due) >= self.end:
                return None
            self._arrive()
            self._sent += 1
            return self._sent - 1, due

    def _arrive(self) -> None:
        if self.level.rate is not None:
            self._due += self._rng.exponential(1 / self.level.rate)

    def _work(self) -> None:
        while (turn := self._next()) is not None:
            index, due = turn
            if (wait := due - self.elapsed) > 0 and self._stop.wait(wait):
                return
            try:
                steps, failure = self._ask(index), ""
            except LoopRNNClientError as error:
                steps, failure = 0, f"{type(error).__name__}: {error}"
            with self._lock:
                self._samples.append(Sample(due, self.elapsed, steps))
                if failure:
                    self._failures[failure] += 1


def _named(latencies: Sequence[float]) -> dict[str, float]:
    """ms by name, and the largest; empty when there are none."""
    if not latencies:
        return {}
    found = np.percentile(latencies, PERCENTILES)
    named = {f"p{p:g}": v for p, v in zip(PERCENTILES, found, strict=True)}
    return {name: round(float(v), 3) for name, v in {**named, "max": max(latencies)}.items()}


def _curve(latencies: Sequence[float]) -> list[tuple[float, float]]:
    """[percentile, ms], denser towards the tail: 20 points for each nine."""
    if not latencies:
        return []
    nines = np.arange(0, np.log10(len(latencies)) + 1e-9, 0.05)
    at = 100 * (1 - 10**-nines)
    found = np.percentile(latencies, at)
    return [(round(float(p), 5), round(float(v), 3)) for p, v in zip(at, found, strict=True)]


def _timeline(samples: Sequence[Sample], first: float, end: float) -> list[tuple[float, float]]:
    """[middle of the second, requests/s], of each whole second."""
    counts = Counter(int(s.end - first) for s in samples)
    return [(k + 0.5, float(counts[k])) for k in range(int(end - first))]
