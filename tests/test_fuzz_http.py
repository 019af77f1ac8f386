"""HTTP, fuzzed: whatever comes, the server answers or closes, and goes on answering: the next good
request gets the golden answer, and a stream that lives beside it all goes on untouched.
"""

import errno
import json
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_draws import ANSWER_S, FLAG, FUZZ, IDS, MODELS, going_on, near, tensors

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def golden(server):
    """golden() makes the calls that must go on as if nothing had happened."""
    with going_on(server) as check:
        yield check


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
