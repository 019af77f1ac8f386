"""The seam over gRPC. The channel is shared by threads: tritonclient's unary calls are safe."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import tritonclient.grpc as triton  # type: ignore[import-untyped,unused-ignore]
from numpy.typing import NDArray
from tritonclient.utils import (  # type: ignore[import-untyped,unused-ignore]
    InferenceServerException,
    np_to_triton_dtype,
)

from looprnn_client.transport import Code, Failure, Tensor

T = TypeVar("T")

CODES = {
    "StatusCode.DEADLINE_EXCEEDED": Code.TIMEOUT,
    "StatusCode.NOT_FOUND": Code.NOT_FOUND,
    "StatusCode.UNAVAILABLE": Code.UNAVAILABLE,
    "StatusCode.INVALID_ARGUMENT": Code.INVALID,
    "StatusCode.UNIMPLEMENTED": Code.UNREACHABLE,  # gRPC answers, but it is not Triton's
}
CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # gRPC backs off for up to 2 minutes, for all channels to one address: a server that comes
    # back would stay "unreachable" that long
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]


class GrpcTransport:
    """See `transport.Transport`."""

    def __init__(self, address: str) -> None:
        self._client = triton.InferenceServerClient(address, channel_args=CHANNEL)

    def config(self, model: str, timeout_s: float) -> Mapping[str, Any]:
        answer = ask(
            lambda: self._client.get_model_config(model, as_json=True, client_timeout=timeout_s)
        )
        return cast(Mapping[str, Any], answer["config"])

    def index(self, timeout_s: float) -> Sequence[Mapping[str, Any]]:
        answer = ask(
            lambda: self._client.get_model_repository_index(as_json=True, client_timeout=timeout_s)
        )
        return cast(Sequence[Mapping[str, Any]], answer.get("models", []))

    def infer(
        self, model: str, inputs: Mapping[str, Tensor], outputs: Sequence[str], timeout_s: float
    ) -> dict[str, NDArray[Any]]:
        def call() -> dict[str, NDArray[Any]]:
            sent = [
                triton.InferInput(k, list(v.shape), np_to_triton_dtype(v.dtype))
                for k, v in inputs.items()
            ]
            for tensor, array in zip(sent, inputs.values(), strict=True):
                tensor.set_data_from_numpy(array)
            wanted = [triton.InferRequestedOutput(name) for name in outputs]
            answer = self._client.infer(model, sent, outputs=wanted, client_timeout=timeout_s)
            got = {name: answer.as_numpy(name) for name in outputs}
            return {name: array for name, array in got.items() if array is not None}

        return ask(call)

    def close(self) -> None:
        self._client.close()


def ask(call: Callable[[], T]) -> T:
    """call(), with what tritonclient, gRPC and protobuf raise turned into `Failure`."""
    try:
        return call()
    except InferenceServerException as error:
        code = CODES.get(error.status(), Code.INTERNAL)
        raise Failure(code, error.message() or str(error)) from error
    except (ValueError, KeyError) as error:
        # a channel closed meanwhile, a message over protobuf's 2 GB, an answer of the wrong size
        raise Failure(Code.INTERNAL, str(error)) from error
