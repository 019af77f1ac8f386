"""The client's public names, the arguments a Client is made with, and how it closes."""

import subprocess
import sys

import looprnn_client
import pytest
from client_doubles import DEAD, Fake, X, client_of
from looprnn_client import (
    BadInput,
    Client,
    LoopRNNClientError,
    ServerError,
    Unreachable,
    list_models,
)
from looprnn_client.address import parse
from looprnn_client.transport import Code, Failure


def test_public_names_are_these():
    assert looprnn_client.__all__ == [
        "TLS", "AsyncClient", "AsyncStream", "BadInput", "Client", "LoopRNNClientError",
        "ModelState", "NotReady", "Result", "ServerError", "Signature", "Stream", "StreamLost",
        "StreamRefused", "StreamState", "Timeout", "UnknownModel", "Unreachable", "list_models",
    ]  # fmt: skip
    assert all(hasattr(looprnn_client, name) for name in looprnn_client.__all__)


def test_importing_loads_no_transport():
    code = (
        "import numpy, sys, time; start = time.perf_counter(); import looprnn_client;"
        "print(time.perf_counter() - start,"
        " *[m for m in ('grpc', 'gevent', 'tritonclient') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *loaded = said.stdout.split()
    assert loaded == []
    assert float(seconds) < 0.3


@pytest.mark.parametrize(
    ("url", "want"),
    [
        ("localhost:8001", ("grpc", "localhost:8001")),
        ("grpc://10.0.0.7:8001", ("grpc", "10.0.0.7:8001")),
        ("http://triton:8000/", ("http", "triton:8000")),
        ("grpcs://triton:443", ("grpcs", "triton:443")),
        ("https://triton:443", ("https", "triton:443")),
        ("[::1]:8001", ("grpc", "[::1]:8001")),
    ],
)
def test_address(url, want):
    assert parse(url) == want


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("ftp://triton:8000", "'ftp'"),
        ("triton", "names no port"),
        (":8001", "names no host"),
        ("", "names no host"),
        ("triton:eight", "is not an address"),
        ("triton:80010", "is not an address"),
        ("http://triton:8000/v2/models", "more than a host and a port"),
        ("http://me:secret@triton:8000", "more than a host and a port"),
        (8001, "must be a string"),
    ],
)
def test_address_that_cannot_be_used(url, words):
    with pytest.raises(BadInput, match=words) as refused:
        Client(url, "lstm", timeout_s=1)
    assert "localhost:8001" in str(refused.value)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "5", None, True])
def test_timeout_that_is_no_time(seconds):
    with pytest.raises(BadInput, match="timeout_s must be"):
        Client("localhost:8001", "lstm", timeout_s=seconds)


def test_timeout_forgotten():
    with pytest.raises(TypeError, match="timeout_s"):
        Client("localhost:8001", "lstm")


@pytest.mark.parametrize("model", ["", None])
def test_model_name_forgotten(model):
    with pytest.raises(BadInput, match="name of a model"):
        Client("localhost:8001", model, timeout_s=1)


# ── life and death ───────────────────────────────────────────────────────────────────────────────


def test_used_after_close():
    fake = Fake()
    client = client_of(fake)
    client.close()
    client.close()
    assert fake.closed == 1
    for use in (lambda: client.infer(X), lambda: client.signature, client.__enter__):
        with pytest.raises(LoopRNNClientError, match=r"closed; make a new Client"):
            use()
    assert fake.asked == []


def test_with_closes_after_an_error():
    fake = Fake(fails=Failure(Code.INTERNAL, "?"))
    with pytest.raises(ServerError), client_of(fake) as client:
        client.infer(X)
    assert fake.closed == 1


def test_listing_closes_what_it_opened():
    fake = Fake(index_fails=DEAD)
    with pytest.raises(Unreachable):
        list_models("here:8001", timeout_s=1, transport=fake)
    assert fake.closed == 1
