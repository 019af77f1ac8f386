"""Many calls at once: a bounded number in flight, the answers in the order of the items."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

from looprnn_client.core import Core, Ready
from looprnn_client.drive import Plan, Step, arun, run
from looprnn_client.errors import BadInput, LoopRNNClientError
from looprnn_client.progress import bar
from looprnn_client.result import Result
from looprnn_client.transport import Answer, Code, Failure, Flight

END: Any = object()
STOPPED = "the call was cancelled"


class Launched(Protocol):
    """A call under way."""

    def wait(self) -> Any:
        """A step: its answer, or what gives it when awaited."""

    def cancel(self) -> object: ...


class Many:
    """The items' calls, at most in_flight of them at once; `next` is a plan for the next answer.

    pull: a step that gives the next item, or END. send: starts a call, and waits for nothing.
    """

    def __init__(
        self,
        core: Core,
        pull: Step,
        send: Callable[[Ready], Launched],
        shared: Mapping[str, Any],
        *,
        in_flight: int,
        return_errors: bool,
    ) -> None:
        self._core, self._pull, self._send, self._shared = core, pull, send, shared
        self._in_flight, self._return_errors = in_flight, return_errors
        self._waiting: deque[Launched] = deque()
        self._dry = False
        self._answered = 0

    def next(self) -> Plan[Any]:
        """A Result, an error where they are returned, or END."""
        while not self._dry and len(self._waiting) < self._in_flight:
            item = yield self._pull
            if item is END:
                self._dry = True
            else:
                self._waiting.append((yield from self._launch(item)))
        if not self._waiting:
            return END
        try:
            found = yield self._waiting[0].wait
        except LoopRNNClientError as error:
            found = type(error)(f"item {self._answered}: {error}")
            found.index = self._answered
            if not self._return_errors:
                raise found from error
            found.__cause__ = error
        self._waiting.popleft()
        self._answered += 1
        return found

    def stop(self) -> None:
        """Cancels what is under way."""
        for call in self._waiting:
            call.cancel()

    def _launch(self, item: Any) -> Plan[Launched]:
        """Checked and built here, so that the item's arrays may change once the next is asked for;
        what is wrong with it comes in its turn."""
        arguments = dict(item) if isinstance(item, Mapping) else {"x": item}
        try:
            ready = yield from self._core.prepare(**arguments, **self._shared)
        except LoopRNNClientError as error:
            return Refused(error)
        except TypeError as error:  # prepare's own words name the argument
            return Refused(BadInput(f"an item's arguments are those of infer: {error}"))
        return self._send(ready)


class Refused:
    """A call that was never sent."""

    def __init__(self, error: LoopRNNClientError) -> None:
        self._error = error

    def wait(self) -> Any:
        raise self._error

    def cancel(self) -> None:
        return


class Threaded:
    """A call in a pool's thread; cancelling reaches it there, on the wire."""

    def __init__(self, core: Core, pool: ThreadPoolExecutor, ready: Ready) -> None:
        self._core, self._ready = core, ready
        self._lock = threading.Lock()
        self._stopped = False
        self._flight: Flight | None = None
        self.future: Future[Result] = pool.submit(lambda: run(core.send(ready, self._carry)))

    def wait(self) -> Result:
        return self.future.result()

    def cancel(self) -> None:
        if self.future.cancel():
            self._core.discard(self._ready)
        with self._lock:
            self._stopped = True
            if self._flight is not None:
                self._flight.cancel()

    def _carry(self, start: Callable[[], Flight]) -> Answer:
        with self._lock:
            if self._stopped:
                raise Failure(Code.INTERNAL, STOPPED)
            self._flight = flight = start()
        return flight.result()


class Tasked:
    """A call in a task of its own."""

    def __init__(self, core: Core, ready: Ready) -> None:
        self._core, self._ready, self._sent = core, ready, False
        self._task = asyncio.create_task(self._send())
        self._task.add_done_callback(lambda task: task.cancelled() or task.exception())  # read

    def wait(self) -> asyncio.Task[Result]:
        return self._task

    def cancel(self) -> None:
        if self._task.cancel() and not self._sent:
            self._core.discard(self._ready)

    async def _send(self) -> Result:
        self._sent = True
        return await arun(self._core.send(self._ready))


def submit(core: Core, pool: ThreadPoolExecutor, arguments: Mapping[str, Any]) -> Future[Result]:
    """See `Client.submit`."""
    try:
        ready = run(core.prepare(**arguments))
    except LoopRNNClientError as error:
        refused: Future[Result] = Future()
        refused.set_exception(error)
        return refused
    return Threaded(core, pool, ready).future


def infer_many(
    core: Core,
    items: Iterable[Any],
    shared: Mapping[str, Any],
    *,
    in_flight: int,
    progress: bool,
    return_errors: bool,
) -> Iterator[Any]:
    """See `Client.infer_many`."""
    pool = ThreadPoolExecutor(in_flight, thread_name_prefix="looprnn-client-many")
    many = Many(
        core,
        partial(next, iter(items), END),
        partial(Threaded, core, pool),
        shared,
        in_flight=in_flight,
        return_errors=return_errors,
    )
    try:
        with bar(core.model, items, progress) as advance:
            while (found := run(many.next())) is not END:
                advance()
                yield found
    finally:
        many.stop()
        pool.shutdown()


async def infer_many_async(
    core: Core,
    items: Iterable[Any] | AsyncIterable[Any],
    shared: Mapping[str, Any],
    *,
    in_flight: int,
    progress: bool,
    return_errors: bool,
) -> AsyncIterator[Any]:
    """See `AsyncClient.infer_many`."""
    source = aiter(items) if isinstance(items, AsyncIterable) else aiter_of(items)

    async def pull() -> Any:
        return await anext(source, END)

    many = Many(
        core,
        pull,
        partial(Tasked, core),
        shared,
        in_flight=in_flight,
        return_errors=return_errors,
    )
    try:
        with bar(core.model, items, progress) as advance:
            while (found := await arun(many.next())) is not END:
                advance()
                yield found
    finally:
        many.stop()


async def aiter_of(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


def check_in_flight(in_flight: int) -> None:
    if not isinstance(in_flight, int) or isinstance(in_flight, bool) or in_flight < 1:
        raise BadInput(f"in_flight must be a whole number above 0, got {in_flight!r}")
