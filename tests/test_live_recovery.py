"""A model process that is killed, stopped or hangs: what was in flight gets an error, the server
recovers by itself, and nothing stays in /dev/shm. The signals are real.
"""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tritonclient.grpc as triton_grpc
from conftest import VARIANTS
from test_server import serve, wait_until
from tritonclient.utils import InferenceServerException

from looprnn import parity
from looprnn.build import build_variant, buildable
from looprnn.server import Server
from looprnn.supervisor import children
from looprnn.weights import load_weights

SPEC = VARIANTS["padded_gru"]
HANG, SLOW, LOST = 40, 41, 42  # requests of so many steps
# The served model, but for an engine that never answers, or late, or loses its GPU, and writes down
# what it is given.
MODEL_PY = """
import ctypes
from pathlib import Path

from looprnn import triton_model, watchdog
from looprnn.errors import CudaLost

watchdog.PATIENCE_S = {patience_s}
libc = ctypes.PyDLL(None)  # which keeps the interpreter locked, as a driver may

class TritonPythonModel(triton_model.TritonPythonModel):
    def initialize(self, args):
        super().initialize(args)
        self.run, self._session.run = self._session.run, self.late

    def late(self, inputs, wanted):
        steps = inputs["input"].shape[1]
        with Path({seen!r}).open("a") as file:
            file.write(f" {{steps}} ")
        if steps == {hang}:
            libc.sleep(1000)
        if steps == {lost}:
            raise CudaLost("cudaErrorIllegalAddress")
        if steps == {slow}:
            ctypes.CDLL(None).sleep(1)
        return self.run(inputs, wanted)
"""


@pytest.fixture
def repository(tmp_path) -> Path:
    folder = tmp_path / "repository"
    build_variant(SPEC, buildable(["onnxruntime"])[0], folder, progress=lambda *_: None)
    return folder


@pytest.fixture
def seen(tmp_path) -> Path:
    """The T of each run of the engine, in a file."""
    path = tmp_path / "seen"
    path.touch()
    return path


class Served:
    """A `looprnn serve` with its addresses; tritonserver is its child, and the stub that one's."""

    def __init__(self, command, log):
        self.command, self.log = command, log
        while "gRPC" not in (line := command.stdout.readline()):
            assert line, "it ended before it served"
        self.grpc = line.split("gRPC ")[1].split(",")[0]

    @property
    def stub(self) -> int:
        """0 while there is none."""
        for leader in children(self.command.pid):
            for pid, state in children(leader).items():
                if state not in "ZX":
                    return pid
        return 0


@pytest.fixture
def server(repository, seen, tmp_path):
    """`looprnn serve` of a model that hangs and dawdles when told to; its watchdog waits 2 s."""
    code = MODEL_PY.format(patience_s=2.0, hang=HANG, slow=SLOW, lost=LOST, seen=str(seen))
    (repository / SPEC.name / "1/model.py").write_text(code)
    log = tmp_path / "tritonserver.log"
    with serve(repository, "--log", str(log)) as command:
        try:
            yield Served(command, log)
        finally:
            command.terminate()
            command.stdout.read()


def request(steps, rows=1):
    x = parity.draw_inputs(SPEC, rows, steps, seed=steps)["input"]
    tensor = triton_grpc.InferInput("input", list(x.shape), "FP32")
    tensor.set_data_from_numpy(x)
    return x, [tensor]


def ask(server, steps=5, **options):
    x, tensors = request(steps)
    with triton_grpc.InferenceServerClient(server.grpc) as client:
        answer = client.infer(SPEC.name, tensors, client_timeout=60, **options)
    got = {name: answer.as_numpy(name) for name in SPEC.output_names}
    found = parity.differences(
        SPEC, load_weights(SPEC), SPEC.defaults(*x.shape[:2]) | {"input": x}, got
    )
    assert all(parity.agrees(value) for value in found.values()), found


