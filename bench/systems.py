"""What bench/serving.py compares: looprnn, and what a user would pick instead, each on the same
ONNX file. How each is started, asked, and understood.

looprnn   this repository's server model on the embedded tritonserver, over gRPC
plain     rivals/plain.py on the same tritonserver, over gRPC: dynamic batching, one instance
pytriton  rivals/pytriton_server.py, over gRPC: dynamic batching without delay, one callable
fastapi   rivals/fastapi_app.py on uvicorn with uvloop and httptools, raw float32 over HTTP

A rival is tried with the settings of CANDIDATES first, and the fastest of them at concurrency 8 is
what looprnn is compared with.
"""

import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb
from wire import grpc_request, http_request

from looprnn.installation import libpython
from looprnn.server import Server, free_ports
from looprnn.spec import RNNSpec

RIVALS = Path(__file__).resolve().parent / "rivals"
INFER = "/inference.GRPCInferenceService/ModelInfer"
Array = NDArray[np.float32]
Arrays = dict[str, Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A running service: `frame` makes an input [B, T, I] into bytes to send, `read` an answer's
    bytes into named arrays. pid leads the processes that serve.
    """

    name: str
    protocol: str
    address: str
    pid: int
    frame: Callable[[Array], bytes]
    read: Callable[[bytes], Arrays]


def triton_message(
    model: str,
    arrays: dict[str, NDArray[Any]],
    *,
    outputs: Sequence[str] = (),
    **parameters: int,
) -> bytes:
    """A ModelInferRequest, serialized. outputs: none asks for all; parameters: sequence_id=7."""
    message = pb.ModelInferRequest(model_name=model)
    kinds = {"float32": "FP32", "int32": "INT32"}
    for name, array in arrays.items():
        message.inputs.add(name=name, datatype=kinds[array.dtype.name], shape=array.shape)
        message.raw_input_contents.append(array.tobytes())
    for name in outputs:
        message.outputs.add(name=name)
    for name, value in parameters.items():
        kind = "bool_param" if isinstance(value, bool) else "int64_param"
        setattr(message.parameters[name], kind, value)
    return bytes(message.SerializeToString())


def read_triton(answer: bytes) -> Arrays:
    message = pb.ModelInferResponse.FromString(answer)
    raw = message.raw_output_contents
    return {
        o.name: np.frombuffer(r, np.float32).reshape(tuple(o.shape))
        for o, r in zip(message.outputs, raw, strict=True)
    }


def _on_triton(name: str, model: str, address: str, pid: int) -> System:
    return System(
        name=name,
        protocol="grpc",
        address=address,
        pid=pid,
        frame=lambda x: grpc_request(INFER, triton_message(model, {"input": x})),
        read=read_triton,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a system is started with. scratch: an empty folder for it alone; threads: ONNX
    Runtime's for one call, 0 its own choice.
    """

    spec: RNNSpec
    repository: Path
    scratch: Path
    threads: int = 0
    workers: int = 1

    @property
    def onnx(self) -> Path:
        """The file that every system serves."""
        return self.repository / self.spec.name / "1/model.onnx"


@contextmanager
def looprnn(setup: Setup) -> Iterator[System]:
    with Server(setup.repository, models=[setup.spec.name]) as server:
        yield _on_triton("looprnn", setup.spec.name, server.grpc, server.process.pid)


@contextmanager
def plain(setup: Setup) -> Iterator[System]:
    version = setup.scratch / "repository/plain/1"
    version.mkdir(parents=True)
    shutil.copy(RIVALS / "plain.py", version / "model.py")
    shutil.copy(RIVALS / "plain.pbtxt", version.parent / "config.pbtxt")
    shutil.copy(setup.onnx, version)
    os.environ["THREADS"] = str(setup.threads)  # a server takes on its starter's environment
    with Server(version.parent.parent) as server:
        yield _on_triton("plain", "plain", server.grpc, server.process.pid)


@contextmanager
def pytriton(setup: Setup) -> Iterator[System]:
    ports = free_ports(3)
    command = [RIVALS / "pytriton_server.py", setup.onnx, *ports]
    ready = f"http://127.0.0.1:{ports[0]}/v2/models/pytriton/ready"
    with _program(command, ready, setup) as pid:
        yield _on_triton("pytriton", "pytriton", f"127.0.0.1:{ports[1]}", pid)


@contextmanager
def fastapi(setup: Setup) -> Iterator[System]:
    (port,) = free_ports(1)
    size = setup.spec.layers[0].hidden_size

    def read(answer: bytes) -> Arrays:
        output, h_n, c_n = np.split(np.frombuffer(answer, np.float32), [-2 * size, -size])
        return {
            "output": output.reshape(1, -1, size),
            "h_n": h_n.reshape(1, 1, size),
            "c_n": c_n.reshape(1, 1, size),
        }

    command = [
        *("-m", "uvicorn", "fastapi_app:app", f"--app-dir={RIVALS}", f"--workers={setup.workers}"),
        *("--host=127.0.0.1", f"--port={port}", "--no-access-log", "--log-level=warning"),
        *("--loop=uvloop", "--http=httptools"),
    ]
    with _program(command, f"http://127.0.0.1:{port}/docs", setup) as pid:
        yield System(
            name="fastapi",
            protocol="http",
            address=f"127.0.0.1:{port}",
            pid=pid,
            frame=lambda x: http_request("/infer", x.tobytes()),
            read=read,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A system with settings that a user would try; of several, the fastest is compared."""

    system: str
    settings: str
    start: Callable[[Setup], AbstractContextManager[System]]
    threads: int = 0
    workers: int = 1


CORES = os.cpu_count() or 1
OWN, ONE = "ONNX Runtime's own threads", "one thread a call"
CANDIDATES = (
    Candidate(system="looprnn", settings="as built", start=looprnn),
    Candidate(system="plain", settings=OWN, start=plain),
    Candidate(system="plain", settings=ONE, start=plain, threads=1),
    Candidate(system="pytriton", settings=OWN, start=pytriton),
    Candidate(system="pytriton", settings=ONE, start=pytriton, threads=1),
    Candidate(system="fastapi", settings=f"one worker, {OWN}", start=fastapi),
    Candidate(
        system="fastapi",
        settings=f"{CORES} workers, {ONE}",
        start=fastapi,
        threads=1,
        workers=CORES,
    ),
)
SYSTEMS = tuple(dict.fromkeys(candidate.system for candidate in CANDIDATES))


@contextmanager
def _program(command: Sequence[object], ready: str, setup: Setup) -> Iterator[int]:
    """A rival's Python process, once it answers at `ready`; its log is in setup.scratch."""
    log = setup.scratch / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *map(str, command)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "MODEL": str(setup.onnx),
                "THREADS": str(setup.threads),
                # PyTriton's stub must take the library of this Python, not another 3.11's
                "LD_LIBRARY_PATH": str(libpython().parent),
            },
        )
    try:
        deadline = time.monotonic() + 120
        while not _answers(ready):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{command[0]} does not serve:\n{log.read_text()[-3000:]}")
            time.sleep(0.1)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1):
            return True
    except (urllib.error.URLError, OSError):
        return False
