"""Many streams at once on a real tritonserver: in order, each its own, and no memory lost."""

import contextlib
import itertools
import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from stream_wire import (
    ENGINES,
    MODEL,
    SPEC,
    TIMEOUT_S,
    Wire,
    able,
    assert_agrees,
    streams_only,
    tensor,
    whole,
)

from looprnn import engines, parity
from looprnn.card import Cards
from looprnn.server import Server
from looprnn.spec import Stream

pytestmark = pytest.mark.live
STREAMS, LIVE, CLIENTS, STEPS = 1000, 200, 4, 24


@pytest.fixture(scope="module", params=ENGINES)
def engine(request):
    """One that keeps states in host memory, and one that keeps them on the GPU."""
    return able(request)


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


def test_a_thousand_streams_two_hundred_at_a_time(tmp_path, engine, monkeypatch):
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
    # Each thread's arena of malloc keeps what was freed in it: many cores have many of them.
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
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