def answers_again(server):
    """Whether a right answer comes; an answer that comes is right."""
    try:
        ask(server)
    except InferenceServerException:
        return False
    return True


def segments() -> set[str]:
    return {p.name for p in Path("/dev/shm").iterdir() if p.name.startswith("looprnn-")}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_model_that_dies_or_stops_under_load_is_started_anew(server, number):
    over = threading.Event()

    def load(_):
        counts = {"right": 0, "failed": 0}
        while not over.is_set():
            counts["right" if answers_again(server) else "failed"] += 1
        return counts

    with ThreadPoolExecutor(4) as pool:
        loads = [pool.submit(load, k) for k in range(4)]
        try:
            wait_until(lambda: answers_again(server), "no answer before")
            first = server.stub
            os.kill(first, number)
            wait_until(lambda: server.stub not in (0, first), "no other process was started")
            wait_until(lambda: answers_again(server), "no answer after")
        finally:
            over.set()
        counts = [each.result() for each in loads]
    assert all(c["right"] for c in counts), counts
    assert sum(c["failed"] for c in counts), "what was in flight was answered without its process"
    wait_until(lambda: not Path(f"/proc/{first}").exists(), "the stopped process is still there")


def test_an_engine_that_never_answers_ends_in_an_error_and_the_log_says_where(server):
    with pytest.raises(InferenceServerException, match="not healthy"):
        ask(server, HANG)
    wait_until(lambda: answers_again(server), "no answer after")
    assert "in late" in server.log.read_text(errors="replace"), "no traceback of what hung"


def test_an_engine_whose_gpu_is_lost_ends_in_an_error_and_is_started_anew(server):
    wait_until(lambda: answers_again(server), "no answer before")
    first = server.stub
    with pytest.raises(InferenceServerException, match="engine failed: cudaErrorIllegalAddress"):
        ask(server, LOST)
    wait_until(lambda: server.stub not in (0, first), "no other process was started")
    wait_until(lambda: answers_again(server), "no answer after")


def test_nothing_stays_in_shared_memory_not_even_after_a_crash(repository):
    before = segments()
    with Server(repository) as server:
        ask(server)
        assert segments() > before
    assert segments() == before
    for victims in (lambda pid: [pid], children):
        with Server(repository) as server:
            ask(server)
            for victim in victims(server.process.pid):
                os.kill(victim, signal.SIGKILL)
        assert segments() == before


def test_a_model_that_is_unloaded_ends_without_a_crash(tmp_path):
    repository, log = tmp_path / "repository", tmp_path / "log"
    spec = VARIANTS["lstm"]  # whole sequences and streams
    build_variant(spec, buildable(["onnxruntime"])[0], repository, progress=lambda *_: None)
    with Server(repository, log=log):
        pass
    text = log.read_text(errors="replace")
    assert all(f"successfully unloaded '{name}'" in text for name in spec.models)
    assert "Fatal Python error" not in text


def test_a_request_in_flight_is_answered_when_the_server_is_asked_to_end(server, seen):
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(ask, server, SLOW)
        wait_until(lambda: f" {SLOW} " in seen.read_text(), "the slow run did not begin")
        server.command.terminate()
        slow.result()
    assert server.command.wait() == 128 + signal.SIGTERM


def test_a_request_cancelled_in_the_queue_never_runs(server, seen):
    _, tensors = request(6)
    done = threading.Event()
    with triton_grpc.InferenceServerClient(server.grpc) as client, ThreadPoolExecutor(1) as pool:
        slow = pool.submit(ask, server, SLOW)
        wait_until(lambda: f" {SLOW} " in seen.read_text(), "the slow run did not begin")
        call = client.async_infer(SPEC.name, tensors, lambda result, error: done.set())
        time.sleep(0.2)  # until it is in the queue; where that is too soon, it runs even less
        call.cancel()
        assert done.wait(30)
        slow.result()
        ask(server, 7)
    assert " 6 " not in seen.read_text()
