"""What bench/serving.py compares: looprnn, and what a user would pick instead, each on the same
ONNX file. How each is started, asked, and understood.

looprnn   this repository's server model on the embedded tritonserver, over gRPC
plain     rivals/plain.py on the same tritonserver, over gRPC: dynamic batching, one instance
pytriton  rivals/pytriton_server.py, over gRPC: dynamic batching without delay, one callable
fastapi   rivals/fastapi_app.py on uvicorn with uvloop and httptools, raw float32 over HTTP
"""

import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2 as pb
from wire import grpc_request, http_request

from looprnn.server import Server, free_ports, libpython
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


@contextmanager
def looprnn(spec: RNNSpec, repository: Path, scratch: Path) -> Iterator[System]:
    with Server(repository, models=[spec.name]) as server:
        yield _on_triton("looprnn", spec.name, server.grpc, server.process.pid)


@contextmanager
def plain(spec: RNNSpec, repository: Path, scratch: Path) -> Iterator[System]:
    version = scratch / "plain_repository/plain/1"
    version.mkdir(parents=True)
    shutil.copy(RIVALS / "plain.py", version / "model.py")
    shutil.copy(RIVALS / "plain.pbtxt", version.parent / "config.pbtxt")
    shutil.copy(onnx_file(spec, repository), version)
    with Server(version.parent.parent) as server:
        yield _on_triton("plain", "plain", server.grpc, server.process.pid)


@contextmanager
def pytriton(spec: RNNSpec, repository: Path, scratch: Path) -> Iterator[System]:
    ports = free_ports(3)
    path = onnx_file(spec, repository)
    ready = f"http://127.0.0.1:{ports[0]}/v2/models/pytriton/ready"
    with _script("pytriton_server.py", [path, *ports], ready, scratch) as pid:
        yield _on_triton("pytriton", "pytriton", f"127.0.0.1:{ports[1]}", pid)


@contextmanager
def fastapi(spec: RNNSpec, repository: Path, scratch: Path) -> Iterator[System]:
    (port,) = free_ports(1)
    path = onnx_file(spec, repository)
    size = spec.layers[0].hidden_size

    def read(answer: bytes) -> Arrays:
        output, h_n, c_n = np.split(np.frombuffer(answer, np.float32), [-2 * size, -size])
        return {
            "output": output.reshape(1, -1, size),
            "h_n": h_n.reshape(1, 1, size),
            "c_n": c_n.reshape(1, 1, size),
        }

    with _script("fastapi_app.py", [path, port], f"http://127.0.0.1:{port}/docs", scratch) as pid:
        yield System(
            name="fastapi",
            protocol="http",
            address=f"127.0.0.1:{port}",
            pid=pid,
            frame=lambda x: http_request("/infer", x.tobytes()),
            read=read,
        )


SYSTEMS = {"looprnn": looprnn, "plain": plain, "pytriton": pytriton, "fastapi": fastapi}


def onnx_file(spec: RNNSpec, repository: Path) -> Path:
    """The file that every system serves."""
    return repository / spec.name / "1/model.onnx"


@contextmanager
def _script(name: str, arguments: list[object], ready: str, scratch: Path) -> Iterator[int]:
    """A rival's process, once it answers at `ready`; its log is in `scratch`."""
    log = scratch / f"{name}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, str(RIVALS / name), *map(str, arguments)],
            stdout=file,
            stderr=subprocess.STDOUT,
            # PyTriton's stub must take the library of this Python, not another 3.11's
            env={**os.environ, "LD_LIBRARY_PATH": str(libpython().parent)},
        )
    try:
        deadline = time.monotonic() + 120
        while not _answers(ready):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{name} does not serve:\n{log.read_text()[-3000:]}")
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
