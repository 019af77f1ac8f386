"""The seam over HTTP, for threads: one thread runs an event loop, and `_http_aio` on it."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar

from looprnn_client._http_aio import CLOSED, AsyncHttpTransport
from looprnn_client.address import Line
from looprnn_client.transport import Answer, Call, Code, Failure

T = TypeVar("T")
GRACE_S = 1.0  # the call times out by itself; only a worker that died needs this


class HttpTransport:
    """See `transport.Transport`."""

    def __init__(self, to: Line) -> None:
        self._http = AsyncHttpTransport(to)
        self._worker = Worker(self._http)
        # a daemon, which holds no reference to self: a client nobody closed ends with its owner
        self._stop = weakref.finalize(self, self._worker.stop)

    def prepare(self, call: Call) -> Any:
        return self._http.prepare(call)

    def config(self, model: str, timeout_s: float) -> Mapping[str, Any]:
        return self._worker.ask(lambda: self._http.config(model, timeout_s), timeout_s)

    def index(self, timeout_s: float) -> Sequence[Mapping[str, Any]]:
        return self._worker.ask(lambda: self._http.index(timeout_s), timeout_s)

    def infer(self, request: Any, timeout_s: float) -> Answer:
        return self._worker.ask(lambda: self._http.infer(request, timeout_s), timeout_s)

    def start(self, request: Any, timeout_s: float) -> Sent:
        return Sent(self._worker.start(lambda: self._http.infer(request, timeout_s)), timeout_s)

    chunk = infer

    def forget(self, request: Any) -> None:
        self._worker.tell(lambda: self._http.forget(request))

    def share(self, name: str, handle: Any, size: int, timeout_s: float) -> None:
        self._worker.ask(lambda: self._http.share(name, handle, size, timeout_s), timeout_s)

    def unshare(self, name: str, cuda: bool, timeout_s: float) -> None:
        self._worker.ask(lambda: self._http.unshare(name, cuda, timeout_s), timeout_s)

    def close(self) -> None:
        self._stop()
        self._worker.join()


class Sent:
    """See `transport.Flight`."""

    def __init__(self, call: Future[Answer], timeout_s: float) -> None:
        self._call, self._timeout_s = call, timeout_s
        self.cancel = call.cancel

    def result(self) -> Answer:
        return wait(self._call, self._timeout_s)


def wait(call: Future[T], timeout_s: float) -> T:
    """The answer of what a worker runs. Raises Failure."""
    try:
        return call.result(timeout_s + GRACE_S)
    except CancelledError as error:
        raise Failure(Code.INTERNAL, CLOSED) from error
    except FutureTimeout as error:
        raise Failure(Code.TIMEOUT, "the client's own worker did not answer") from error
    finally:
        call.cancel()  # an interrupted caller leaves no call behind


class Worker:
    """A thread with an event loop; ask(), tell() and stop() are safe from any thread."""

    def __init__(self, http: AsyncHttpTransport) -> None:
        self._http = http
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._open = True
        self._thread = threading.Thread(target=self._serve, name="looprnn-client", daemon=True)
        self._thread.start()

    def ask(self, call: Callable[[], Coroutine[Any, Any, T]], timeout_s: float) -> T:
        """call's answer. Raises Failure."""
        return wait(self.start(call), timeout_s)

    def start(self, call: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
        """call's answer to come. Raises Failure."""
        with self._lock:  # a loop that stop() has ended must not be called
            if not self._open:
                raise Failure(Code.INTERNAL, CLOSED)
            return asyncio.run_coroutine_threadsafe(call(), self._loop)

    def tell(self, call: Callable[[], None]) -> None:
        with self._lock:
            if self._open:
                self._loop.call_soon_threadsafe(call)

    def stop(self) -> None:
        with self._lock:
            if self._open:
                self._open = False
                self._loop.call_soon_threadsafe(self._loop.stop)

    def join(self) -> None:
        self._thread.join(GRACE_S)

    def _serve(self) -> None:
        """Runs the loop until stop(), then closes what was opened on it."""
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.run_until_complete(self._close())
        self._loop.close()

    async def _close(self) -> None:
        calls = asyncio.all_tasks() - {asyncio.current_task()}
        await self._http.close()
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
