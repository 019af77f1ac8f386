"""Calls the recurrent networks that looprnn serves; importing it loads NumPy and no transport."""

from looprnn_client.address import TLS
from looprnn_client.aio import AsyncClient
from looprnn_client.client import Client, list_models
from looprnn_client.errors import (
    BadInput,
    LoopRNNClientError,
    NotReady,
    ServerError,
    StreamLost,
    StreamRefused,
    Timeout,
    UnknownModel,
    Unreachable,
)
from looprnn_client.result import Result
from looprnn_client.signature import Signature
from looprnn_client.state import StreamState
from looprnn_client.stream import AsyncStream, Stream
from looprnn_client.transport import ModelState

__all__ = [
    "TLS",
    "AsyncClient",
    "AsyncStream",
    "BadInput",
    "Client",
    "LoopRNNClientError",
    "ModelState",
    "NotReady",
    "Result",
    "ServerError",
    "Signature",
    "Stream",
    "StreamLost",
    "StreamRefused",
    "StreamState",
    "Timeout",
    "UnknownModel",
    "Unreachable",
    "list_models",
]
