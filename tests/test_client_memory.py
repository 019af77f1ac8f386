"""Memory shared with a real server: answers as by wire, and nothing left behind on any path."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from client_both import clients, inner
from client_doubles import Fake
from conftest import cannot_run_here
from looprnn_client import BadInput, Client, ServerError, Timeout
from looprnn_client.regions import FOLDER, SystemRegion, region_maker
from looprnn_client.transport import Code, Failure
from slow_model import write_repository

from looprnn.server import Server

pytestmark = pytest.mark.live

X = np.random.default_rng(5).uniform(-1, 1, (2, 50, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def doubling(tmp_path_factory):
    repository = write_repository(tmp_path_factory.mktemp("doubling"))
    with Server(repository, client_shared_memory=True) as running:
        yield running


@pytest.fixture(params=["grpc", "http"])
def url(request, doubling):
    return f"{request.param}://{getattr(doubling, request.param)}"


@pytest.fixture(params=["system", pytest.param("cuda", marks=pytest.mark.gpu)])
def memory(request):
    """Each kind of memory that a client and a server share."""
    if request.param == "cuda" and (reason := cannot_run_here("fused")):
        pytest.skip(reason)
    return request.param


@pytest.fixture(params=["threads", "asyncio"])
def connect(request, url, doubling, memory):
    """Opens a client whose arrays are shared; afterwards nothing of it is left anywhere."""
    before = files()
    with clients(request.param) as kind:
        yield lambda **options: kind(url, "double", **{"timeout_s": 20, "memory": memory} | options)
    assert files() == before
    assert registered(doubling, memory) == []


def files(pid=None):
    """The regions of this process, or of another: others use the folder too."""
    return sorted(path.name for path in FOLDER.glob(f"looprnn-client-{pid or os.getpid()}-*"))


def registered(server, memory):
    """The names of the regions of that kind that the server has mapped."""
    url = f"http://{server.http}/v2/{memory}sharedmemory/status"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return [row["name"] for row in json.load(answer)]


def unregister(server, memory, name=""):
    """As nobody but a test does; without a name every region."""
    path = f"region/{name}/unregister" if name else "unregister"
    url = f"http://{server.http}/v2/{memory}sharedmemory/{path}"
    urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=10).close()


def test_answers_are_those_of_the_wire(connect, doubling, memory):
    with connect() as client:
        for x in (X, X[:1, :1], np.repeat(X, 2, 1), np.asfortranarray(X)):
            got = client.infer(x, np.full((len(x), 1, 3), 7, np.float32))
            np.testing.assert_array_equal(got.output, 2 * x)
            np.testing.assert_array_equal(got.h_n, np.full((len(x), 1, 3), 8))
            assert got.output.flags.owndata and got.output.flags.writeable
        assert files() == []  # unlinked while in use
        assert len(registered(doubling, memory)) == 1  # one region, used again
        first = client.infer(X)
        client.infer(-X)
        np.testing.assert_array_equal(first.output, 2 * X)


def test_region_grows_with_what_is_sent(connect, doubling, memory):
    with connect() as client:
        client.infer(X)
        big = np.repeat(X, 400, 1)
        np.testing.assert_array_equal(client.infer(big).output, 2 * big)
        assert len(registered(doubling, memory)) == 1


def test_calls_at_once_have_a_region_each(connect, doubling, memory):
    items = [X * k for k in range(20)]
    with connect() as client:
        for k, got in enumerate(client.infer_many(items, in_flight=4)):
            np.testing.assert_array_equal(got.output, 2 * X * k)
        assert 1 <= len(registered(doubling, memory)) <= 4


def test_subset_of_outputs(connect):
    with connect() as client:
        got = client.infer(X, outputs=["h_n"])
        assert got.output is None
        np.testing.assert_array_equal(got.h_n, np.ones((2, 1, 3)))


def test_nothing_stays_after_errors(connect, doubling, memory):
    sick = X.copy()
    sick[0, 0, 0] = 86  # the model raises
    with connect() as client:
        for _ in range(3):
            with pytest.raises(ServerError, match="eighty-six"):
                client.infer(sick)
            with pytest.raises(BadInput):
                client.infer(X[0])
        np.testing.assert_array_equal(client.infer(X).output, 2 * X)
        assert len(registered(doubling, memory)) <= 2
        with pytest.raises(ServerError, match="item 1"):
            list(client.infer_many([X, sick, X, X], in_flight=2))
    with pytest.raises(ZeroDivisionError), connect() as client:
        client.infer(X)
        _ = 1 / 0


def test_memory_still_in_use_is_waited_for(connect, doubling, memory):
    """After a timeout the server still writes its answer there."""
    slow = X.copy()
    slow[0, 0, 0] = 77  # the model takes its time
    with connect() as client:
        client.infer(X)
        with pytest.raises(Timeout):
            client.infer(slow, timeout_s=0.3)
        np.testing.assert_array_equal(client.infer(X).output, 2 * X)


def test_stale_memory_is_replaced(connect, doubling, memory):
    """As after a restart of the server, which knows no region any more."""
    with connect() as client:
        client.infer(X)
        (name,) = registered(doubling, memory)
        unregister(doubling, memory)
        np.testing.assert_array_equal(client.infer(X).output, 2 * X)
        assert registered(doubling, memory) not in ([], [name])


KILLED = """
import numpy as np, sys, time
from looprnn_client import Client
x = np.ones((2, 50, 3), np.float32)
client = Client(sys.argv[1], "double", timeout_s=20, memory=sys.argv[2])
client.infer(x)
print("ready", flush=True)
while True:
    client.infer(x)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_killed_client_leaves_no_file(doubling, memory, how):
    command = [sys.executable, "-c", textwrap.dedent(KILLED), doubling.grpc, memory]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        assert client.stdout.readline() == "ready\n"
        os.kill(client.pid, how)
    assert files(client.pid) == []
    # The server's mapping is all that stays, until it ends.
    for name in registered(doubling, memory):
        unregister(doubling, memory, name)


