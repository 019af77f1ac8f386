"""Streams on a real tritonserver: what Triton's sequence batcher and the slot table do together.

Raw tritonclient, with ids, START and END in the test's own hands.
"""

import contextlib
import dataclasses
import itertools
import queue
import re
import shutil
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from conftest import VARIANTS, cannot_run_here
from tritonclient.utils import InferenceServerException

from looprnn import engines, parity, reference
from looprnn.build import build_variant, buildable
from looprnn.card import Cards
from looprnn.server import Server
from looprnn.spec import Stream
from looprnn.weights import load_weights

pytestmark = pytest.mark.live
SPEC = VARIANTS["lstm_random"]
MODEL = SPEC.models[1]
TIMEOUT_S = 60
STATES = ["h_n", "c_n"]
# Small enough that a test can fill it; the test of 1000 streams has a server of its own.
SMALL = Stream(capacity=4, idle_s=1000)


def counted(server):
    """What /metrics says of streams."""
    with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=TIMEOUT_S) as answer:
        text = answer.read().decode()
    rows = re.findall(r"^looprnn_streams_(\w+)\{([^}]*)\} ([\d.]+)$", text, re.MULTILINE)
    assert all(f'model="{MODEL}"' in labels for _, labels, _ in rows)
    return {name: float(value) for name, _, value in rows}


def tensor(triton, name, array):
    kind = "INT32" if array.dtype == np.int32 else "FP32"
    made = triton.InferInput(name, list(array.shape), kind)
    made.set_data_from_numpy(array)
    return made


class Wire:
    """chunk(stream, x, …) over one protocol; raises InferenceServerException."""

    def __init__(self, protocol, server, model=MODEL):
        self.triton = {"grpc": triton_grpc, "http": triton_http}[protocol]
        self.model = model
        self.client = self.triton.InferenceServerClient(getattr(server, protocol))

    def close(self):
        self.client.close()

    def chunk(self, stream, x, *, start=False, end=False, outputs=SPEC.output_names, **more):
        inputs = {"input": x, **more}
        answer = self.client.infer(
            self.model,
            [tensor(self.triton, name, array) for name, array in inputs.items()],
            sequence_id=stream,
            sequence_start=start,
            sequence_end=end,
            outputs=[self.triton.InferRequestedOutput(name) for name in outputs],
        )
        return {name: answer.as_numpy(name) for name in outputs}

    def export(self, stream, **flags):
        lengths = np.zeros((1, 1), np.int32)
        return self.chunk(stream, drawn(1), lengths=lengths, outputs=STATES, **flags)


def drawn(time, seed=0):
    """[1, T, I]"""
    return parity.draw_inputs(SPEC, 1, time, seed)["input"]


def whole(x, **states):
    """What the reference answers to the whole sequence."""
    inputs = {**SPEC.defaults(*x.shape[:2]), "input": x, **states}
    return reference.run(SPEC, load_weights(SPEC), inputs)


def assert_agrees(got, want):
    assert parity.agrees(parity.difference(got, want))


@pytest.fixture(
    scope="module", params=["onnxruntime", pytest.param("fused", marks=pytest.mark.gpu)]
)
def engine(request):
    """One that keeps states in host memory, and one that keeps them on the GPU."""
    reason = cannot_run_here(request.param)
    if reason and request.config.getoption("--require") != request.param:
        pytest.skip(reason)
    return request.param


@pytest.fixture(scope="module")
def small(tmp_path_factory, engine) -> Iterator[Server]:
    """A server of the stream model alone, its table of SMALL size."""
    folder = streams_only(tmp_path_factory.mktemp("small"), SMALL, engine)
    with Server(folder) as server:
        yield server


def streams_only(folder: Path, stream: Stream, engine: str) -> Path:
    """A repository of the stream model alone, with that engine."""
    spec = dataclasses.replace(SPEC, stream=stream)
    build_variant(spec, buildable([engine])[0], folder, progress=lambda *_: None)
    shutil.rmtree(folder / SPEC.name)
    return folder


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


def said(wire, *arguments, **options):
    with pytest.raises(InferenceServerException) as caught:
        wire.chunk(*arguments, **options)
    return caught.value.message()


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


