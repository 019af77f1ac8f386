"""The wire, fuzzed: whatever comes, the server answers, with an error where one is due; the next
good request gets the golden answer, and a stream that lives beside it all goes on untouched.
"""

import errno
import json
import socket
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from conftest import VARIANTS
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from looprnn_client import Client
from tritonclient.grpc import service_pb2 as pb

from looprnn import parity, reference
from looprnn.weights import load_weights

pytestmark = pytest.mark.live
ANSWER_S = 60
SPEC = VARIANTS["lstm"]
WEIGHTS = load_weights(SPEC)
X = parity.draw_inputs(SPEC, 2, 4)["input"]
NUMPY = {"FP32": np.float32, "INT32": np.int32}
MODELS = ("lstm", "lstm_stream", "bilstm", "tokens", "padded_gru")
FUZZ = settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])


def truth(spec, inputs):
    full = spec.defaults(*inputs["input"].shape[:2]) | inputs
    return reference.run(spec, load_weights(spec), full)


@pytest.fixture(scope="module")
def golden(server):
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
OPTIONS = ["priority", "timeout", "unheard_of"]


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


@st.composite
def requests(draw):
    """A ModelInferRequest: near to right, or one that makes no sense."""
    sane = draw(st.booleans())
    names = ["lstm", "lstm_stream"] if sane else [*MODELS, "none", "", "../lstm"]
    versions = ["", "1"] if sane else [*[""] * 9, "0", "-1", "99999999999", "x"]
    request = pb.ModelInferRequest(
        model_name=draw(st.sampled_from(names)),
        model_version=draw(st.sampled_from(versions)),
        id=draw(st.sampled_from(["", "7", "\n" * 9])),
    )
    for name, dtype, shape, data in draw(near() if sane else st.lists(tensors(), max_size=4)):
        tensor = request.inputs.add(name=name, datatype=dtype, shape=shape)
        where = "raw" if sane else draw(st.sampled_from(["raw", "contents", "shared", "none"]))
        if where == "raw":
            request.raw_input_contents.append(data)
        elif where == "contents":
            tensor.contents.fp32_contents.extend(np.zeros(min(len(data) // 4, 99)).tolist())
        elif where == "shared":
            tensor.parameters["shared_memory_region"].string_param = "nobody's"
            tensor.parameters["shared_memory_byte_size"].int64_param = draw(DIMS)
    outputs = ["output", "h_n", "c_n"] + ([] if sane else ["head", ""])
    for name in draw(st.lists(st.sampled_from(outputs), max_size=2)):
        output = request.outputs.add(name=name)
        if not sane and draw(st.booleans()):
            output.parameters["classification"].int64_param = draw(DIMS)
    if request.model_name == "lstm_stream" or not sane:
        for name, values in (("id", IDS), ("start", FLAG), ("end", FLAG)):
            put(request.parameters[f"sequence_{name}"], draw(values))
    for name in () if sane else draw(st.lists(st.sampled_from(OPTIONS), max_size=1)):
        put(request.parameters[name], draw(IDS))
    return request


def put(parameter, value):
    kind = {bool: "bool_param", int: "int64_param", str: "string_param"}.get(type(value))
    if kind:
        setattr(parameter, kind, value)


def call(server, message):
    """The answer's bytes, or the error the server sent. Silence and a dead server are neither."""
    with grpc.insecure_channel(server.grpc) as channel:
        infer = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        try:
            return infer(message, timeout=ANSWER_S)
        except grpc.RpcError as error:
            assert error.code() not in (
                grpc.StatusCode.DEADLINE_EXCEEDED,
                grpc.StatusCode.CANCELLED,
            ), error
            assert error.details(), error.code()
            return error


def assert_due(request, answer):
    """What was answered is what NumPy makes of it: an error was not swallowed."""
    if request.model_name not in VARIANTS:
        return  # a stream's own rules: tests/test_streams_live.py
    spec = VARIANTS[request.model_name]
    response = pb.ModelInferResponse.FromString(answer)
    given = {}
    raw = iter(request.raw_input_contents)
    for tensor in request.inputs:
        assert tensor.datatype in NUMPY, "another type was taken"
        data = next(raw, None)
        if data is None:
            data = np.array(tensor.contents.fp32_contents, np.float32).tobytes()
        given[tensor.name] = np.frombuffer(data, NUMPY[tensor.datatype]).reshape(tensor.shape)
    if "lengths" in given:
        given["lengths"] = given["lengths"][:, 0]
    want = truth(spec, given)
    for tensor, data in zip(response.outputs, response.raw_output_contents, strict=True):
        if tensor.datatype != "FP32":
            continue  # a classification: Triton's own text
        got = np.frombuffer(data, np.float32).reshape(tensor.shape)
        assert parity.agrees(parity.difference(got, want[tensor.name])), tensor.name


def stream_message(**parameters):
    request = pb.ModelInferRequest(model_name="lstm_stream")
    request.inputs.add(name="input", datatype="FP32", shape=[1, 4, 7])
    request.raw_input_contents.append(X[:1].tobytes())
    for name, value in parameters.items():
        put(request.parameters[name], value)
    return request


@FUZZ
@given(request=requests())
@example(request=stream_message())
@example(request=stream_message(sequence_id=0, sequence_start=True))
@example(request=stream_message(sequence_id="", sequence_start=True))
@example(request=stream_message(sequence_id="x", sequence_end=True))
@example(request=stream_message(sequence_id=1, sequence_start=True, sequence_end=True))
def test_any_request_over_grpc(server, golden, request):
    answer = call(server, request.SerializeToString())
    if isinstance(answer, bytes):
        assert_due(request, answer)
    golden()


@FUZZ
@given(message=st.binary(max_size=300))
def test_any_bytes_over_grpc(server, golden, message):
    call(server, message)
    golden()


@FUZZ
@given(request=requests(), cut=st.integers(0, 2000), byte=st.integers(0, 255))
def test_a_damaged_message_over_grpc(server, golden, request, cut, byte):
    message = bytearray(request.SerializeToString())
    if message:
        message[cut % len(message)] = byte
    call(server, bytes(message[: cut + 1] if cut % 2 else message))
    golden()


def exchange(server, data):
    """All that the server says before it closes. Silence is an error."""
    host, port = server.http.split(":")
    said = b""
    with socket.create_connection((host, int(port)), timeout=ANSWER_S) as line:
        try:
            line.sendall(data)
            line.shutdown(socket.SHUT_WR)
            while part := line.recv(65536):
                said += part
        except OSError as error:
            if error.errno not in (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN):
                raise  # those are a close while bytes of ours were unread: an answer too
    return said


PATHS = st.sampled_from(
    [
        *["/v2/models/lstm/infer"] * 9,
        *(f"/v2/models/{model}/infer" for model in (*MODELS, "none", "%00", "..%2flstm", "")),
        *("/v2/models/lstm/versions/1/infer", "/v2/models/lstm/config", "/v2/health/ready"),
        *("/v2/repository/index", "/v2/models/lstm/generate", "/", "//" * 99),
    ]
)
JSONS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["inputs", "outputs", "name", "shape", "datatype", "data", "parameters"]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=12,
)


@st.composite
def http_infers(draw):
    """The KServe JSON of a request, near to right, and its binary tail."""
    inputs, tail = [], b""
    for name, dtype, shape, data in draw(near() | st.lists(tensors(), max_size=3)):
        size = draw(st.sampled_from([len(data)] * 6 + [0, -1, 2**40]))
        inputs.append({"name": name, "datatype": dtype, "shape": shape})
        if draw(st.integers(0, 4)):
            inputs[-1]["parameters"] = {"binary_data_size": size}
            tail += data
        else:
            inputs[-1]["data"] = draw(JSONS)
    whole = {"inputs": inputs}
    if draw(st.booleans()):
        whole |= {"id": draw(JSONS), "parameters": draw(JSONS)}
    if draw(st.booleans()):
        flags = {"sequence_start": draw(FLAG), "sequence_end": draw(FLAG)}
        whole["parameters"] = {"sequence_id": draw(IDS), **flags}
    return json.dumps(whole if draw(st.integers(0, 4)) else draw(JSONS)).encode(), tail


@FUZZ
@given(path=PATHS, body=http_infers(), lie=st.sampled_from([0, 0, 0, -1, 1, 10**6, -(10**6)]))
def test_any_infer_over_http(server, golden, path, body, lie):
    header, tail = body
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(header) + len(tail)}\r\n"
        f"Inference-Header-Content-Length: {len(header) + lie}\r\nConnection: close\r\n\r\n"
    )
    assert exchange(server, head.encode() + header + tail).startswith(b"HTTP/1.1 ")
    golden()


