"""What the client's tests share: arrays, a model's configuration, a transport without a server."""

import threading

import numpy as np
from looprnn_client import Client
from looprnn_client.transport import Code, Failure

B, T, I, H, D = 3, 4, 7, 5, 2  # noqa: E741  no two agree
STATES = 4  # two layers, two directions
X = np.linspace(-1, 1, B * T * I, dtype=np.float32).reshape(B, T, I)
STATE = np.linspace(-1, 1, B * STATES * H, dtype=np.float32).reshape(B, STATES, H)


def config(
    *,
    h=(STATES, H),
    c=(STATES, H),
    width=D * H,
    reverse=None,
    head=None,
    lengths=None,
    vocabulary=None,
    batch=8,
    time_max="16",
    dtype="TYPE_FP32",
    strings=False,
):
    def row(name, *dims, dtype=dtype):
        dims = [str(d) for d in dims] if strings else list(dims)
        return {"name": name, "data_type": dtype, "dims": dims}

    states = {"h": h, "c": c} if c else {"h": h}
    takes = [row("input", -1, I), *(row(f"{s}_0", *dims) for s, dims in states.items())]
    gives = [row("output", -1, width), *(row(f"{s}_n", *dims) for s, dims in states.items())]
    if vocabulary is not None:
        takes[0] = row("input", -1, dtype="TYPE_INT32")
    if lengths is not None:
        takes.insert(1, row("lengths", *lengths, dtype="TYPE_INT32"))
    if reverse is not None:
        gives.insert(1, row("output_reverse", -1, reverse))
    if head is not None:
        gives.append(row("head", *head))
    notes = {"time_max": time_max, "vocabulary": vocabulary}
    return {
        "input": takes,
        "output": gives,
        "max_batch_size": batch,
        "parameters": {k: {"string_value": v} for k, v in notes.items() if v is not None},
    }


PADDED = config(c=None, lengths=[1], head=[3])
TOKENS = config(lengths=[1], vocabulary="11", head=[-1, 4])
IDS = np.arange(B * T).reshape(B, T) % 11


class Fake:
    """A transport that serves `config` and remembers what it was asked."""

    def __init__(self, config=None, *, models=(), fails=None, index_fails=None):
        self.model = config if config is not None else globals()["config"]()
        self.models = models
        self.fails = fails
        self.index_fails = index_fails
        self.asked = []
        self.closed = 0

    def config(self, model, timeout_s):
        self.asked.append("config")
        return self.model

    def index(self, timeout_s):
        self.asked.append("index")
        if self.index_fails:
            raise self.index_fails
        return self.models

    def prepare(self, call):
        return call

    def infer(self, call, timeout_s):
        self.asked.append("infer")
        self.inputs, self.outputs = call.inputs, call.outputs
        if self.fails:
            raise self.fails
        self.answer = {name: self.compute(name, call.inputs["input"]) for name in call.outputs}
        return self.answer

    def compute(self, name, x):
        (dims,) = (row["dims"] for row in self.model["output"] if row["name"] == name)
        shape = [len(x), *(x.shape[1] if int(dim) == -1 else int(dim) for dim in dims)]
        array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        array.flags.writeable = False
        return array

    def close(self):
        self.closed += 1


def client_of(fake, timeout_s=5.0):
    return Client("here:8001", "bilstm", timeout_s=timeout_s, transport=fake)


def state_of(name, state, reason=""):
    return {"name": name, "version": "1", "state": state, "reason": reason}


READY = [state_of("bilstm", "READY"), state_of("lstm", "READY")]
BROKEN = [state_of("bilstm", "UNAVAILABLE", "Internal: no model.onnx\n\nAt:\n  model.py(17)")]
DEAD = Failure(Code.UNAVAILABLE, "failed to connect")


def in_threads(count, call):
    """Runs call in `count` threads at once; raises the first error, or when one hangs."""
    errors = []

    def run():
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if errors:
        raise errors[0]
