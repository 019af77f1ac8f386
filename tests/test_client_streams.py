"""Streams against a running tritonserver whose model sums: both protocols, both clients."""

import asyncio
import threading

import numpy as np
import pytest
from client_both import clients, inner
from looprnn_client import (
    AsyncClient,
    BadInput,
    Client,
    LoopRNNClientError,
    ServerError,
    StreamLost,
    StreamRefused,
    StreamState,
)
from stream_model import SIZE, write_repository

from looprnn.server import Server

pytestmark = pytest.mark.live

CAPACITY = 8
X = np.random.default_rng(3).uniform(-1, 1, (1, 12, SIZE)).astype(np.float32)
SUMS = np.cumsum(X, 1)


@pytest.fixture(scope="module")
def summing(tmp_path_factory):
    with Server(write_repository(tmp_path_factory.mktemp("sums"), capacity=CAPACITY)) as running:
        yield running


@pytest.fixture(params=["grpc", "http"])
def url(request, summing):
    return f"{request.param}://{getattr(summing, request.param)}"


@pytest.fixture(params=["threads", "asyncio"])
def connect(request, url):
    """Opens a client: connect(model, ...)."""
    with clients(request.param) as kind:
        yield lambda model="sum", **options: kind(url, model, **{"timeout_s": 10} | options)


def live_streams(client):
    """How many streams the server holds: as many as it may, less those it still takes."""
    opened = []
    try:
        while True:
            stream = client.stream()
            opened.append(stream)
            stream.send(X[:, :1])
    except StreamRefused:
        return CAPACITY - (len(opened) - 1)
    finally:
        for stream in opened:
            stream.close()


@pytest.mark.parametrize("cuts", [(), (5,), (1, 2, 3), (4, 11)])
def test_chunks_are_the_whole(connect, cuts):
    with connect() as client, client.stream() as stream:
        answers = list(stream.map(np.split(X, cuts, axis=1)))
        assert stream.steps == 12
    got = np.concatenate([answer.output for answer in answers], 1)
    np.testing.assert_allclose(got, SUMS, rtol=0, atol=1e-6)
    np.testing.assert_allclose(answers[-1].h_n, SUMS[:, -1:], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(answers[-1].c_n, np.full((1, 1, SIZE), 12))


def test_streams_of_one_client_do_not_mix(connect):
    with connect() as client:
        streams = [client.stream("sum_stream", outputs=["output"]) for _ in range(CAPACITY)]
        for start in range(0, 12, 4):
            for k, stream in enumerate(streams):
                got = stream.send(X[:, start : start + 4] * (k + 1))
                want = np.cumsum(X * (k + 1), 1)[:, start : start + 4]
                np.testing.assert_allclose(got.output, want, rtol=0, atol=1e-5)
                assert got.h_n is None
        for stream in streams:
            stream.close()
        assert live_streams(client) == 0


def test_many_threads_and_their_streams_over_one_connection(url):
    """An answer that reaches another stream would be noticed: each adds its own numbers."""
    with Client(url, "sum", timeout_s=30) as client:
        errors = []

        def run(k):
            try:
                with client.stream() as stream:
                    got = [stream.send(X[:, i : i + 1] + k).output for i in range(12)]
                want = np.cumsum(X + k, 1)
                np.testing.assert_allclose(np.concatenate(got, 1), want, rtol=0, atol=1e-4)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=run, args=(k,), daemon=True) for k in range(CAPACITY)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert errors == []
    assert not any(thread.is_alive() for thread in threads)


def test_tasks_and_their_streams_over_one_connection(url):
    async def one(client, k):
        async with client.stream() as stream:
            got = [(await stream.send(X[:, i : i + 1] + k)).output for i in range(12)]
        np.testing.assert_allclose(np.concatenate(got, 1), np.cumsum(X + k, 1), rtol=0, atol=1e-4)

    async def every():
        async with AsyncClient(url, "sum", timeout_s=30) as client:
            await asyncio.gather(*(one(client, k) for k in range(CAPACITY)))

    asyncio.run(every())


