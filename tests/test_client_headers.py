"""Headers and compression, by servers that tell what came."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
from client_both import clients
from client_doubles import PADDED
from client_doubling import Doubling
from google.protobuf.json_format import ParseDict
from looprnn_client import BadInput, Client
from looprnn_client.cli import main
from test_client_wire import Grpc, http_server
from tritonclient.grpc import service_pb2, service_pb2_grpc

X = np.random.default_rng(5).uniform(-1, 1, (2, 50, 3)).astype(np.float32)


class Listening(Grpc):
    """Keeps each call's metadata."""

    def __init__(self):
        self.seen = []

    def ModelConfig(self, request, context):
        self.seen.append(dict(context.invocation_metadata()))
        return ParseDict({"config": PADDED}, service_pb2.ModelConfigResponse())

    def ModelInfer(self, request, context):
        self.seen.append(dict(context.invocation_metadata()))
        context.abort(grpc.StatusCode.INTERNAL, "enough")


@contextmanager
def listening(protocol):
    """(url, the headers of each call)"""
    if protocol == "http":
        Doubling.seen = []
        with http_server(Doubling) as port:
            yield f"http://127.0.0.1:{port}", Doubling.seen
        return
    triton, server = Listening(), grpc.server(ThreadPoolExecutor(1))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", triton.seen
    finally:
        server.stop(None).wait()


@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("kind", ["threads", "asyncio"])
def test_headers_go_with_every_call(protocol, kind):
    tokens = iter(["first", "second", "third"])

    def headers():
        return {"Authorization": f"Bearer {next(tokens)}"}

    with listening(protocol) as (url, seen), clients(kind) as connect:
        with connect(url, "double", timeout_s=20, headers=headers) as client:
            _ = client.signature
        with connect(url, "double", timeout_s=20, headers={"X-Team": "blue"}) as client:
            _ = client.signature
    lower = [{name.lower(): value for name, value in call.items()} for call in seen]
    assert lower[0]["authorization"] == "Bearer first"
    assert lower[1]["x-team"] == "blue"
    assert "authorization" not in lower[1]


@pytest.mark.parametrize("headers", [{"a": 1}, {1: "a"}])
def test_headers_that_are_none(headers):
    with pytest.raises(BadInput, match="strings to strings"):
        Client("localhost:8001", "double", timeout_s=1, headers=headers)


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
@pytest.mark.parametrize("kind", ["threads", "asyncio"])
def test_compressed_over_http(compression, kind):
    with (
        listening("http") as (url, seen),
        clients(kind) as connect,
        connect(url, "double", timeout_s=20, compression=compression) as client,
    ):
        np.testing.assert_allclose(client.infer(X).output, 2 * X, rtol=0, atol=1e-6)
    assert seen[-1]["Content-Encoding"] == seen[-1]["Accept-Encoding"] == compression


@pytest.mark.live
@pytest.mark.parametrize("compression", ["gzip", "deflate"])
@pytest.mark.parametrize("kind", ["threads", "asyncio"])
def test_compressed_is_the_same_answer(url, compression, kind):
    x = np.zeros((2, 40, 7), np.float32)
    with Client(url, "lstm", timeout_s=20) as client:
        want = client.infer(x)
    with (
        clients(kind) as connect,
        connect(url, "lstm", timeout_s=20, compression=compression) as client,
    ):
        got = client.infer(x)
    np.testing.assert_array_equal(got.output, want.output)


def test_compression_that_is_none():
    with pytest.raises(BadInput, match="compression must be one of"):
        Client("localhost:8001", "double", timeout_s=1, compression="zip")


def test_a_header_without_a_value_says_how_it_is_written(capsys):
    with pytest.raises(SystemExit):
        main(["models", "--url", "a:1", "--header", "token"])
    assert "wanted NAME:VALUE" in capsys.readouterr().err
