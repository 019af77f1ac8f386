"""The call that carries all streams, against a double that answers as Triton may, or worse."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
from client_both import clients
from client_doubles import config
from google.protobuf.json_format import ParseDict
from looprnn_client import AsyncClient, BadInput, Client, ServerError, StreamLost
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

STREAMING = config(h=(1, 5), c=(1, 5), width=5, lengths=[1])
STREAMING["parameters"]["streaming"] = {"string_value": "true"}
X = np.zeros((1, 2, 7), np.float32)


class Backwards(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Gathers `together` requests and answers the last one first: what it answers is what came."""

    def __init__(self, together, says=None):
        self.together, self.says = together, says or {}
        self.ended = []

    def ModelConfig(self, request, context):
        return ParseDict({"config": STREAMING}, pb.ModelConfigResponse())

    def ModelInfer(self, request, context):  # START
        return self.echo(request)

    def ModelStreamInfer(self, requests, context):
        gathered = []
        for request in requests:
            if request.parameters["sequence_end"].bool_param:
                self.ended.append(request.parameters["sequence_id"].string_param)
                yield pb.ModelStreamInferResponse(infer_response=self.echo(request))
                continue
            gathered.append(request)
            if len(gathered) == self.together:
                for one in reversed(gathered):
                    yield self.answer(one)
                gathered = []

    def answer(self, request):
        words = self.says.get(mark(request))
        if words == "hang up":
            raise RuntimeError("hangs up")
        if words:
            response = pb.ModelStreamInferResponse(error_message=words)
            response.infer_response.id = request.id
            return response
        return pb.ModelStreamInferResponse(infer_response=self.echo(request))

    def echo(self, request):
        response = pb.ModelInferResponse(id=request.id)
        steps = request.inputs[0].shape[1]
        for wanted in request.outputs:
            shape = (1, steps, 5) if wanted.name == "output" else (1, 1, 5)
            response.outputs.add(name=wanted.name, datatype="FP32", shape=shape)
            array = np.full(shape, mark(request), np.float32)
            response.raw_output_contents.append(array.tobytes())
        return response


def mark(request):
    return float(np.frombuffer(request.raw_input_contents[0], np.float32)[0])


@contextmanager
def serving(triton):
    server = grpc.server(ThreadPoolExecutor(4))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def at_once(url, marks):
    """What each stream, sending its own mark, is answered or raises; all wait at the same time."""
    found = {}

    def run(stream, own):
        try:
            found[own] = stream.send(X + own).output.flat[0]
        except Exception as error:
            found[own] = error

    with Client(url, "lstm", timeout_s=20) as client:
        streams = {own: client.stream() for own in marks}
        for stream in streams.values():
            stream.send(X)
        threads = [threading.Thread(target=run, args=(streams[own], own)) for own in marks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        for stream in streams.values():
            stream.close()
    return found


async def awaited_at_once(url, marks):
    async with AsyncClient(url, "lstm", timeout_s=20) as client:
        streams = {own: client.stream() for own in marks}
        for stream in streams.values():
            await stream.send(X)
        answers = await asyncio.gather(
            *(streams[own].send(X + own) for own in marks), return_exceptions=True
        )
        for stream in streams.values():
            await stream.close()
    return {
        own: got if isinstance(got, Exception) else got.output.flat[0]
        for own, got in zip(marks, answers, strict=True)
    }


WAYS = {
    "threads": at_once,
    "asyncio": lambda url, marks: asyncio.run(awaited_at_once(url, marks)),
}


def answers_find_their_streams(way):
    with serving(Backwards(together=3)) as url:
        assert WAYS[way](url, [1, 2, 3]) == {1: 1, 2: 2, 3: 3}


@pytest.mark.parametrize("way", WAYS)
def test_answers_in_another_order_find_their_streams(way):
    answers_find_their_streams(way)


@pytest.mark.parametrize("way", WAYS)
def test_error_finds_its_stream(way):
    triton = Backwards(together=3, says={2: "bad input: two", 3: "stream x: unknown: START"})
    with serving(triton) as url:
        found = WAYS[way](url, [1, 2, 3])
    assert found[1] == 1
    assert isinstance(found[2], BadInput) and "two" in str(found[2])
    assert isinstance(found[3], StreamLost)
    assert len(triton.ended) == 2  # the lost one is nobody's to end


@pytest.mark.parametrize("way", WAYS)
def test_call_that_ends_under_them_fails_each(way):
    triton = Backwards(together=3, says={3: "hang up"})
    with serving(triton) as url:
        found = WAYS[way](url, [1, 2, 3])
    assert all(isinstance(error, ServerError) for error in found.values()), found


@pytest.mark.parametrize("kind", WAYS)
def test_answer_that_breaks_the_contract_loses_the_stream(kind, monkeypatch):
    triton = Backwards(together=1)
    with (
        serving(triton) as url,
        clients(kind) as connect,
        connect(url, "lstm", timeout_s=20) as client,
        client.stream() as stream,
    ):
        stream.send(X)
        triton.echo = lambda request: pb.ModelInferResponse(id=request.id)
        with pytest.raises(ServerError, match="answered nothing"):
            stream.send(X)
        with pytest.raises(StreamLost, match="is lost"):
            stream.send(X)


def test_cancelled_send_loses_the_stream_or_comes_again():
    """A task that is cancelled while its chunk is under way does not know what became of it."""

    async def cancel(resume):
        async with AsyncClient(url, "lstm", timeout_s=20) as client:
            stream = client.stream(resume=resume)
            await stream.send(X)
            triton.together = 2  # one alone waits
            sending = asyncio.create_task(stream.send(X + 1))
            await asyncio.sleep(0.1)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            triton.together = 1
            if resume:
                return (await stream.send(X + 2)).output.flat[0], stream.steps
            with pytest.raises(StreamLost):
                await stream.send(X + 2)
            return None

    for resume in (True, False):
        triton = Backwards(together=1)
        with serving(triton) as url:
            assert asyncio.run(cancel(resume)) == ((2, 4) if resume else None)
            assert len(triton.ended) == 1  # what was broken off is told to end
