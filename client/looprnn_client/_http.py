"""The seam over HTTP. tritonclient's HTTP client belongs to one thread: shared, it hangs.

One client for each calling thread would leak gevent's hub (four file descriptors) with every
thread that ends, so one worker thread owns client and hub, and each call is a greenlet in it.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar, cast

import gevent  # type: ignore[import-untyped,unused-ignore]
import tritonclient.http as triton  # type: ignore[import-untyped,unused-ignore]
from gevent import monkey  # type: ignore[import-untyped,unused-ignore]
from gevent.pool import Group  # type: ignore[import-untyped,unused-ignore]
from numpy.typing import NDArray
from tritonclient.utils import (  # type: ignore[import-untyped,unused-ignore]
    InferenceServerException,
    np_to_triton_dtype,
)

from looprnn_client.transport import Code, Failure, Tensor

T = TypeVar("T")

CODES = {
    "400": Code.INVALID,
    "404": Code.NOT_FOUND,
    "503": Code.UNAVAILABLE,
    "504": Code.TIMEOUT,
}
CONNECTIONS = 64  # at most, opened as calls overlap; further calls wait, within their timeout
GRACE_S = 1.0  # the greenlet times out by itself; only a worker that died needs this
CLOSED = "the connection was closed"
NO_BODY = "client received an empty response from the server."  # tritonclient's words


class HttpTransport:
    """See `transport.Transport`."""

    def __init__(self, address: str) -> None:
        started: Future[_Worker] = Future()
        # a daemon, which holds no reference to self: a client nobody closed ends with its owner
        thread = threading.Thread(
            target=_serve, args=(address, started), name="looprnn-client", daemon=True
        )
        thread.start()
        self._worker = started.result()
        self._thread = thread
        self._stop = weakref.finalize(self, self._worker.stop)

    def config(self, model: str, timeout_s: float) -> Mapping[str, Any]:
        answer = self._ask(lambda client: client.get_model_config(model), timeout_s)
        return cast(Mapping[str, Any], answer)

    def index(self, timeout_s: float) -> Sequence[Mapping[str, Any]]:
        answer = self._ask(lambda client: client.get_model_repository_index(), timeout_s)
        return cast(Sequence[Mapping[str, Any]], answer)

    def infer(
        self, model: str, inputs: Mapping[str, Tensor], outputs: Sequence[str], timeout_s: float
    ) -> dict[str, NDArray[Any]]:
        sent = [
            triton.InferInput(k, list(v.shape), np_to_triton_dtype(v.dtype))
            for k, v in inputs.items()
        ]
        for tensor, array in zip(sent, inputs.values(), strict=True):
            tensor.set_data_from_numpy(array)
        wanted = [triton.InferRequestedOutput(name) for name in outputs]

        def call(client: Any) -> dict[str, NDArray[Any]]:
            answer = client.infer(model, sent, outputs=wanted)
            got = {name: answer.as_numpy(name) for name in outputs}
            return {name: array for name, array in got.items() if array is not None}

        return self._ask(call, timeout_s)

    def close(self) -> None:
        self._stop()
        self._thread.join(GRACE_S)

    def _ask(self, call: Callable[[Any], T], timeout_s: float) -> T:
        done: Future[T] = Future()
        self._worker.submit(call, timeout_s, done)
        try:
            return done.result(timeout_s + GRACE_S)
        except FutureTimeout as error:
            raise Failure(Code.TIMEOUT, "the client's own worker did not answer") from error


class _Worker:
    """The worker thread seen from others: submit() and stop() are safe from any thread."""

    def __init__(self, client: Any, loop: Any, ended: Any) -> None:
        self.calls = Group()
        self.pending: set[Future[Any]] = set()
        self._client = client
        self._loop = loop
        self._ended = ended
        self._lock = threading.Lock()
        self._open = True

    def submit(self, call: Callable[[Any], T], timeout_s: float, done: Future[T]) -> None:
        with self._lock:  # a loop that stop() has ended must not be called
            if not self._open:
                raise Failure(Code.INTERNAL, CLOSED)
            self.pending.add(done)
            self._loop.run_callback_threadsafe(
                self.calls.spawn, _answer, self._client, call, timeout_s, done
            )
        done.add_done_callback(self.pending.discard)

    def stop(self) -> None:
        with self._lock:
            if self._open:
                self._open = False
                self._ended.send()


def _serve(address: str, started: Future[_Worker]) -> None:
    """The worker thread: runs its event loop until stop(), then closes what it opened."""
    hub = gevent.get_hub()
    ended = hub.loop.async_()
    client = triton.InferenceServerClient(
        address, concurrency=CONNECTIONS, connection_timeout=None, network_timeout=None
    )
    worker = _Worker(client, hub.loop, ended)
    started.set_result(worker)
    hub.wait(ended)
    worker.calls.kill()
    for done in list(worker.pending):
        done.set_exception(Failure(Code.INTERNAL, CLOSED))
    ended.close()
    client.close()
    if not monkey.is_module_patched("threading"):  # else the hub is the program's, not ours
        hub.destroy(destroy_loop=True)


def _answer(client: Any, call: Callable[[Any], T], timeout_s: float, done: Future[T]) -> None:
    """One greenlet: done gets call's answer, or what it raised turned into `Failure`.

    The timeout is around the whole call: a socket's own starts again with every byte.
    """
    try:
        with gevent.Timeout(timeout_s):
            answer = call(client)
    except (gevent.Timeout, TimeoutError) as error:
        done.set_exception(_failure(Code.TIMEOUT, "no complete answer", error))
    except InferenceServerException as error:
        words = error.message() or str(error)
        # Triton's refusals are JSON with words in them
        stranger = error.debug_details() is not None or words == NO_BODY
        code = Code.UNREACHABLE if stranger else CODES.get(error.status(), Code.INTERNAL)
        done.set_exception(_failure(code, words, error))
    except OSError as error:
        done.set_exception(_failure(Code.UNREACHABLE, str(error), error))
    except (
        Exception
    ) as error:  # parsers of HTTP and JSON raise anything from KeyError to RuntimeError
        words = (
            f"what answers there is not Triton's HTTP protocol ({type(error).__name__}: {error})"
        )
        done.set_exception(_failure(Code.UNREACHABLE, words, error))
    else:
        done.set_result(answer)


def _failure(code: Code, words: str, cause: BaseException) -> Failure:
    failure = Failure(code, words)
    failure.__cause__ = cause
    return failure
