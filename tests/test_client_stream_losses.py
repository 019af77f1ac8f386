"""Streams that are refused, fail or are forgotten: both protocols, both clients."""

import numpy as np
import pytest
from looprnn_client import BadInput, ServerError, StreamLost, StreamRefused
from stream_doubles import SUMS, X, forget
from stream_model import CAPACITY

pytestmark = pytest.mark.live


@pytest.mark.parametrize(
    ("chunk", "words"),
    [
        (X[0], "x\\[np.newaxis\\]"),
        (np.repeat(X, 2, 0), "a stream is one sequence"),
        (X[:, :0], "no step"),
        (X.astype(np.float64), "float32"),
    ],
)
def test_chunk_refused_and_the_stream_goes_on(connect_sums, chunk, words):
    with connect_sums() as client, client.stream() as stream:
        stream.send(X[:, :4])
        with pytest.raises(BadInput, match=words):
            stream.send(chunk)
        np.testing.assert_allclose(stream.send(X[:, 4:]).output, SUMS[:, 4:], rtol=0, atol=1e-6)


def test_chunk_the_server_refused_and_the_stream_goes_on(connect_sums, monkeypatch):
    monkeypatch.setattr("looprnn_client.signature.check_finite", lambda name, array: None)
    with connect_sums() as client, client.stream() as stream:
        for _ in range(2):  # with START, and within the stream
            with pytest.raises(BadInput, match="NaN"):
                stream.send(np.full_like(X, np.nan))
            stream.send(X[:, :4])
        assert stream.steps == 8
        np.testing.assert_allclose(stream.state().h_n, 2 * SUMS[:, 3:4], rtol=0, atol=1e-6)


def test_chunk_whose_engine_failed_and_the_stream_goes_on(connect_sums):
    """The state is that of before, the server says."""
    sick = X.copy()
    sick[0, 0, 0] = 86
    with connect_sums() as client, client.stream() as stream:
        for _ in range(2):
            with pytest.raises(ServerError, match="eighty-six"):
                stream.send(sick)
            stream.send(X[:, :4])
        np.testing.assert_allclose(stream.state().h_n, 2 * SUMS[:, 3:4], rtol=0, atol=1e-6)


def test_full_server_refuses_and_keeps_the_others(connect_sums):
    with connect_sums() as client:
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


def test_stream_that_the_server_forgot(connect_sums):
    with connect_sums() as client, client.stream() as stream:
        stream.send(X[:, :4])
        forget(client, stream)
        with pytest.raises(StreamLost, match=r"(unknown|START flag).*client.resume\(state\)"):
            stream.send(X[:, 4:])
        with pytest.raises(StreamLost, match="is lost"):
            stream.send(X[:, 4:])
        with pytest.raises(StreamLost):
            stream.state()


def test_stream_that_the_server_forgot_goes_on_where_asked_to(connect_sums):
    with connect_sums() as client, client.stream(resume=True, outputs=["output"]) as stream:
        first = stream.send(X[:, :4])
        forget(client, stream)
        got = stream.send(X[:, 4:])
        assert (first.h_n, got.h_n, got.c_n) == (None, None, None)
        np.testing.assert_allclose(got.output, SUMS[:, 4:], rtol=0, atol=1e-6)
        assert stream.state().steps == stream.steps == 12


def test_whole_sequence_to_a_model_of_streams(connect_sums):
    with (
        connect_sums("sum_stream") as client,
        pytest.raises(BadInput, match=r"client.stream\(\), or infer on 'sum'"),
    ):
        client.infer(X)


def test_stream_model_named_as_it_is(connect_sums):
    with connect_sums("sum_stream") as client, client.stream() as stream:
        stream.send(X)
        assert stream.model == "sum_stream"