@FUZZ
@given(
    verb=st.sampled_from(["GET", "POST", "PUT", "DELETE", "", "\0"]),
    path=PATHS,
    headers=st.lists(
        st.sampled_from(
            ["Content-Length: -1", "Content-Length: 99", "Transfer-Encoding: chunked",
             "Content-Encoding: gzip", "Content-Encoding: deflate", "Expect: 100-continue",
             "Inference-Header-Content-Length: x", ": ", "A" * 9000, "Accept-Encoding: gzip"]
        ),
        max_size=3,
    ),
    body=st.binary(max_size=60),
)  # fmt: skip
def test_any_http(server, golden, verb, path, headers, body):
    lines = "".join(f"{line}\r\n" for line in headers)
    exchange(server, f"{verb} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body)
    golden()


@FUZZ
@given(data=st.binary(max_size=400))
def test_any_bytes_over_http(server, golden, data):
    exchange(server, data)
    golden()


def test_the_check_notices_an_answer_that_was_not_due(server):
    """Half of the input given twice as T: an answer to another request than was sent."""
    request = pb.ModelInferRequest(model_name="lstm")
    request.inputs.add(name="input", datatype="FP32", shape=X.shape)
    request.raw_input_contents.append(X.tobytes())
    answer = call(server, request.SerializeToString())
    assert_due(request, answer)
    request.raw_input_contents[0] = X[::-1].tobytes()
    with pytest.raises(AssertionError, match="agrees"):
        assert_due(request, answer)
