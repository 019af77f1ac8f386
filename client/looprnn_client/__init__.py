"""Calls the recurrent networks that looprnn serves; importing it loads NumPy and no transport."""

from looprnn_client.client import Client, Result, list_models
from looprnn_client.errors import (
    BadInput,
    LoopRNNClientError,
    NotReady,
    ServerError,
    Timeout,
    UnknownModel,
    Unreachable,
)
from looprnn_client.signature import Signature
from looprnn_client.transport import ModelState

__all__ = [
    "BadInput",
    "Client",
    "LoopRNNClientError",
    "ModelState",
    "NotReady",
    "Result",
    "ServerError",
    "Signature",
    "Timeout",
    "UnknownModel",
    "Unreachable",
    "list_models",
]
