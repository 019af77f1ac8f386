"""A stream as its user sees it: one sequence, sent chunk by chunk."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from types import TracebackType
from typing import Any

from numpy.typing import NDArray

from looprnn_client.drive import arun, run
from looprnn_client.result import Result
from looprnn_client.state import StreamState
from looprnn_client.stream_core import StreamCore
from looprnn_client.transport import Array

Chunk = Array | NDArray[Any]


class _Stream:
    def __init__(self, core: StreamCore) -> None:
        self._core = core

    @property
    def model(self) -> str:
        """The model that holds the stream."""
        return self._core.model

    @property
    def steps(self) -> int:
        """Time steps answered so far, those before a resumed state included."""
        return self._core.steps


class Stream(_Stream):
    """One sequence, sent in chunks; made by `Client.stream` and `Client.resume`, used in a `with`.

    Threads may share it: their chunks go one after another.
    """

    def send(self, chunk: Chunk, *, timeout_s: float | None = None) -> Result:
        """Runs the next chunk, float32 [1, T, I] or ids [1, T], and gives its answer.

        T may differ from chunk to chunk. Raises BadInput with the stream unharmed, StreamRefused
        when the server takes no further stream, StreamLost when the stream cannot go on, and as
        `Client.infer`.
        """
        return run(self._core.send(chunk, timeout_s))

    def map(self, chunks: Iterable[Chunk]) -> Iterator[Result]:
        """An answer for each chunk, as it is taken. Raises as `send`."""
        for chunk in chunks:
            yield self.send(chunk)

    def state(self, *, timeout_s: float | None = None) -> StreamState:
        """Where the stream stands, to save or to give to `Client.resume`; the stream goes on."""
        return run(self._core.state(timeout_s))

    def close(self) -> None:
        """Frees the stream's place on the server; a second close does nothing."""
        run(self._core.end())

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class AsyncStream(_Stream):
    """As Stream, awaited; made by `AsyncClient`, used in an `async with`."""

    async def send(self, chunk: Chunk, *, timeout_s: float | None = None) -> Result:
        """As `Stream.send`. A cancelled send leaves the stream lost, or, with resume=True, before
        the chunk."""
        return await arun(self._core.send(chunk, timeout_s))

    async def map(self, chunks: Iterable[Chunk] | AsyncIterable[Chunk]) -> AsyncIterator[Result]:
        """An answer for each chunk, as it is taken: `async for result in stream.map(chunks)`."""
        if isinstance(chunks, AsyncIterable):
            async for chunk in chunks:
                yield await self.send(chunk)
        else:
            for chunk in chunks:
                yield await self.send(chunk)

    async def state(self, *, timeout_s: float | None = None) -> StreamState:
        """As `Stream.state`."""
        return await arun(self._core.state(timeout_s))

    async def close(self) -> None:
        """As `Stream.close`."""
        await arun(self._core.end())

    async def __aenter__(self) -> AsyncStream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()
