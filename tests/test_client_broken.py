"""Connections that end and servers that die under a call: what is sent again, what never twice."""

import threading

import numpy as np
import pytest
from client_both import clients, inner
from client_proxy import Proxy
from looprnn_client import Client, ServerError, StreamLost, Timeout, Unreachable
from stream_doubles import SUMS, X
from stream_model import SIZE, write_repository

from looprnn.server import Server, free_ports

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def summing(tmp_path_factory):
    with Server(write_repository(tmp_path_factory.mktemp("sums"), capacity=64)) as running:
        yield running
        running.process.kill()  # it would take long to stop: calls were cut off


@pytest.fixture(params=["grpc", "http"])
def protocol(request):
    return request.param


@pytest.fixture
def plug(protocol, summing):
    """The proxy before the server of sums."""
    with Proxy(getattr(summing, protocol)) as proxy:
        yield proxy


@pytest.fixture(params=["threads", "asyncio"])
def connect(request):
    with clients(request.param) as kind:
        yield kind


@pytest.fixture
def client(connect, protocol, plug):
    url = f"{protocol}://{plug.address}"
    with connect(url, "sum", timeout_s=20) as opened:
        yield opened


def steps_on_the_server(summing, stream_id):
    """How many steps the server has seen of a stream, whose client is cut off."""
    with Client(summing.grpc, "sum", timeout_s=20) as other, other.stream() as spy:
        spy.send(X[:, :1])
        core = spy._core
        own, core._id = core._id, stream_id
        steps = int(spy.state().c_n.flat[0])
        core._id = own
    return steps


# ── whole sequences ──────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def plug_of_lstm(protocol, server):
    with Proxy(getattr(server, protocol)) as proxy:
        yield proxy


def test_call_whose_answer_was_lost_is_sent_again(connect, protocol, plug_of_lstm):
    x = np.linspace(-1, 1, 84, dtype=np.float32).reshape(2, 6, 7)
    with connect(f"{protocol}://{plug_of_lstm.address}", "lstm", timeout_s=20) as client:
        want = client.infer(x)
        plug_of_lstm.lose_answer()
        got = client.infer(x)
        assert plug_of_lstm.lost.is_set()
        plug_of_lstm.cut()  # between two calls
        again = client.infer(x)
    np.testing.assert_array_equal(got.output, want.output)
    np.testing.assert_array_equal(again.output, want.output)


def test_call_is_not_sent_again_where_told_so(connect, protocol, plug_of_lstm):
    x = np.zeros((1, 6, 7), np.float32)
    url = f"{protocol}://{plug_of_lstm.address}"
    with connect(url, "lstm", timeout_s=20, retries=0) as client:
        client.infer(x)
        plug_of_lstm.lose_answer()
        with pytest.raises((ServerError, Unreachable)):
            client.infer(x)
        assert plug_of_lstm.lost.is_set()


# ── streams ──────────────────────────────────────────────────────────────────────────────────────


def test_chunk_whose_answer_was_lost_is_not_sent_twice(client, plug, summing):
    with client.stream() as stream:
        stream.send(X[:, :4])
        name = inner(stream)._core._id
        plug.lose_answer()
        with pytest.raises((ServerError, Unreachable)):
            stream.send(X[:, 4:])
        assert plug.lost.is_set()
        with pytest.raises(StreamLost, match="is lost"):
            stream.send(X[:, 4:])
        assert steps_on_the_server(summing, name) == 12


def test_first_chunk_whose_answer_was_lost_may_be_sent_again(client, plug):
    """To the server it is another stream then: it cannot count twice."""
    _ = client.stream().state()  # the model is read, the connection open
    with client.stream() as stream:
        plug.lose_answer()
        with pytest.raises((ServerError, Unreachable)):
            stream.send(X)
        assert plug.lost.is_set()
        np.testing.assert_allclose(stream.send(X).output, SUMS, rtol=0, atol=1e-6)
        np.testing.assert_array_equal(stream.state().c_n, np.full((1, 1, SIZE), 12))


