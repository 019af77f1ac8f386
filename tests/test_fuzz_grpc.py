"""gRPC, fuzzed: whatever comes, the server answers, with an error where one is due; the next good
request gets the golden answer, and a stream that lives beside it all goes on untouched.
"""

import grpc
import numpy as np
import pytest
from conftest import VARIANTS
from hypothesis import example, given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2 as pb
from wire_draws import ANSWER_S, DIMS, FLAG, FUZZ, IDS, MODELS, X, going_on, near, tensors, truth

from looprnn import parity

pytestmark = pytest.mark.live
NUMPY = {"FP32": np.float32, "INT32": np.int32}
OPTIONS = ["priority", "timeout", "unheard_of"]


@pytest.fixture(scope="module")
def golden(server):
    """golden() makes the calls that must go on as if nothing had happened."""
    with going_on(server) as check:
        yield check


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
        return  # a stream's own rules: tests/test_live_streams.py
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
