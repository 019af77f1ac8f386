"""The seam over gRPC, for asyncio: the codec and the ways of `_grpc`, awaited."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import grpc  # type: ignore[import-untyped,unused-ignore]
from tritonclient.grpc import (  # type: ignore[import-untyped,unused-ignore]
    service_pb2 as pb,
)
from tritonclient.grpc import (
    service_pb2_grpc,
)

from looprnn_client._grpc import GRACE_S, RAISED, as_json, registration, removal
from looprnn_client._grpc_codec import (
    CHANNEL,
    CLOSED,
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


class AsyncGrpcTransport:
    """See `transport.AsyncTransport`."""

    def __init__(self, to: Line) -> None:
        self._to = to
        self._secret = credentials(to.tls) if to.secure else None
        self._channel: Any = None
        self._lane: AsyncLane | None = None
        self._closed = False

    def prepare(self, call: Call) -> Any:
        return encode(call)

    async def config(self, model: str, timeout_s: float) -> Mapping[str, Any]:
        request = pb.ModelConfigRequest(name=model)
        answer = await self._ask(self._stub().ModelConfig, request, timeout_s)
        return cast(Mapping[str, Any], as_json(answer)["config"])

    async def index(self, timeout_s: float) -> Sequence[Mapping[str, Any]]:
        request = pb.RepositoryIndexRequest()
        answer = await self._ask(self._stub().RepositoryIndex, request, timeout_s)
        return cast(Sequence[Mapping[str, Any]], as_json(answer).get("models", []))

    async def infer(self, request: Any, timeout_s: float) -> Answer:
        return decode(await self._ask(self._stub().ModelInfer, request, timeout_s))

    async def chunk(self, request: Any, timeout_s: float) -> Answer:
        if alone(request, self._lane is not None and not self._lane.over):
            return await self.infer(request, timeout_s)
        lane = self._open()
        sent = lane.send(request)
        try:
            return decode_chunk(await asyncio.wait_for(sent, timeout_s))
        except (TimeoutError, asyncio.TimeoutError) as error:  # noqa: UP041  two until 3.11
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

    async def share(self, name: str, handle: Any, size: int, timeout_s: float) -> None:
        await self._ask(*registration(self._stub(), name, handle, size), timeout_s)

    async def unshare(self, name: str, cuda: bool, timeout_s: float) -> None:
        await self._ask(*removal(self._stub(), name, cuda), timeout_s)

    async def close(self) -> None:
        self._closed = True
        if self._lane is not None:
            await self._lane.close()
        if self._channel is not None:
            await self._channel.close()

    def _stub(self) -> Any:
        """Over a channel that is opened at first use: it belongs to the loop it is opened on."""
        if self._closed:
            raise Failure(Code.INTERNAL, CLOSED)
        if self._channel is None:
            address = self._to.address
            self._channel = (
                grpc.aio.insecure_channel(address, CHANNEL)
                if self._secret is None
                else grpc.aio.secure_channel(address, self._secret, CHANNEL)
            )
            self._calls = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)
        return self._calls

    async def _ask(self, method: Callable[..., Any], request: Any, timeout_s: float) -> Any:
        try:
            return await method(request, timeout=timeout_s, **options(self._to))
        except (*RAISED, grpc.aio.UsageError) as error:
            raise failure(error) from error
        except asyncio.CancelledError as error:
            if self._closed:  # a channel that is closed cancels its calls
                raise Failure(Code.INTERNAL, CLOSED) from error
            raise  # the task was cancelled: its own affair

    def _open(self) -> AsyncLane:
        if self._lane is None or self._lane.over:
            try:
                self._lane = AsyncLane(self._stub(), options(self._to))
            except (*RAISED, grpc.aio.UsageError) as error:
                raise failure(error) from error
        return self._lane


class AsyncLane:
    """See `_grpc.Lane`."""

    def __init__(self, stub: Any, with_options: dict[str, Any]) -> None:
        self.over = False
        self._ended: Failure | None = None
        self._live: set[str] = set()
        self._ids = itertools.count(1)
        self._requests: asyncio.Queue[Any] = asyncio.Queue()
        self._waiting: dict[str, asyncio.Future[Any]] = {}
        self._call = stub.ModelStreamInfer(self._outgoing(), **with_options)
        self._reader = asyncio.create_task(self._read())

    def send(self, request: Any) -> asyncio.Future[Any]:
        if self._ended is not None:
            raise Failure(self._ended.code, self._ended.words)
        request.id = str(next(self._ids))
        sent = self._waiting[request.id] = asyncio.get_running_loop().create_future()
        self._requests.put_nowait(request)
        if last(request, self._live):
            self.over = True
            self._requests.put_nowait(None)
        return sent

    def give_up(self, request: Any) -> None:
        self._waiting.pop(request.id, None)

    async def close(self) -> None:
        self.over = True
        self._requests.put_nowait(None)
        if not self._waiting:
            await asyncio.wait([self._reader], timeout=GRACE_S)
        self._call.cancel()
        await self._reader

    async def _outgoing(self) -> Any:
        while (request := await self._requests.get()) is not None:
            yield request

    async def _read(self) -> None:
        ended = Failure(Code.BROKEN, "the server ended the call that carries the streams")
        try:
            async for response in self._call:
                waiting = self._waiting.pop(response.infer_response.id, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(response)
        except grpc.RpcError as error:
            ended = failure(error)
        except asyncio.CancelledError:
            ended = Failure(Code.INTERNAL, CLOSED)
        self.over, self._ended = True, ended
        self._requests.put_nowait(None)
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(Failure(ended.code, ended.words))
        self._waiting.clear()