def test_resumed_chunk_counts_once_though_it_was_applied(client, plug):
    with client.stream(resume=True) as stream:
        got = [stream.send(X[:, :4]).output]
        for start in (4, 8):
            plug.lose_answer()
            got.append(stream.send(X[:, start : start + 4]).output)
            assert plug.lost.is_set()
        assert stream.steps == 12
        state = stream.state()
    np.testing.assert_allclose(np.concatenate(got, 1), SUMS, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(state.c_n, np.full((1, 1, SIZE), 12))


def test_resumed_first_chunk_counts_once(client, plug):
    _ = client.stream().state()
    with client.stream(resume=True) as stream:
        plug.lose_answer()
        np.testing.assert_allclose(stream.send(X).output, SUMS, rtol=0, atol=1e-6)
        assert plug.lost.is_set()
        np.testing.assert_array_equal(stream.state().c_n, np.full((1, 1, SIZE), 12))


def test_every_stream_of_a_connection_that_is_cut_goes_on(protocol, plug):
    """They share one call; each finds its own way back."""
    errors = []
    together = threading.Barrier(5, timeout=60)

    def run(k):
        try:
            with client.stream(resume=True) as stream:
                got = [stream.send(X[:, :4] + k).output]
                together.wait()
                together.wait()  # the plug is pulled here
                got += [stream.send(X[:, 4:] + k).output]
            want = np.cumsum(X + k, 1)
            np.testing.assert_allclose(np.concatenate(got, 1), want, rtol=0, atol=1e-5)
        except BaseException as error:
            errors.append(error)

    with Client(f"{protocol}://{plug.address}", "sum", timeout_s=30) as client:
        threads = [threading.Thread(target=run, args=(k,), daemon=True) for k in range(4)]
        for thread in threads:
            thread.start()
        together.wait()
        plug.cut()
        together.wait()
        for thread in threads:
            thread.join(60)
    assert errors == []


# ── servers ──────────────────────────────────────────────────────────────────────────────────────


def test_streams_and_a_server_that_comes_back(connect, protocol, tmp_path):
    repository, ports = write_repository(tmp_path), tuple(free_ports(3))
    with Server(repository, ports=ports) as server:
        url = f"{protocol}://{getattr(server, protocol)}"
        client = connect(url, "sum", timeout_s=30)
        kept, lost = client.stream(resume=True), client.stream()
        kept.send(X[:, :4])
        lost.send(X[:, :4])
        saved = lost.state()
        server.process.kill()
        server.process.wait()
    client_of_none = client.stream(resume=True)
    with pytest.raises(Unreachable):
        kept.send(X[:, 4:8], timeout_s=1)
    with pytest.raises(Unreachable):
        client_of_none.send(X, timeout_s=1)
    with Server(repository, ports=ports), client:
        np.testing.assert_allclose(kept.send(X[:, 4:8]).output, SUMS[:, 4:8], rtol=0, atol=1e-6)
        np.testing.assert_allclose(client_of_none.send(X).output, SUMS, rtol=0, atol=1e-6)
        with pytest.raises(StreamLost):
            lost.send(X[:, 4:])
        with client.resume(saved) as moved:
            np.testing.assert_allclose(moved.send(X[:, 4:]).output, SUMS[:, 4:], rtol=0, atol=1e-6)
        kept.close()
        client_of_none.close()


@pytest.mark.parametrize("resume", [True, False])
def test_deadline_on_a_server_that_hangs(client, plug, resume):
    """The connection stands and nothing answers: what was sent may be applied, or not."""
    with client.stream(resume=resume) as stream:
        stream.send(X[:, :4])
        plug.hang()
        with pytest.raises(Timeout, match=r"within 0.5 s"):
            stream.send(X[:, 4:], timeout_s=0.5)
        plug.cut()
        if not resume:
            with pytest.raises(StreamLost, match="is lost"):
                stream.send(X[:, 4:])
            return
        np.testing.assert_allclose(stream.send(X[:, 4:]).output, SUMS[:, 4:], rtol=0, atol=1e-6)
        assert stream.steps == 12
