"""Deadlines, the pauses between attempts, and taking turns."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Iterator

from looprnn_client.drive import Gate, Plan
from looprnn_client.errors import BadInput
from looprnn_client.transport import Code, Failure

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0


def enter(gate: Gate, deadline: float, words: str) -> Plan[None]:
    """Into the gate; the caller leaves it. Raises Failure when the time is up first."""
    if not (yield lambda: gate.enter(left(deadline))):
        raise Failure(Code.TIMEOUT, words)


def pauses(retries: int | None) -> Iterator[float | None]:
    """Seconds to wait after each failed attempt, doubling; None after the last, if there is one.

    Each is drawn from half its length up, so that clients cut off together do not come back so.
    """
    longest = FIRST_PAUSE_S
    for _ in itertools.count() if retries is None else range(retries):
        yield longest * random.uniform(0.5, 1)
        longest = min(2 * longest, LONGEST_PAUSE_S)
    yield None


def left(deadline: float) -> float:
    """Seconds until then. Raises Failure when there are none."""
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise Failure(Code.TIMEOUT, "the time was up before the call was sent")
    return remaining


def seconds(timeout_s: float) -> float:
    """Raises BadInput for what is not a time."""
    number = isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool)
    if not number or not math.isfinite(timeout_s) or timeout_s <= 0:
        raise BadInput(f"timeout_s must be a number of seconds above 0, got {timeout_s!r}")
    return float(timeout_s)


def count(retries: int) -> int:
    if not isinstance(retries, int) or isinstance(retries, bool) or retries < 0:
        raise BadInput(f"retries must be a whole number of 0 or more, got {retries!r}")
    return retries
