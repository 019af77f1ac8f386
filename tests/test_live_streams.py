"""Streams on a real tritonserver: what Triton's sequence batcher and the slot table do together."""

import contextlib
import itertools
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from stream_wire import (
    ENGINES,
    MODEL,
    STATES,
    TIMEOUT_S,
    Wire,
    able,
    assert_agrees,
    counted,
    drawn,
    said,
    streams_only,
    tensor,
    whole,
)
from tritonclient.utils import InferenceServerException

from looprnn import parity
from looprnn.server import Server
from looprnn.spec import Stream

pytestmark = pytest.mark.live
# Small enough that a test can fill it; the tests of many streams have servers of their own.
SMALL = Stream(capacity=4, idle_s=1000)


@pytest.fixture(scope="module", params=ENGINES)
def engine(request):
    """One that keeps states in host memory, and one that keeps them on the GPU."""
    return able(request)


@pytest.fixture(scope="module")
def small(tmp_path_factory, engine) -> Iterator[Server]:
    """A server of the stream model alone, its table of SMALL size."""
    folder = streams_only(tmp_path_factory.mktemp("small"), SMALL, engine)
    with Server(folder) as server:
        yield server


@pytest.fixture(params=["grpc", "http"])
def wire(request, small):
    with contextlib.closing(Wire(request.param, small)) as wire:
        yield wire


@pytest.fixture
def stream(request):
    """A stream id that no other test takes, in turn a number and a word."""
    return next(IDS)


IDS = (k if k % 2 else f"stream {k}" for k in range(1000, 2000))


@pytest.mark.parametrize("kind", [int, str])
def test_chunks_of_any_length_are_the_whole_sequence(wire, kind):
    stream = kind(77)
    x = drawn(40)
    cuts = [0, 1, 4, 14, 39, 40]
    got = []
    for first, last in itertools.pairwise(cuts):
        flags = {"start": first == 0, "end": last == 40}
        got.append(wire.chunk(stream, x[:, first:last], **flags))
    want = whole(x)
    assert_agrees(np.concatenate([g["output"] for g in got], axis=1), want["output"])
    for name in STATES:
        assert_agrees(got[-1][name], want[name])


def test_the_number_and_the_word_are_two_streams(wire):
    x, y = drawn(6, 1), drawn(6, 2)
    wire.chunk(7, x[:, :3], start=True)
    wire.chunk("7", y[:, :3], start=True)
    assert_agrees(wire.chunk(7, x[:, 3:], end=True)["h_n"], whole(x)["h_n"])
    assert_agrees(wire.chunk("7", y[:, 3:], end=True)["h_n"], whole(y)["h_n"])


def test_a_start_on_a_live_stream_resets_and_counts(wire, stream, small):
    x = drawn(6)
    wire.chunk(stream, drawn(9, 5), start=True)
    before = counted(small)
    wire.chunk(stream, x[:, :2], start=True)
    after = counted(small)
    assert after == {**before, "reset_total": before["reset_total"] + 1}
    assert after["live"] > 0
    assert_agrees(wire.chunk(stream, x[:, 2:], end=True)["h_n"], whole(x)["h_n"])


def test_a_state_is_exported_unchanged_and_restored_under_another_id(wire, stream):
    x = drawn(12)
    last = wire.chunk(stream, x[:, :5], start=True)
    exported = wire.export(stream)
    again = wire.export(stream, end=True)
    for name in STATES:
        np.testing.assert_array_equal(exported[name], last[name])
        np.testing.assert_array_equal(again[name], last[name])
    states = {"h_0": exported["h_n"], "c_0": exported["c_n"]}
    got = wire.chunk(next(IDS), x[:, 5:], start=True, end=True, **states)
    assert_agrees(got["output"], whole(x)["output"][:, 5:])


def test_after_its_end_a_stream_is_unknown(wire, stream):
    """Triton itself refuses it, and says which stream and what to do."""
    wire.chunk(stream, drawn(3), start=True, end=True)
    words = said(wire, stream, drawn(3))
    assert f"sequence {stream} to model '{MODEL}' must specify the START flag" in words


