"""Arrays ↔ Triton's gRPC messages, without any I/O; what a channel is opened with.

tritonclient's messages and stub are used, not its client: that builds a request anew for every
attempt, and its bidirectional stream drops the id of a request that failed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped,unused-ignore]
import numpy as np
from tritonclient.grpc import service_pb2 as pb  # type: ignore[import-untyped,unused-ignore]

from looprnn_client.address import TLS, Line
from looprnn_client.transport import Answer, Call, Code, Failure, Place, elsewhere

CODES = {
    grpc.StatusCode.DEADLINE_EXCEEDED: Code.TIMEOUT,
    grpc.StatusCode.NOT_FOUND: Code.NOT_FOUND,
    grpc.StatusCode.UNAVAILABLE: Code.UNAVAILABLE,
    grpc.StatusCode.INVALID_ARGUMENT: Code.INVALID,
    grpc.StatusCode.UNIMPLEMENTED: Code.UNREACHABLE,  # gRPC answers, but it is not Triton's
}
COMPRESSIONS = {
    None: None,
    "gzip": grpc.Compression.Gzip,
    "deflate": grpc.Compression.Deflate,
}
DTYPES = {"FP32": np.float32, "INT32": np.int32}
CHANNEL = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # gRPC backs off for up to 2 minutes, for all channels to one address: a server that comes
    # back would stay "unreachable" that long
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]
CLOSED = "the connection was closed"


def credentials(tls: TLS | None) -> Any:
    """What a secure channel is opened with. Raises OSError for a file that cannot be read."""
    tls = tls or TLS()
    roots, key, chain = (
        None if path is None else Path(path).read_bytes()
        for path in (tls.root_certificates, tls.private_key, tls.certificate)
    )
    return grpc.ssl_channel_credentials(roots, key, chain)


def options(to: Line) -> dict[str, Any]:
    """What every call is made with, besides its timeout."""
    return {
        "metadata": tuple(to.metadata().items()),
        "compression": COMPRESSIONS[to.compression],
    }


def encode(call: Call) -> Any:
    """The request. Raises Failure where protobuf's 2 GB do not hold it."""
    request = pb.ModelInferRequest(model_name=call.model)
    for name, array in call.inputs.items():
        datatype = "FP32" if array.dtype == np.float32 else "INT32"
        tensor = request.inputs.add(name=name, datatype=datatype, shape=array.shape)
        if name in call.places:
            put(tensor, call.places[name])
        else:
            request.raw_input_contents.append(array.tobytes())
    for name in call.outputs:
        output = request.outputs.add(name=name)
        if name in call.places:
            put(output, call.places[name])
    if call.sequence is not None:
        parameters = request.parameters
        parameters["sequence_id"].string_param = call.sequence
        parameters["sequence_start"].bool_param = call.start
        parameters["sequence_end"].bool_param = call.end
    return request


def put(tensor: Any, place: Place) -> None:
    tensor.parameters["shared_memory_region"].string_param = place.region
    tensor.parameters["shared_memory_byte_size"].int64_param = place.size
    tensor.parameters["shared_memory_offset"].int64_param = place.offset


def alone(request: Any, lane: bool) -> bool:
    """Whether a stream's request goes as a call of its own: its first, or an END for which the call
    of all streams would have to be opened."""
    first = request.parameters["sequence_start"].bool_param
    return first or (not lane and request.parameters["sequence_end"].bool_param)


def last(request: Any, live: set[str]) -> bool:
    """Whether no stream is live after this request of one; keeps their ids in `live`."""
    name = request.parameters["sequence_id"].string_param
    if not request.parameters["sequence_end"].bool_param:
        live.add(name)
        return False
    live.discard(name)
    return not live


def decode(response: Any) -> Answer:
    """The outputs as views of the message; those in shared memory by shape. Raises Failure."""
    answer: Answer = {}
    try:
        contents = iter(response.raw_output_contents)
        for output in response.outputs:
            dtype, shape, raw = DTYPES[output.datatype], tuple(output.shape), next(contents, b"")
            answer[output.name] = (
                np.frombuffer(raw, dtype).reshape(shape) if raw else elsewhere(shape, dtype)
            )
    except (KeyError, ValueError) as error:
        raise Failure(Code.INTERNAL, f"the answer is not what it says it is: {error}") from error
    return answer


def decode_chunk(response: Any) -> Answer:
    """As decode, for an answer on the bidirectional call. Raises Failure: the server's words."""
    if response.error_message:
        raise Failure(Code.INTERNAL, response.error_message)
    return decode(response.infer_response)


def failure(error: BaseException) -> Failure:
    """What gRPC and protobuf raise, as a Failure with the error as its cause."""
    if isinstance(error, grpc.RpcError):
        code, words = error.code(), error.details() or str(error)
        if code is grpc.StatusCode.CANCELLED:
            words = f"{CLOSED} ({words})"
        found = Failure(CODES.get(code, Code.INTERNAL), words)
    else:  # a channel closed meanwhile, a message over protobuf's 2 GB
        found = Failure(Code.INTERNAL, str(error))
    found.__cause__ = error
    return found