def test_chunks_that_do_not_wait_for_each_other_stay_in_order(tmp_path, engine):
    """One gRPC stream carries every chunk of 20 streams at once: Triton lets one at a time through
    of each.
    """
    folder = streams_only(tmp_path, Stream(capacity=20, idle_s=1000), engine)
    streams, chunks, steps = 20, 6, 4
    x = parity.draw_inputs(SPEC, streams, chunks * steps)["input"]
    answers: queue.SimpleQueue = queue.SimpleQueue()
    with Server(folder) as server, contextlib.closing(Wire("grpc", server)) as wire:
        wire.client.start_stream(lambda result, error: answers.put((result, error)))
        for c in range(chunks):
            for k in range(streams):
                part = x[k : k + 1, c * steps : (c + 1) * steps]
                wire.client.async_stream_infer(
                    MODEL,
                    [tensor(triton_grpc, "input", part)],
                    request_id=f"{k} {c}",
                    sequence_id=f"stream {k}",
                    sequence_start=c == 0,
                    sequence_end=c == chunks - 1,
                )
        got = {}
        for _ in range(streams * chunks):
            result, error = answers.get(timeout=TIMEOUT_S)
            assert error is None, error
            k, c = map(int, result.get_response().id.split())
            got[k, c] = result.as_numpy("output")
        wire.client.stop_stream()
    want = whole(x)["output"]
    for (k, c), output in got.items():
        assert_agrees(output, want[k : k + 1, c * steps : (c + 1) * steps])


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


STREAMS, LIVE, CLIENTS, STEPS = 1000, 200, 4, 24


def processes(server: Server) -> list[int]:
    """tritonserver and the process of its one model."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):  # ended meanwhile
            if f"\nPPid:\t{server.process.pid}\n" in status.read_text():
                found.append(int(status.parent.name))
    assert len(found) == 1
    return [server.process.pid, *found]


def resident_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmRSS"))) / 1024


def follow(wire, name, x, rng):
    """One stream from START to END in chunks of random lengths: its outputs and last states."""
    cuts = np.unique([0, x.shape[1], *rng.integers(1, x.shape[1], rng.integers(1, 6))]).tolist()
    got = [
        wire.chunk(name, x[:, first:last], start=first == 0, end=last == cuts[-1])
        for first, last in itertools.pairwise(cuts)
    ]
    return {**got[-1], "output": np.concatenate([g["output"] for g in got], axis=1)}


def test_a_thousand_streams_two_hundred_at_a_time(tmp_path, engine):
    """From several clients, interleaved as it comes: every step of every stream is right, no START
    is refused though the table has room for 200 only, and memory stays what it was.
    """
    folder = streams_only(tmp_path, Stream(capacity=LIVE, idle_s=1000), engine)
    x = np.random.default_rng(3).standard_normal((STREAMS, STEPS, SPEC.input_size), np.float32)
    version = folder / MODEL / "1"
    card = Cards.read(version).engines[engine]
    with engines.get(engine).session(version / card.file, SPEC) as session:
        parts = [
            session.run({**SPEC.defaults(len(rows), STEPS), "input": rows})
            for rows in np.split(x, STREAMS // 20)
        ]
    every = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for k in range(0, STREAMS, 100):  # the engine on whole sequences, held to the reference
        assert_agrees(every["h_n"][k : k + 1], whole(x[k : k + 1])["h_n"])

    todo = iter(range(STREAMS))
    lock = threading.Lock()

    def work(worker):
        """One stream after the other, until none is left to begin."""
        rng = np.random.default_rng(worker)
        answers = {}
        while True:
            with lock:
                k = next(todo, None)
                if k is None:
                    return answers
                if k % 50 == 0:
                    memory.append([resident_mib(pid) for pid in pids])
            name = k + 1 if k % 2 else f"s{k}"
            answers[k] = follow(wires[worker % CLIENTS], name, x[k : k + 1], rng)

    memory: list[list[float]] = []
    answers = {}
    with Server(folder) as server, contextlib.ExitStack() as clients:
        pids = processes(server)
        wires = [
            clients.enter_context(contextlib.closing(Wire("grpc", server))) for _ in range(CLIENTS)
        ]
        with ThreadPoolExecutor(LIVE) as pool:
            for found in pool.map(work, range(LIVE)):
                answers |= found
        memory.append([resident_mib(pid) for pid in pids])
    assert sorted(answers) == list(range(STREAMS))
    for k, got in answers.items():
        for name in SPEC.output_names:
            assert_agrees(got[name][0], every[name][k])
    # Over the later half, whose arrays are 18 MiB altogether.
    settled = np.array(memory)[len(memory) // 2 :]
    assert (settled[-1] - settled[0] < 8).all(), memory