def test_a_start_beyond_capacity_is_refused_and_the_live_ones_go_on(wire, small):
    x = drawn(8)
    live = [next(IDS) for _ in range(SMALL.capacity)]
    for k in live:
        wire.chunk(k, x[:, :5], start=True)
    late = next(IDS)
    before = counted(small)
    words = said(wire, late, x, start=True)
    assert counted(small)["refused_total"] == before["refused_total"] + 1
    assert words.startswith(f"stream refused: capacity: {SMALL.capacity} streams live")
    words = said(wire, late, x)  # Triton thinks that it started
    assert words.startswith(f"stream {late!r}: unknown: ")
    assert counted(small)["live"] == SMALL.capacity
    wire.chunk(live[0], x[:, 5:], end=True)
    wire.chunk(late, x, start=True, end=True)
    for k in live[1:]:
        assert_agrees(wire.chunk(k, x[:, 5:], end=True)["h_n"], whole(x)["h_n"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": np.full((1, 2, 64), np.nan, np.float32)}, "bad input: input holds nan"),
        ({"x": np.zeros((1, 257, 64), np.float32)}, "T = 257 steps, this engine takes 1 to 256"),
        ({"x": np.zeros((2, 2, 64), np.float32)}, "batch-size 1"),
        ({"h_0": np.zeros((1, 1, 256), np.float32)}, "bad input: h_0 without START"),
        (
            {"lengths": np.array([[4]], np.int32)},
            "bad input: lengths holds 4 at [0]; wanted 0 to 3",
        ),
    ],
    ids=["nan", "too_long", "two_rows", "states_midway", "length"],
)
def test_a_bad_chunk_is_refused_in_words_and_the_stream_goes_on(wire, stream, change, words):
    x = drawn(6)
    wire.chunk(stream, x[:, :3], start=True)
    change = {"x": x[:, :3], **change}
    assert words in said(wire, stream, change.pop("x"), **change)
    assert_agrees(wire.chunk(stream, x[:, 3:], end=True)["h_n"], whole(x)["h_n"])


def test_a_request_without_a_stream_is_refused_in_words(wire):
    assert "non-zero or non-empty correlation ID" in said(wire, 0, drawn(3))


def test_a_cancelled_chunk_leaves_the_state_of_before_it_or_after_it(small):
    """Cancelled at every moment: waiting, running or done. The stream lives on, or Triton says that
    it must start again; never is its state anything else.
    """
    x = drawn(200)
    before, after = whole(x[:, :8]), whole(x)
    with contextlib.closing(Wire("grpc", small)) as wire:
        inputs = [tensor(triton_grpc, "input", x[:, 8:])]
        for wait_ms in (0, 0, 1, 1, 2, 3, 5, 8):
            stream = next(IDS)
            wire.chunk(stream, x[:, :8], start=True)
            done = threading.Event()
            handle = wire.client.async_infer(
                MODEL, inputs, lambda result, error, done=done: done.set(), sequence_id=stream
            )
            done.wait(wait_ms / 1000)
            handle.cancel()
            assert done.wait(TIMEOUT_S)
            try:
                left = wire.export(stream, end=True)  # Triton lets it wait for the one before it
            except InferenceServerException as error:
                assert "must specify the START flag" in error.message()
                continue
            assert any(
                all(parity.agrees(parity.difference(left[n], want[n])) for n in STATES)
                for want in (before, after)
            )


def test_a_stream_survives_a_restart_in_the_hands_of_its_client(tmp_path, engine):
    folder, x = streams_only(tmp_path, SMALL, engine), drawn(9)
    with Server(folder) as server, contextlib.closing(Wire("grpc", server)) as wire:
        wire.chunk(5, x[:, :4], start=True)
        exported = wire.export(5)
        assert list(Path("/dev/shm").glob(f"{server._segments}*")) != []
    # Triton waits a while for streams to end; then it goes, by itself and without a trace.
    assert server.process.returncode >= 0, "it was killed"
    assert list(Path("/dev/shm").glob(f"{server._segments}*")) == []
    with Server(folder) as server, contextlib.closing(Wire("grpc", server)) as wire:
        assert "must specify the START flag" in said(wire, 5, x[:, 4:])
        states = {"h_0": exported["h_n"], "c_0": exported["c_n"]}
        got = wire.chunk(5, x[:, 4:], start=True, end=True, **states)
    want = whole(x)
    assert_agrees(got["output"], want["output"][:, 4:])
    assert_agrees(got["c_n"], want["c_n"])


def test_a_stream_that_idles_is_forgotten_and_told_to_start(tmp_path, engine):
    """Nothing here needs to be in time: what is waited for comes to pass, soon or late."""
    folder = streams_only(tmp_path, Stream(capacity=1, idle_s=0.2), engine)
    with Server(folder) as server, contextlib.closing(Wire("grpc", server)) as wire:
        wire.chunk(5, drawn(3), start=True)

        def its_slot_is_free():
            try:
                wire.chunk(6, drawn(3), start=True)
            except InferenceServerException as error:
                assert error.message().startswith("stream refused: capacity: 1 streams live")
                return False
            return True

        wait_until(its_slot_is_free)
        # Triton forgets it before the table does, and says so in its own words.
        forgotten = r"sequence 5 to .* must specify the START flag|stream 5: expired .* Send START"
        assert re.search(forgotten, said(wire, 5, drawn(3)))
        wait_until(lambda: counted(server)["live"] == 0)  # without any traffic
        assert counted(server)["expired_total"] == 2


def wait_until(done):
    waiting = threading.Event()
    for _ in range(10 * TIMEOUT_S):
        if done():
            return
        waiting.wait(0.1)
    pytest.fail("it did not come to pass")
