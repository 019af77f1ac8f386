"""The one seam: what a protocol must do. `_grpc` and `_http` do it; nothing else knows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from looprnn_client.errors import BadInput

Array = NDArray[np.float32]
Tensor = NDArray[np.float32] | NDArray[np.int32]  # what a call may send


class Code(Enum):
    """What went wrong, in words that both protocols share."""

    UNREACHABLE = auto()  # no Triton there
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


class Transport(Protocol):
    """Threads share one; each call ends within timeout_s seconds and raises `Failure` alone."""

    def config(self, model: str, timeout_s: float) -> Mapping[str, Any]:
        """The model's ModelConfig as JSON; numbers may be strings, defaults may be left out."""

    def index(self, timeout_s: float) -> Sequence[Mapping[str, Any]]:
        """The repository's rows: name, and version, state and reason where they are not empty."""

    def infer(
        self, model: str, inputs: Mapping[str, Tensor], outputs: Sequence[str], timeout_s: float
    ) -> dict[str, NDArray[Any]]:
        """Sends float32 and int32 inputs as they are; returns those of `outputs` that came back."""

    def close(self) -> None:
        """Once is enough, twice is fine; calls under way fail."""


def connect(url: str) -> Transport:
    """The transport of `host:port`, `grpc://host:port` or `http://host:port`; opens no connection.

    Raises BadInput for any other address.
    """
    scheme, address = parse(url)
    if scheme == "grpc":
        from looprnn_client._grpc import GrpcTransport

        return GrpcTransport(address)
    from looprnn_client._http import HttpTransport

    return HttpTransport(address)


def parse(url: str) -> tuple[str, str]:
    """(scheme, "host:port"). Raises BadInput."""
    wanted = (
        "write localhost:8001 or grpc://localhost:8001 for gRPC, http://localhost:8000 for HTTP"
    )
    if not isinstance(url, str):
        raise BadInput(f"the server's address must be a string, got {url!r}; {wanted}")
    try:
        parts = urlsplit(url if "://" in url else f"grpc://{url}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise BadInput(f"{url!r} is not an address ({error}); {wanted}") from error
    if parts.scheme not in ("grpc", "http"):
        raise BadInput(
            f"{url!r} asks for {parts.scheme!r}, which this client cannot speak; {wanted}"
        )
    if not host or not port:
        raise BadInput(f"{url!r} names no {'port' if host else 'host'}; {wanted}")
    if parts.path.strip("/") or parts.query or parts.fragment or "@" in parts.netloc:
        raise BadInput(f"{url!r} says more than a host and a port; {wanted}")
    return parts.scheme, f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
