"""The seam over gRPC, for threads: unary calls, and one bidirectional call for all streams."""

from __future__ import annotations

import itertools
import queue
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, TypeVar, cast

import grpc  # type: ignore[import-untyped,unused-ignore]
from google.protobuf.json_format import MessageToDict
from tritonclient.grpc import (  # type: ignore[import-untyped,unused-ignore]
    service_pb2 as pb,
)
from tritonclient.grpc import (
    service_pb2_grpc,
)

from looprnn_client._grpc_codec import (
    CHANNEL,
    alone,
    credentials,
    decode,
    decode_chunk,
    encode,
    failure,
    last,
    options,
)
from looprnn_client.address import Line
from looprnn_client.transport import Answer, Call, Code, Failure

T = TypeVar("T")
GRACE_S = 1.0  # for a call without streams to end
RAISED = (grpc.RpcError, ValueError)


class GrpcTransport:
    """See `transport.Transport`."""

    def __init__(self, to: Line) -> None:
        self._to = to
        if to.secure:
            self._channel = grpc.secure_channel(to.address, credentials(to.tls), CHANNEL)
        else:
            self._channel = grpc.insecure_channel(to.address, CHANNEL)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        self._lanes: list[Lane] = []  # the one in use, if any
        self._opening = threading.Lock()
        weakref.finalize(self, cancel_all, self._lanes)  # a client that nobody closed

    def prepare(self, call: Call) -> Any:
        return encode(call)

    def config(self, model: str, timeout_s: float) -> Mapping[str, Any]:
        answer = self._ask(self._stub.ModelConfig, pb.ModelConfigRequest(name=model), timeout_s)
        return cast(Mapping[str, Any], as_json(answer)["config"])

    def index(self, timeout_s: float) -> Sequence[Mapping[str, Any]]:
        answer = self._ask(self._stub.RepositoryIndex, pb.RepositoryIndexRequest(), timeout_s)
        return cast(Sequence[Mapping[str, Any]], as_json(answer).get("models", []))

    def infer(self, request: Any, timeout_s: float) -> Answer:
        return decode(self._ask(self._stub.ModelInfer, request, timeout_s))

    def start(self, request: Any, timeout_s: float) -> Sent:
        try:
            call = self._stub.ModelInfer.future(request, timeout=timeout_s, **options(self._to))
        except RAISED as error:
            raise failure(error) from error
        return Sent(call)

    def chunk(self, request: Any, timeout_s: float) -> Answer:
        if alone(request, any(not lane.over for lane in self._lanes)):
            return self.infer(request, timeout_s)
        lane = self._open()
        sent = lane.send(request)
        try:
            return decode_chunk(sent.result(timeout_s))
        except FutureTimeout as error:
            raise Failure(Code.TIMEOUT, "no answer to the chunk") from error
        finally:
            lane.give_up(request)

    def forget(self, request: Any) -> None:
        try:
            lane = self._open()
            lane.send(request)
            lane.give_up(request)
        except Failure:
            return

    def share(self, name: str, handle: Any, size: int, timeout_s: float) -> None:
        self._ask(*registration(self._stub, name, handle, size), timeout_s)

    def unshare(self, name: str, cuda: bool, timeout_s: float) -> None:
        self._ask(*removal(self._stub, name, cuda), timeout_s)

    def close(self) -> None:
        with self._opening:
            for lane in self._lanes:
                lane.close()
        self._channel.close()

    def _ask(self, method: Callable[..., T], request: Any, timeout_s: float) -> T:
        try:
            return method(request, timeout=timeout_s, **options(self._to))
        except RAISED as error:
            raise failure(error) from error

    def _open(self) -> Lane:
        with self._opening:
            if not self._lanes or self._lanes[0].over:
                try:
                    self._lanes[:] = [Lane(self._stub, options(self._to))]
                except RAISED as error:
                    raise failure(error) from error
            return self._lanes[0]


class Sent:
    """See `transport.Flight`."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.cancel = call.cancel

    def result(self) -> Answer:
        try:
            return decode(self._call.result())
        except (*RAISED, grpc.FutureCancelledError) as error:
            raise failure(error) from error


class Lane:
    """One bidirectional call that carries the chunks of many streams; an answer finds its request
    by the id they share.

    Triton answers such a call in the order of its requests: one that waits holds up all behind it.
    A chunk with START may wait until another stream ends, so it is sent as a call of its own.
    The call ends with the last of its streams: a server does not stop while there is one.
    """

    def __init__(self, stub: Any, with_options: dict[str, Any]) -> None:
        self.over = False
        self._ended: Failure | None = None
        self._live: set[str] = set()
        self._ids = itertools.count(1)
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._waiting: dict[str, Future[Any]] = {}
        self._lock = threading.Lock()
        self._call = stub.ModelStreamInfer(iter(self._requests.get, None), **with_options)
        self._reader = threading.Thread(
            target=self._read, name="looprnn-client-streams", daemon=True
        )
        self._reader.start()

    def send(self, request: Any) -> Future[Any]:
        """The response to come. Raises Failure when the call has ended."""
        sent: Future[Any] = Future()
        with self._lock:
            if self._ended is not None:
                raise Failure(self._ended.code, self._ended.words)
            request.id = str(next(self._ids))
            self._waiting[request.id] = sent
            self._requests.put(request)
            if last(request, self._live):
                self.over = True
                self._requests.put(None)
        return sent

    def give_up(self, request: Any) -> None:
        """A response to this request is no longer waited for."""
        self._waiting.pop(request.id, None)

    def close(self) -> None:
        """Calls under way fail. A call that is merely open is ended in order: one that is cancelled
        keeps Triton from stopping for as long as it may."""
        with self._lock:
            self.over = True
            self._requests.put(None)
            busy = bool(self._waiting)
        if not busy:
            self._reader.join(GRACE_S)
        self.cancel()

    def cancel(self) -> None:
        self._call.cancel()

    def _read(self) -> None:
        ended = Failure(Code.BROKEN, "the server ended the call that carries the streams")
        try:
            for response in self._call:
                waiting = self._waiting.pop(response.infer_response.id, None)
                if waiting is not None:
                    waiting.set_result(response)
        except grpc.RpcError as error:
            ended = failure(error)
        with self._lock:
            self.over, self._ended = True, ended
            left, self._waiting = self._waiting, {}
        self._requests.put(None)  # ends gRPC's own thread, which reads them
        for waiting in left.values():
            waiting.set_exception(Failure(ended.code, ended.words))


def cancel_all(lanes: list[Lane]) -> None:
    for lane in lanes:
        lane.cancel()


def as_json(message: Any) -> dict[str, Any]:
    found: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    return found


def registration(stub: Any, name: str, handle: Any, size: int) -> tuple[Any, Any]:
    """The method and the request that register memory, POSIX or CUDA by its handle."""
    if isinstance(handle, str):
        request = pb.SystemSharedMemoryRegisterRequest(name=name, key=handle, byte_size=size)
        return stub.SystemSharedMemoryRegister, request
    device, raw = handle
    return stub.CudaSharedMemoryRegister, pb.CudaSharedMemoryRegisterRequest(
        name=name, raw_handle=raw, device_id=device, byte_size=size
    )


def removal(stub: Any, name: str, cuda: bool) -> tuple[Any, Any]:
    if cuda:
        return stub.CudaSharedMemoryUnregister, pb.CudaSharedMemoryUnregisterRequest(name=name)
    return stub.SystemSharedMemoryUnregister, pb.SystemSharedMemoryUnregisterRequest(name=name)
