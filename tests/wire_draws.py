"""What is drawn to fuzz the wire, and the calls that must go on beside it."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
from conftest import VARIANTS
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from looprnn_client import Client

from looprnn import parity, reference
from looprnn.weights import load_weights

ANSWER_S = 60
SPEC = VARIANTS["lstm"]
X = parity.draw_inputs(SPEC, 2, 4)["input"]
MODELS = ("lstm", "lstm_stream", "bilstm", "tokens", "padded_gru")
FUZZ = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])


def truth(spec, inputs):
    full = spec.defaults(*inputs["input"].shape[:2]) | inputs
    return reference.run(spec, load_weights(spec), full)


@contextmanager
def going_on(server):
    """Calls that must go on as if nothing had happened: check()."""
    want = truth(SPEC, {"input": X})
    clients = [
        Client(url, "lstm", timeout_s=ANSWER_S) for url in (server.grpc, f"http://{server.http}")
    ]
    witness = clients[0].stream()
    state = SimpleNamespace(h_0=SPEC.defaults(1, 1)["h_0"], c_0=SPEC.defaults(1, 1)["c_0"])

    def check():
        for client in clients:
            got = client.infer(X)
            for name, array in want.items():
                assert parity.agrees(parity.difference(getattr(got, name), array)), name
        answer = witness.send(X[:1])
        after = truth(SPEC, {"input": X[:1], "h_0": state.h_0, "c_0": state.c_0})
        assert parity.agrees(parity.difference(answer.output, after["output"])), "another's state"
        state.h_0, state.c_0 = answer.h_n, answer.c_n

    check()
    yield check
    witness.close()
    for client in clients:
        client.close()


NAMES = st.sampled_from(
    ["input", "input", "lengths", "h_0", "c_0", "output", "START", "", "input\0", "é" * 300]
)
DIMS = st.sampled_from([-(2**63), -1, 0, 1, 1, 2, 4, 5, 7, 7, 64, 65, 2**31, 2**62, 2**63 - 1])
DTYPES = st.sampled_from(
    ["FP32", "FP32", "INT32", "FP64", "INT64", "BYTES", "BOOL", "FP16", "BF16", "UINT8", "", "FP"]
)
IDS = st.integers(-3, 3) | st.sampled_from([2**63 - 1, "", "1", "a", "\0", "b" * 5000])
FLAG = st.sampled_from([True, False] * 4 + [None, 1, "true"])


@st.composite
def tensors(draw):
    """(name, datatype, shape, bytes) that need not make sense."""
    shape = draw(st.lists(DIMS, max_size=4))
    count = int(np.prod([float(abs(d)) for d in shape])) if shape else 1
    fitting = st.just(bytes(4 * count)) if count < 5000 else st.just(bytes(64))
    return draw(NAMES), draw(DTYPES), shape, draw(fitting | st.binary(max_size=40))


@st.composite
def near(draw):
    """The tensors of one request to lstm: each as it should be, but for a size or a value that at
    times is not."""

    def mostly(good, other):
        return draw(st.sampled_from([good] * 12 + other))

    batch, time = draw(st.sampled_from([1, 1, 2, 8])), draw(st.sampled_from([1, 3, 64]))
    shapes = {"input": [batch, time, 7]}
    for name, shape in (("lengths", [batch, 1]), ("h_0", [batch, 1, 5]), ("c_0", [batch, 1, 5])):
        if draw(st.booleans()):
            shapes[name] = shape
    found = []
    for name, shape in shapes.items():
        shape[-1] = mostly(shape[-1], [0, 4])
        shape[0] = mostly(shape[0], [0, 3, 9])
        if name == "lengths":
            values = np.full(shape, mostly(draw(st.integers(0, time)), [-1, 65]), np.int32)
        else:
            good = draw(st.sampled_from([0.0, 1.0, -0.5, 1e-45]))
            values = np.full(shape, mostly(good, [np.nan, np.inf, 3e38]), np.float32)
        dtype = mostly("INT32" if name == "lengths" else "FP32", ["INT64", "FP64"])
        found.append((mostly(name, ["hidden"]), dtype, shape, values.tobytes()))
    return found
