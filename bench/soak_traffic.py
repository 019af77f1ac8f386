"""bench/soak.py's mixed traffic, in a process of its own: a thread for each habit, again and again
until told to stop. Every answer is compared with the one NumPy gave before the soak began.
"""

import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from looprnn_client import Client, LoopRNNClientError, StreamRefused
from numpy.typing import NDArray
from systems import INFER, triton_message
from wire import http_request

from looprnn import parity, reference
from looprnn.spec import RNNSpec
from looprnn.variants import load_spec
from looprnn.weights import load_weights

TIMEOUT_S = 60
PAUSE_S = 0.002  # between two calls of one habit: mixed traffic, not the most that fits


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """Addresses, and the TOML of the variant that is served with its stream model."""

    grpc: str
    http: str
    variant: str


class Truth:
    """Sequences of several sizes with the reference's outputs, made once."""

    def __init__(self, spec: RNNSpec, count: int = 24) -> None:
        rng = np.random.default_rng(6)
        weights = load_weights(spec)
        self.spec = spec
        self.cases: list[tuple[dict[str, NDArray[Any]], dict[str, NDArray[np.float64]]]] = []
        for k in range(count):
            batch, time_ = (1, int(rng.integers(8, 65))) if k % 2 else (int(rng.integers(1, 9)), 16)
            inputs = parity.draw_inputs(spec, batch, time_, seed=k)
            if k % 2:
                inputs = {"input": inputs["input"]}  # what a stream can be cut from
            full = spec.defaults(batch, time_) | inputs
            self.cases.append((inputs, reference.run(spec, weights, full)))

    def check(self, got: NDArray[np.float32] | None, want: NDArray[np.float64]) -> None:
        """Raises AssertionError where they differ."""
        worst = np.inf if got is None else parity.difference(got, want)
        if not parity.agrees(worst):
            raise AssertionError(f"an answer is wrong by {worst:.2g}")


class Habits:
    """What clients do, well and badly; each method is one turn."""

    def __init__(self, where: Where, truth: Truth, seed: int) -> None:
        self.where, self.truth = where, truth
        self.random = random.Random(seed)
        self.client = Client(where.grpc, truth.spec.name, timeout_s=TIMEOUT_S)
        self.over_http = Client(f"http://{where.http}", truth.spec.name, timeout_s=TIMEOUT_S)

    def whole_sequences(self) -> None:
        self._ask(self.client)

    def whole_sequences_over_http(self) -> None:
        self._ask(self.over_http)

    def connections_that_come_and_go(self) -> None:
        url = self.random.choice([self.where.grpc, f"http://{self.where.http}"])
        with Client(url, self.truth.spec.name, timeout_s=TIMEOUT_S) as client:
            self._ask(client)

    def streams(self) -> None:
        """Random chunks of a sequence; one in five is left without END."""
        inputs, want = self.random.choice(self.truth.cases[1::2])
        x = inputs["input"]
        stream = self.client.stream()
        parts, at = [], 0
        try:
            while at < x.shape[1]:
                size = self.random.randint(1, 12)
                parts.append(stream.send(x[:, at : at + size]).output)
                at += size
        except StreamRefused:
            return  # as many as may live do: said so, and no one else's harm
        self.truth.check(np.concatenate([p for p in parts if p is not None], 1), want["output"])
        if self.random.random() < 0.8:
            stream.close()

    def bad_requests(self) -> None:
        """Refused by the server, one way or another."""
        x = np.full((1, 4, self.truth.spec.input_size), np.nan, np.float32)
        shapes = [x, x[:, :0], x[..., :3], np.zeros((99, 4, x.shape[2]), np.float32)]
        message = triton_message(self.truth.spec.name, {"input": self.random.choice(shapes)})
        if self.random.random() < 0.3:
            message = self.random.randbytes(40)
        with grpc.insecure_channel(self.where.grpc) as channel:
            try:
                channel.unary_unary(INFER)(message, timeout=TIMEOUT_S)
            except grpc.RpcError as error:
                assert error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED, error
            else:
                raise AssertionError("a bad request was answered")

    def rubbish_over_http(self) -> None:
        """Waits until the server has closed, or rubbish would pile up."""
        with socket.create_connection(address(self.where.http), timeout=TIMEOUT_S) as line:
            try:
                line.sendall(self.random.randbytes(60) + b"\r\n\r\n")
                line.shutdown(socket.SHUT_WR)
                while line.recv(65536):
                    pass
            except TimeoutError:
                raise
            except OSError:
                pass  # closed while bytes of ours were unread

    def calls_given_up(self) -> None:
        """Over HTTP, by closing. Over gRPC a cancelled call can crash the tritonserver 2.51 that is
        embedded: triton-inference-server/server#7368, mended in 2.53.
        """
        inputs, _ = self.truth.cases[1]
        request = {
            "inputs": [
                {
                    "name": "input",
                    "datatype": "FP32",
                    "shape": inputs["input"].shape,
                    "data": inputs["input"].ravel().tolist(),
                }
            ]
        }
        path = f"/v2/models/{self.truth.spec.name}/infer"
        with socket.create_connection(address(self.where.http), timeout=TIMEOUT_S) as line:
            line.sendall(http_request(path, json.dumps(request).encode()))
            time.sleep(self.random.random() * 0.003)
        self._ask(self.over_http)  # behind it in the queue: no more than one lies there

    def unknown_models(self) -> None:
        with Client(self.where.grpc, "nobody", timeout_s=TIMEOUT_S) as client:
            try:
                client.infer(np.zeros((1, 1, 1), np.float32))
            except LoopRNNClientError as error:
                assert "has no model 'nobody'" in str(error), error

    def _ask(self, client: Client) -> None:
        inputs, want = self.random.choice(self.truth.cases)
        h_0, c_0, lengths = (inputs.get(name) for name in ("h_0", "c_0", "lengths"))
        result = client.infer(inputs["input"], h_0, c_0, lengths=lengths)
        for name, array in want.items():
            self.truth.check(getattr(result, name), array)


def address(text: str) -> tuple[str, int]:
    host, port = text.split(":")
    return host, int(port)


def run(where: Where, stop: Event, report: Any) -> None:
    """Every habit in a thread, until `stop`; report.put((turns by habit, first failure))."""
    truth = Truth(load_spec(Path(where.variant)))
    turns: Counter[str] = Counter()
    failures: list[str] = []

    def live(habit: Callable[[], None]) -> None:
        while not stop.is_set() and not failures:
            try:
                habit()
            except Exception as error:
                failures.append(f"{habit.__name__}: {type(error).__name__}: {error}")
            turns[habit.__name__] += 1
            time.sleep(PAUSE_S)

    threads = []
    for k in range(2):
        habits = Habits(where, truth, seed=k)
        for name, habit in vars(Habits).items():
            if not name.startswith("_"):
                threads.append(threading.Thread(target=live, args=(habit.__get__(habits),)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    report.put((dict(turns), failures[:1]))
