"""The one seam: what a protocol must do. `_grpc` and `_http` do it; nothing else knows them.

Each protocol has a codec, which builds a request once and reads an answer without any I/O, and two
thin carriers around it: one that blocks and one that is awaited. `drive.py` runs either.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from looprnn_client.address import Line

Array = NDArray[np.float32]
Tensor = NDArray[np.float32] | NDArray[np.int32]  # what a call may send
Answer = dict[str, NDArray[Any]]


def elsewhere(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Stands for an array whose numbers are in shared memory: its shape and type, and NaN."""
    return np.broadcast_to(np.array(np.nan if dtype == np.float32 else 0, dtype), shape)


class Code(Enum):
    """What went wrong, in words that both protocols share."""

    UNREACHABLE = auto()  # no Triton there
    BROKEN = auto()  # nothing listens, or the connection ended under the call
    TIMEOUT = auto()
    NOT_FOUND = auto()
    UNAVAILABLE = auto()  # over gRPC this is a dead server or a model that is not ready
    INVALID = auto()
    INTERNAL = auto()


class Failure(Exception):
    """A call that failed below the seam; `explain.py` turns it into one of the public errors."""

    def __init__(self, code: Code, words: str) -> None:
        super().__init__(words)
        self.code = code
        self.words = words.strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelState:
    """One version of one model in the server's repository.

    state is Triton's: READY, UNAVAILABLE, LOADING, UNLOADING, or "" when it was never loaded.
    reason is the server's, "" when there is none.
    """

    name: str
    version: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an array lies in memory that client and server share; offset and size in bytes."""

    region: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request, before a protocol's codec has seen it.

    sequence: the correlation id of a stream's chunk, with its START and END.
    places: the inputs and outputs that do not go over the wire.
    """

    model: str
    inputs: Mapping[str, Tensor]
    outputs: Sequence[str]
    sequence: str | None = None
    start: bool = False
    end: bool = False
    places: Mapping[str, Place] = field(default_factory=dict)


class Flight(Protocol):
    """A request that was sent; any thread may cancel it."""

    def result(self) -> Answer:
        """Waits; raises `Failure`."""

    def cancel(self) -> object: ...


class Transport(Protocol):
    """Threads share one; each call ends within timeout_s seconds and raises `Failure` alone.

    The answers of `config` and `index` are Triton's JSON: numbers may be strings, defaults may be
    left out.
    """

    def prepare(self, call: Call) -> Any:
        """The request as `infer` and `chunk` take it, any number of times. No I/O; raises
        `Failure` where the protocol cannot hold it."""

    def config(self, model: str, timeout_s: float) -> Mapping[str, Any]: ...

    def index(self, timeout_s: float) -> Sequence[Mapping[str, Any]]: ...

    def infer(self, request: Any, timeout_s: float) -> Answer:
        """The outputs that came back; of those in shared memory, the shape and type alone."""

    def start(self, request: Any, timeout_s: float) -> Flight:
        """As infer, without waiting."""

    def chunk(self, request: Any, timeout_s: float) -> Answer:
        """As infer, for a request with a sequence: never repeated by any layer below."""

    def forget(self, request: Any) -> None:
        """Sends a request with a sequence and waits for nothing; nothing is raised."""

    def share(self, name: str, handle: Any, size: int, timeout_s: float) -> None:
        """Registers shared memory: a handle is a POSIX key, or a CUDA (device, handle) pair."""

    def unshare(self, name: str, cuda: bool, timeout_s: float) -> None: ...

    def close(self) -> None:
        """Once is enough, twice is fine; calls under way fail."""


class AsyncTransport(Protocol):
    """As Transport, awaited; it belongs to the event loop it is first used on."""

    def prepare(self, call: Call) -> Any: ...
    def config(self, model: str, timeout_s: float) -> Awaitable[Mapping[str, Any]]: ...
    def index(self, timeout_s: float) -> Awaitable[Sequence[Mapping[str, Any]]]: ...
    def infer(self, request: Any, timeout_s: float) -> Awaitable[Answer]: ...
    def chunk(self, request: Any, timeout_s: float) -> Awaitable[Answer]: ...
    def forget(self, request: Any) -> None: ...
    def share(self, name: str, handle: Any, size: int, timeout_s: float) -> Awaitable[None]: ...
    def unshare(self, name: str, cuda: bool, timeout_s: float) -> Awaitable[None]: ...
    def close(self) -> Awaitable[None]: ...


def connect(to: Line) -> Transport:
    """The blocking transport of a line; opens no connection."""
    if to.grpc:
        from looprnn_client._grpc import GrpcTransport

        return GrpcTransport(to)
    from looprnn_client._http import HttpTransport

    return HttpTransport(to)


def connect_async(to: Line) -> AsyncTransport:
    """The awaited transport of a line; opens no connection."""
    if to.grpc:
        from looprnn_client._grpc_aio import AsyncGrpcTransport

        return AsyncGrpcTransport(to)
    from looprnn_client._http_aio import AsyncHttpTransport

    return AsyncHttpTransport(to)