def test_stream_that_waits_for_its_turn_holds_up_no_other(tmp_path):
    """Triton answers a bidirectional call in the order of its requests."""
    with (
        Server(write_repository(tmp_path, candidates=1)) as narrow,
        Client(narrow.grpc, "sum", timeout_s=30) as client,
    ):
        first, second = client.stream(), client.stream()
        first.send(X[:, :4])
        late = threading.Thread(target=second.send, args=(X,), daemon=True)
        late.start()
        for cut in (4, 8):
            got = first.send(X[:, cut : cut + 4], timeout_s=20).output
            np.testing.assert_allclose(got, SUMS[:, cut : cut + 4], rtol=0, atol=1e-6)
            assert late.is_alive()
        first.close()
        late.join(30)
        assert second.steps == 12
        second.close()


def test_async_source_of_chunks(url):
    async def microphone():
        for chunk in np.split(X, [2, 7], axis=1):
            await asyncio.sleep(0)
            yield chunk

    async def listen():
        async with AsyncClient(url, "sum", timeout_s=10) as client, client.stream() as stream:
            return [result.output async for result in stream.map(microphone())]

    np.testing.assert_allclose(np.concatenate(asyncio.run(listen()), 1), SUMS, rtol=0, atol=1e-6)


# ── END ──────────────────────────────────────────────────────────────────────────────────────────


def test_end_is_sent_on_leaving(connect):
    with connect() as client:
        with client.stream() as stream:
            stream.send(X)
            assert live_streams(client) == 1
        assert live_streams(client) == 0
        with pytest.raises(LoopRNNClientError, match="has ended"):
            stream.send(X)
        stream.close()


def test_end_is_sent_after_an_error(connect):
    with connect() as client:
        with pytest.raises(ZeroDivisionError), client.stream() as stream:
            stream.send(X)
            _ = 1 / 0
        assert live_streams(client) == 0


def test_nothing_is_sent_for_a_stream_without_chunks(connect):
    with connect() as client:
        with client.stream():
            pass
        assert live_streams(client) == 0


def test_end_after_the_client_closed_is_no_error(connect):
    with connect() as client:
        stream = client.stream()
        stream.send(X)
    stream.close()
    with connect() as client:
        assert live_streams(client) == 1
        forget(client, stream)


# ── states ───────────────────────────────────────────────────────────────────────────────────────


def test_state_moves_to_another_stream(connect, tmp_path):
    with connect() as client:
        with client.stream() as first:
            first.send(X[:, :5])
            state = first.state()
            first.send(X[:, 5:6])  # asking changed nothing
            assert first.steps == 6
            np.testing.assert_allclose(first.state().h_n, SUMS[:, 5:6], rtol=0, atol=1e-6)
        state.save(tmp_path / "state.npz")
        loaded = StreamState.load(tmp_path / "state.npz")
        assert (loaded.model, loaded.steps) == ("sum_stream", 5)
        with client.resume(loaded) as second:
            assert second.state() is loaded
            got = second.send(X[:, 5:])
            assert second.steps == 12
    np.testing.assert_allclose(got.output, SUMS[:, 5:], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(got.c_n, np.full((1, 1, SIZE), 12))


def test_state_before_the_first_chunk(connect):
    with connect() as client, client.stream() as stream:
        assert stream.state().steps == 0
        np.testing.assert_array_equal(stream.state().h_n, np.zeros((1, 1, SIZE)))
        np.testing.assert_allclose(stream.send(X).output, SUMS, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"h_n": np.zeros((1, 1, 4), np.float32)}, "h_0 is"),
        ({"c_n": None}, "no c_n"),
        ({"h_n": np.full((1, 1, SIZE), np.nan, np.float32)}, "finite"),
    ],
)
def test_state_that_does_not_fit(connect, change, words):
    good = {"h_n": np.zeros((1, 1, SIZE), np.float32), "c_n": np.zeros((1, 1, SIZE), np.float32)}
    with connect() as client:
        state = StreamState(model="sum_stream", steps=0, **good | change)
        with client.resume(state) as stream, pytest.raises(BadInput, match=words):
            stream.send(X)


