"""Runs a plan: the client's logic, written once as a generator that does no I/O itself.

A plan yields steps, each a call of something that may wait. `run` calls it, `arun` awaits what it
returns; either hands the answer, or the exception, back to the plan.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Generator
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
Step = Callable[[], Any]
Plan = Generator[Step, Any, T]


def run(plan: Plan[T]) -> T:
    """The plan's value, each step a call that blocks."""
    try:
        step = next(plan)
        while True:
            try:
                answer = step()
            except BaseException as error:
                step = plan.throw(error)
            else:
                step = plan.send(answer)
    except StopIteration as done:
        value: T = done.value
        return value


async def arun(plan: Plan[T]) -> T:
    """The plan's value, each step an awaitable; a cancelled task cancels the plan."""
    try:
        step = next(plan)
        while True:
            try:
                answer = await step()
            except BaseException as error:
                step = plan.throw(error)
            else:
                step = plan.send(answer)
    except StopIteration as done:
        value: T = done.value
        return value


class Gate(Protocol):
    """One at a time, in the order they came; entering takes at most timeout_s seconds."""

    def enter(self, timeout_s: float) -> bool | Awaitable[bool]: ...
    def leave(self) -> None: ...


class Waits(Protocol):
    """What a plan may wait for besides the server."""

    def sleep(self, seconds: float) -> Awaitable[None] | None: ...
    def gate(self) -> Gate: ...


class Blocking:
    """Waits of threads."""

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def gate(self) -> Gate:
        return ThreadGate()


class Awaiting:
    """Waits of asyncio's tasks."""

    def sleep(self, seconds: float) -> Awaitable[None]:
        return asyncio.sleep(seconds)

    def gate(self) -> Gate:
        return TaskGate()


class ThreadGate:
    def __init__(self) -> None:
        self._lock = threading.Lock()

    def enter(self, timeout_s: float) -> bool:
        return self._lock.acquire(timeout=timeout_s)

    def leave(self) -> None:
        self._lock.release()


class TaskGate:
    def __init__(self) -> None:
        self._lock = asyncio.Lock()

    async def enter(self, timeout_s: float) -> bool:
        if not self._lock.locked():
            return await self._lock.acquire()
        try:
            return await asyncio.wait_for(self._lock.acquire(), timeout_s)
        except TimeoutError:  # two classes before Python 3.11
            return False

    def leave(self) -> None:
        self._lock.release()