# ── without a server ─────────────────────────────────────────────────────────────────────────────


class Refusing(Fake):
    def share(self, name, handle, size, timeout_s):
        raise Failure(Code.INVALID, "shared memory is not allowed")

    def unshare(self, name, cuda, timeout_s):
        raise AssertionError("it was never shared")


def test_server_that_maps_nothing():
    before = files()
    with (
        Client("here:1", "bilstm", timeout_s=5, memory="system", transport=Refusing()) as client,
        pytest.raises(BadInput, match=r"not allowed.*--ipc=host.*--allow-client-shm"),
    ):
        client.infer(np.zeros((1, 2, 7), np.float32))
    assert files() == before


def test_no_room_for_a_region(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    before = files()
    with (
        Client("here:1", "bilstm", timeout_s=5, memory="system", transport=Refusing()) as client,
        pytest.raises(BadInput, match=r"No space left.*--shm-size"),
    ):
        client.infer(np.zeros((1, 2, 7), np.float32))
    assert files() == before


def test_region_keeps_what_is_written():
    region = SystemRegion(4096)
    try:
        assert (FOLDER / region.handle[1:]).stat().st_mode & 0o777 == 0o600
        region.write(64, X[:1, :4])
        np.testing.assert_array_equal(region.read(64, (1, 4, 3)), X[:1, :4])
    finally:
        region.close()
        region.close()
    assert not Path(FOLDER, region.name).exists()


@pytest.mark.parametrize("memory", ["shared", "cuda:first", "", None, 3])
def test_memory_that_is_none(memory):
    with pytest.raises(BadInput, match="memory must be"):
        Client("here:1", "lstm", timeout_s=1, memory=memory)


def test_cuda_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    monkeypatch.delitem(sys.modules, "looprnn_client._cuda", raising=False)
    with pytest.raises(BadInput, match=r"pip install 'looprnn-client\[cuda\]'"):
        region_maker("cuda:1")


def test_arena_belongs_to_its_client(connect):
    with connect(memory="wire") as client:
        assert inner(client)._core.arena is None
        np.testing.assert_array_equal(client.infer(X).output, 2 * X)