# ── refusals and losses ──────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("chunk", "words"),
    [
        (X[0], "x\\[np.newaxis\\]"),
        (np.repeat(X, 2, 0), "a stream is one sequence"),
        (X[:, :0], "no step"),
        (X.astype(np.float64), "float32"),
    ],
)
def test_chunk_refused_and_the_stream_goes_on(connect, chunk, words):
    with connect() as client, client.stream() as stream:
        stream.send(X[:, :4])
        with pytest.raises(BadInput, match=words):
            stream.send(chunk)
        np.testing.assert_allclose(stream.send(X[:, 4:]).output, SUMS[:, 4:], rtol=0, atol=1e-6)


def test_chunk_the_server_refused_and_the_stream_goes_on(connect, monkeypatch):
    monkeypatch.setattr("looprnn_client.signature.check_finite", lambda name, array: None)
    with connect() as client, client.stream() as stream:
        for _ in range(2):  # with START, and within the stream
            with pytest.raises(BadInput, match="NaN"):
                stream.send(np.full_like(X, np.nan))
            stream.send(X[:, :4])
        assert stream.steps == 8
        np.testing.assert_allclose(stream.state().h_n, 2 * SUMS[:, 3:4], rtol=0, atol=1e-6)


def test_chunk_whose_engine_failed_and_the_stream_goes_on(connect):
    """The state is that of before, the server says."""
    sick = X.copy()
    sick[0, 0, 0] = 86
    with connect() as client, client.stream() as stream:
        for _ in range(2):
            with pytest.raises(ServerError, match="eighty-six"):
                stream.send(sick)
            stream.send(X[:, :4])
        np.testing.assert_allclose(stream.state().h_n, 2 * SUMS[:, 3:4], rtol=0, atol=1e-6)


def test_full_server_refuses_and_keeps_the_others(connect):
    with connect() as client:
        streams = [client.stream() for _ in range(CAPACITY)]
        for stream in streams:
            stream.send(X[:, :4])
        late = client.stream()
        with pytest.raises(StreamRefused, match="capacity 8"):
            late.send(X)
        streams.pop().close()
        late.send(X)
        for stream in (*streams, late):
            stream.close()


def test_stream_that_the_server_forgot(connect):
    with connect() as client, client.stream() as stream:
        stream.send(X[:, :4])
        forget(client, stream)
        with pytest.raises(StreamLost, match=r"(unknown|START flag).*client.resume\(state\)"):
            stream.send(X[:, 4:])
        with pytest.raises(StreamLost, match="is lost"):
            stream.send(X[:, 4:])
        with pytest.raises(StreamLost):
            stream.state()


def test_stream_that_the_server_forgot_goes_on_where_asked_to(connect):
    with connect() as client, client.stream(resume=True, outputs=["output"]) as stream:
        first = stream.send(X[:, :4])
        forget(client, stream)
        got = stream.send(X[:, 4:])
        assert (first.h_n, got.h_n, got.c_n) == (None, None, None)
        np.testing.assert_allclose(got.output, SUMS[:, 4:], rtol=0, atol=1e-6)
        assert stream.state().steps == stream.steps == 12


def forget(client, stream):
    """The server's END of a stream whose client knows nothing of it."""
    other = client.stream()
    other.send(X[:, :1])
    twin = inner(other)._core
    real, twin._id = twin._id, inner(stream)._core._id
    other.close()
    twin._id, twin._ended = real, False
    other.close()


def test_whole_sequence_to_a_model_of_streams(connect):
    with (
        connect("sum_stream") as client,
        pytest.raises(BadInput, match=r"client.stream\(\), or infer on 'sum'"),
    ):
        client.infer(X)


def test_stream_model_named_as_it_is(connect):
    with connect("sum_stream") as client, client.stream() as stream:
        stream.send(X)
        assert stream.model == "sum_stream"
