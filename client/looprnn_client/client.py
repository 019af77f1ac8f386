"""The client that blocks: threads may share it."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, Literal, overload

from numpy.typing import NDArray

from looprnn_client.address import TLS, Headers, line
from looprnn_client.core import Core, list_states
from looprnn_client.drive import Blocking, run
from looprnn_client.errors import BadInput, LoopRNNClientError
from looprnn_client.many import check_in_flight, infer_many, submit
from looprnn_client.regions import region_maker
from looprnn_client.result import Result
from looprnn_client.signature import Signature
from looprnn_client.state import StreamState
from looprnn_client.stream import Stream
from looprnn_client.stream_core import StreamCore
from looprnn_client.timing import seconds
from looprnn_client.transport import Array, ModelState, Transport, connect

Item = Array | NDArray[Any] | Mapping[str, Any]
RETRIES = 2  # of a call that is safe to repeat
IN_FLIGHT = 8
THREADS = 16


class Client:
    """One model on one server. Threads may share it; close it, or use it in a `with`.

    url: "host:port" or "grpc://host:port" for gRPC, "http://host:port" for HTTP; "grpcs://" and
    "https://" are the same over TLS.
    timeout_s: seconds that a whole call may take, its retries and the first one's reading of the
    model included.
    retries: how often a call may be sent again, with growing pauses, when the connection breaks or
    the server is unavailable; a stream's chunk never, or with `stream(..., resume=True)` until the
    time is up.
    headers: sent with every call, a token say; or a function that gives them, asked each time.
    compression: "gzip" or "deflate" for what is sent; the server chooses for its answers.
    tls: certificates, where the host's usual ones do not do.
    memory: how the arrays of whole sequences travel. "wire": in the messages. "system": in POSIX
    memory shared with a server on this machine that allows it, for large arrays. "cuda", "cuda:1":
    in memory of that GPU, with cuda-python and a server on it. Chunks of streams go by wire.
    transport: stands in for the network; `url` is then only a name in messages.
    Raises BadInput when an argument cannot be used. Nothing is connected before the first call.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        timeout_s: float,
        retries: int = RETRIES,
        headers: Headers | None = None,
        compression: str | None = None,
        tls: TLS | None = None,
        memory: str = "wire",
        transport: Transport | None = None,
    ) -> None:
        check_name(model)
        seconds(timeout_s)
        if transport is None:
            transport = connect(line(url, headers=headers, compression=compression, tls=tls))
        self._core = Core(
            url,
            model,
            transport,
            Blocking(),
            timeout_s=timeout_s,
            retries=retries,
            make_region=region_maker(memory),
        )
        self._pool: ThreadPoolExecutor | None = None
        self._opening = threading.Lock()

    @property
    def signature(self) -> Signature:
        """The model's sizes and limits, read from the server at first use. Raises as `infer`."""
        return run(self._core.read_signature())

    def infer(
        self,
        x: Array | NDArray[Any],
        h_0: Array | None = None,
        c_0: Array | None = None,
        *,
        lengths: Sequence[int] | NDArray[Any] | None = None,
        outputs: Sequence[str] | None = None,
        timeout_s: float | None = None,
    ) -> Result:
        """Runs the model over x: [B, T, I] float32, from h_0 and c_0: [B, N, H] float32.

        x: ids [B, T] of any integer type where the model has a vocabulary. A state left out is what
        the model starts from by itself. lengths: [B] integers in 0..T, the steps of each row that
        count, the rest being padding on the right; None is T for every row. outputs: names among
        `signature.outputs`; None is all. timeout_s: for this call; None is the client's.
        A call that fails makes the next one read the model again.
        Raises BadInput before anything is sent, UnknownModel, NotReady, Unreachable, Timeout,
        ServerError, and BadInput for what only the server could know.
        """
        return run(
            self._core.infer(x, h_0, c_0, lengths=lengths, outputs=outputs, timeout_s=timeout_s)
        )

    def submit(
        self,
        x: Array | NDArray[Any],
        h_0: Array | None = None,
        c_0: Array | None = None,
        *,
        lengths: Sequence[int] | NDArray[Any] | None = None,
        outputs: Sequence[str] | None = None,
        timeout_s: float | None = None,
    ) -> Future[Result]:
        """As `infer`, without waiting: the future holds the Result, or raises what infer would.

        Its arrays may be changed as soon as this returns. The time counts from here; THREADS calls
        are under way at once. A future may be cancelled until its call is sent.
        """
        with self._opening:
            self._core.refuse_if_closed()
            if self._pool is None:
                self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="looprnn-client-call")
        return submit(
            self._core,
            self._pool,
            {"x": x, "h_0": h_0, "c_0": c_0, "lengths": lengths}
            | {"outputs": outputs, "timeout_s": timeout_s},
        )

    @overload
    def infer_many(
        self,
        items: Iterable[Item],
        *,
        in_flight: int = ...,
        outputs: Sequence[str] | None = ...,
        timeout_s: float | None = ...,
        progress: bool = ...,
        return_errors: Literal[False] = ...,
    ) -> Iterator[Result]: ...

    @overload
    def infer_many(
        self,
        items: Iterable[Item],
        *,
        in_flight: int = ...,
        outputs: Sequence[str] | None = ...,
        timeout_s: float | None = ...,
        progress: bool = ...,
        return_errors: bool,
    ) -> Iterator[Result | LoopRNNClientError]: ...

    def infer_many(
        self,
        items: Iterable[Item],
        *,
        in_flight: int = IN_FLIGHT,
        outputs: Sequence[str] | None = None,
        timeout_s: float | None = None,
        progress: bool = False,
        return_errors: bool = False,
    ) -> Iterator[Result] | Iterator[Result | LoopRNNClientError]:
        """A Result for each item, in their order, with at most in_flight calls under way.

        items: each an x, or a mapping of infer's arguments, {"x": ..., "lengths": ...}; taken as
        answers are, so a generator may be endless. timeout_s: for each call. progress: draws a bar
        on stderr, with rich. The first error cancels the calls under way and is raised with the
        item's number in its words and as its `index`; with return_errors=True it takes the Result's
        place, and the rest goes on.
        """
        self._core.refuse_if_closed()
        check_in_flight(in_flight)
        return infer_many(
            self._core,
            items,
            {"outputs": outputs, "timeout_s": timeout_s},
            in_flight=in_flight,
            progress=progress,
            return_errors=return_errors,
        )

    def stream(
        self,
        model: str | None = None,
        *,
        outputs: Sequence[str] | None = None,
        resume: bool = False,
    ) -> Stream:
        """A new stream: `with client.stream() as s: result = s.send(chunk)`.

        model: the one that holds streams; None is this client's name with `_stream` at its end.
        outputs: names to ask for with every chunk; None is all the model has.
        resume: every chunk brings the state home, and when the server or the connection is lost,
        a new stream begins there and the chunk is sent again, within the call's timeout_s. Every
        chunk that `send` answers was applied exactly once, after all those answered before it;
        one that raises was not applied, and may be sent again.
        Without it, a chunk whose answer did not come leaves the stream lost.
        """
        return Stream(StreamCore(self._core, model, outputs=outputs, resume=resume))

    def resume(
        self,
        state: StreamState,
        model: str | None = None,
        *,
        outputs: Sequence[str] | None = None,
        resume: bool = False,
    ) -> Stream:
        """A new stream that goes on where `state` was taken, on this or another server.

        model: None is the state's own. The other arguments are those of `stream`.
        """
        name = state.model if model is None else model
        core = StreamCore(self._core, name, outputs=outputs, resume=resume, state=state)
        return Stream(core)

    def close(self) -> None:
        """Ends the connection; calls under way fail. A second close does nothing."""
        run(self._core.close())
        with self._opening:
            if self._pool is not None:
                self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Client:
        self._core.refuse_if_closed()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def list_models(
    url: str,
    *,
    timeout_s: float,
    headers: Headers | None = None,
    tls: TLS | None = None,
    transport: Transport | None = None,
) -> tuple[ModelState, ...]:
    """Every model in the server's repository with its state, by name and version.

    Raises BadInput for an argument, Unreachable, Timeout, ServerError.
    """
    limit = seconds(timeout_s)
    to = connect(line(url, headers=headers, tls=tls)) if transport is None else transport
    try:
        return run(list_states(url, to, limit))
    finally:
        to.close()


def check_name(model: str) -> None:
    if not isinstance(model, str) or not model:
        raise BadInput(f"model must be the name of a model, got {model!r}")
