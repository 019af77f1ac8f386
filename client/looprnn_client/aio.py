"""The client that is awaited: the same plans as `client.Client`, run by asyncio."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Iterable, Sequence
from types import TracebackType
from typing import Any, Literal, overload

from numpy.typing import NDArray

from looprnn_client.address import TLS, Headers, line
from looprnn_client.client import IN_FLIGHT, RETRIES, Item, check_name
from looprnn_client.core import Core
from looprnn_client.drive import Awaiting, arun
from looprnn_client.errors import LoopRNNClientError
from looprnn_client.many import check_in_flight, infer_many_async
from looprnn_client.regions import region_maker
from looprnn_client.result import Result
from looprnn_client.signature import Signature
from looprnn_client.state import StreamState
from looprnn_client.stream import AsyncStream
from looprnn_client.stream_core import StreamCore
from looprnn_client.timing import seconds
from looprnn_client.transport import Array, AsyncTransport, connect_async


class AsyncClient:
    """As `Client`, with the same arguments, awaited: `async with AsyncClient(...) as client`.

    Tasks of one event loop may share it. A cancelled task cancels its call.
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
        transport: AsyncTransport | None = None,
    ) -> None:
        check_name(model)
        seconds(timeout_s)
        if transport is None:
            transport = connect_async(line(url, headers=headers, compression=compression, tls=tls))
        self._core = Core(
            url,
            model,
            transport,
            Awaiting(),
            timeout_s=timeout_s,
            retries=retries,
            make_region=region_maker(memory),
        )

    @property
    def signature(self) -> Awaitable[Signature]:
        """As `Client.signature`: `await client.signature`."""
        return arun(self._core.read_signature())

    async def infer(
        self,
        x: Array | NDArray[Any],
        h_0: Array | None = None,
        c_0: Array | None = None,
        *,
        lengths: Sequence[int] | NDArray[Any] | None = None,
        outputs: Sequence[str] | None = None,
        timeout_s: float | None = None,
    ) -> Result:
        """As `Client.infer`."""
        return await arun(
            self._core.infer(x, h_0, c_0, lengths=lengths, outputs=outputs, timeout_s=timeout_s)
        )

    @overload
    def infer_many(
        self,
        items: Iterable[Item] | AsyncIterable[Item],
        *,
        in_flight: int = ...,
        outputs: Sequence[str] | None = ...,
        timeout_s: float | None = ...,
        progress: bool = ...,
        return_errors: Literal[False] = ...,
    ) -> AsyncIterator[Result]: ...

    @overload
    def infer_many(
        self,
        items: Iterable[Item] | AsyncIterable[Item],
        *,
        in_flight: int = ...,
        outputs: Sequence[str] | None = ...,
        timeout_s: float | None = ...,
        progress: bool = ...,
        return_errors: bool,
    ) -> AsyncIterator[Result | LoopRNNClientError]: ...

    def infer_many(
        self,
        items: Iterable[Item] | AsyncIterable[Item],
        *,
        in_flight: int = IN_FLIGHT,
        outputs: Sequence[str] | None = None,
        timeout_s: float | None = None,
        progress: bool = False,
        return_errors: bool = False,
    ) -> AsyncIterator[Result] | AsyncIterator[Result | LoopRNNClientError]:
        """As `Client.infer_many`, for `async for`; items may be an async iterable too."""
        self._core.refuse_if_closed()
        check_in_flight(in_flight)
        return infer_many_async(
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
    ) -> AsyncStream:
        """As `Client.stream`: `async with client.stream() as s: result = await s.send(chunk)`."""
        return AsyncStream(StreamCore(self._core, model, outputs=outputs, resume=resume))

    def resume(
        self,
        state: StreamState,
        model: str | None = None,
        *,
        outputs: Sequence[str] | None = None,
        resume: bool = False,
    ) -> AsyncStream:
        """As `Client.resume`."""
        name = state.model if model is None else model
        core = StreamCore(self._core, name, outputs=outputs, resume=resume, state=state)
        return AsyncStream(core)

    async def close(self) -> None:
        """As `Client.close`."""
        await arun(self._core.close())

    async def __aenter__(self) -> AsyncClient:
        self._core.refuse_if_closed()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()
