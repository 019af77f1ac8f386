"""The load generator speaks both protocols by hand: what it asks and understands is what a real
client does.
"""

import numpy as np
import pytest
from conftest import VARIANTS
from load import Call, Requests, closed_loop
from systems import INFER, read_triton, triton_message
from wire import WireError, ask, grpc_request, http_request

from looprnn import parity
from looprnn.weights import load_weights

pytestmark = pytest.mark.live
SPEC = VARIANTS["lstm_random"]


def asked(protocol, address, request):
    (answer,) = ask(protocol, address, [request])
    return answer


def to(server, requests, sizes):
    each = [
        Call(index=k, request=r, size=s)
        for k, (r, s) in enumerate(zip(requests, sizes, strict=True))
    ]
    return Requests(protocol="grpc", address=server.grpc, each=each)


def assert_right(x, answer):
    got = read_triton(answer)
    inputs = SPEC.defaults(*x.shape[:2]) | {"input": x}
    found = parity.differences(SPEC, load_weights(SPEC), inputs, got)
    assert all(parity.agrees(value) for value in found.values()), found


@pytest.mark.parametrize("time", [1, 63, 64, 200])  # 64 steps fill an HTTP/2 frame exactly
def test_grpc_by_hand_is_answered_as_a_stub_is(server, time):
    x = parity.draw_inputs(SPEC, 1, time)["input"]
    message = triton_message(SPEC.name, {"input": x})
    assert_right(x, asked("grpc", server.grpc, grpc_request(INFER, message)))


def test_many_calls_on_few_connections_are_each_answered(server):
    """More bytes than HTTP/2 lets through before the peer says more."""
    xs = [parity.draw_inputs(SPEC, 1, time)["input"] for time in (8, 64)]
    requests = [grpc_request(INFER, triton_message(SPEC.name, {"input": x})) for x in xs]
    sizes = [len(answer) for answer in ask("grpc", server.grpc, requests)]
    traffic = to(server, requests, sizes)
    measured = closed_loop(traffic, concurrency=3, seconds=0.5)
    assert len(measured.latencies_ms) == len(measured.which) > 0
    assert (measured.latencies_ms > 0).all() and measured.cpu_s > 0
    for index, answer in measured.last:
        assert_right(xs[index], answer)


def test_an_answer_of_another_size_is_not_timed(server):
    request = grpc_request(INFER, triton_message(SPEC.name, {"input": np.zeros((1, 8, 64), "f")}))
    traffic = to(server, [request], [7])
    with pytest.raises(RuntimeError, match="wanted 7"):
        closed_loop(traffic, concurrency=2, seconds=0.5)


def test_a_refusal_is_an_error(server):
    for message in (triton_message("nobody", {}), b"\xff\xff"):
        with pytest.raises(WireError, match="refused"):
            asked("grpc", server.grpc, grpc_request(INFER, message))
    with pytest.raises(WireError, match="404"):
        asked("http", server.http, http_request("/v2/nothing", b""))


def test_http_by_hand(server):
    answer = asked("http", server.http, http_request(f"/v2/models/{SPEC.name}", b""))
    assert b'"name":"lstm_random"' in answer
