"""Streams against a running tritonserver whose model sums: both protocols, both clients."""

import asyncio
import threading

import numpy as np
import pytest
from looprnn_client import (
    AsyncClient,
    BadInput,
    Client,
    LoopRNNClientError,
    StreamState,
)
from stream_doubles import SUMS, X, forget, live_streams
from stream_model import CAPACITY, SIZE, write_repository

from looprnn.server import Server

pytestmark = pytest.mark.live


@pytest.mark.parametrize("cuts", [(), (5,), (1, 2, 3), (4, 11)])
def test_chunks_are_the_whole(connect_sums, cuts):
    with connect_sums() as client, client.stream() as stream:
        answers = list(stream.map(np.split(X, cuts, axis=1)))
        assert stream.steps == 12
    got = np.concatenate([answer.output for answer in answers], 1)
    np.testing.assert_allclose(got, SUMS, rtol=0, atol=1e-6)
    np.testing.assert_allclose(answers[-1].h_n, SUMS[:, -1:], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(answers[-1].c_n, np.full((1, 1, SIZE), 12))


def test_streams_of_one_client_do_not_mix(connect_sums):
    with connect_sums() as client:
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


def test_many_threads_and_their_streams_over_one_connection(sums_url):
    """An answer that reaches another stream would be noticed: each adds its own numbers."""
    with Client(sums_url, "sum", timeout_s=30) as client:
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


def test_tasks_and_their_streams_over_one_connection(sums_url):
    async def one(client, k):
        async with client.stream() as stream:
            got = [(await stream.send(X[:, i : i + 1] + k)).output for i in range(12)]
        np.testing.assert_allclose(np.concatenate(got, 1), np.cumsum(X + k, 1), rtol=0, atol=1e-4)

    async def every():
        async with AsyncClient(sums_url, "sum", timeout_s=30) as client:
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


def test_async_source_of_chunks(sums_url):
    async def microphone():
        for chunk in np.split(X, [2, 7], axis=1):
            await asyncio.sleep(0)
            yield chunk

    async def listen():
        async with AsyncClient(sums_url, "sum", timeout_s=10) as client, client.stream() as stream:
            return [result.output async for result in stream.map(microphone())]

    np.testing.assert_allclose(np.concatenate(asyncio.run(listen()), 1), SUMS, rtol=0, atol=1e-6)


# ── END ──────────────────────────────────────────────────────────────────────────────────────────


def test_end_is_sent_on_leaving(connect_sums):
    with connect_sums() as client:
        with client.stream() as stream:
            stream.send(X)
            assert live_streams(client) == 1
        assert live_streams(client) == 0
        with pytest.raises(LoopRNNClientError, match="has ended"):
            stream.send(X)
        stream.close()


def test_end_is_sent_after_an_error(connect_sums):
    with connect_sums() as client:
        with pytest.raises(ZeroDivisionError), client.stream() as stream:
            stream.send(X)
            _ = 1 / 0
        assert live_streams(client) == 0


def test_nothing_is_sent_for_a_stream_without_chunks(connect_sums):
    with connect_sums() as client:
        with client.stream():
            pass
        assert live_streams(client) == 0


def test_end_after_the_client_closed_is_no_error(connect_sums):
    with connect_sums() as client:
        stream = client.stream()
        stream.send(X)
    stream.close()
    with connect_sums() as client:
        assert live_streams(client) == 1
        forget(client, stream)


# ── states ───────────────────────────────────────────────────────────────────────────────────────


def test_state_moves_to_another_stream(connect_sums, tmp_path):
    with connect_sums() as client:
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


def test_state_before_the_first_chunk(connect_sums):
    with connect_sums() as client, client.stream() as stream:
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
def test_state_that_does_not_fit(connect_sums, change, words):
    good = {"h_n": np.zeros((1, 1, SIZE), np.float32), "c_n": np.zeros((1, 1, SIZE), np.float32)}
    with connect_sums() as client:
        state = StreamState(model="sum_stream", steps=0, **good | change)
        with client.resume(state) as stream, pytest.raises(BadInput, match=words):
            stream.send(X)
