"""Bytes on the wire, to a stand-in for Triton's gRPC and HTTP."""

import http.server
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import grpc
import numpy as np
import pytest
from client_doubles import IDS, READY, STATE, in_threads
from looprnn_client.address import line
from looprnn_client.transport import Call, connect
from tritonclient.grpc import service_pb2, service_pb2_grpc


class Index(http.server.BaseHTTPRequestHandler):
    """Triton's HTTP, as much of it as its repository index."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.answer(READY)

    def answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def http_server(handler, wrap=None):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.handle_error = lambda *_: None  # a client that went away: the tests' business
        if wrap is not None:  # the handshake is each connection's own: a bad one stops no other
            server.socket = wrap.wrap_socket(
                server.socket, server_side=True, do_handshake_on_connect=False
            )
        server.daemon_threads = False  # closing waits for the connections, and closes them
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_http_transport_is_shared_by_threads():
    with http_server(Index) as port:
        transport = connect(line(f"http://127.0.0.1:{port}"))

        def call():
            for _ in range(10):
                assert transport.index(10) == READY

        in_threads(8, call)
        transport.close()


class Grpc(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Triton's gRPC, as much of it as one answer; keeps the request's (type, shape, bytes)."""

    def ModelInfer(self, request, context):
        self.got = {
            tensor.name: (tensor.datatype, list(tensor.shape), raw)
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        row = {"name": "head", "datatype": "FP32", "shape": [1, 2]}
        raw = np.array([3, 4], np.float32).tobytes()
        return service_pb2.ModelInferResponse(outputs=[row], raw_output_contents=[raw])


@contextmanager
def grpc_triton():
    triton = Grpc()
    server = grpc.server(ThreadPoolExecutor(1))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", triton
    finally:
        server.stop(None).wait()


@contextmanager
def http_triton():
    class Http(Index):
        """Triton's HTTP, as much of it as one answer."""

        def do_POST(self):
            head = int(self.headers["Inference-Header-Content-Length"])
            rows = json.loads(self.rfile.read(head))["inputs"]
            Http.got = {
                row["name"]: (
                    row["datatype"],
                    row["shape"],
                    self.rfile.read(row["parameters"]["binary_data_size"]),
                )
                for row in rows
            }
            row = {"name": "head", "datatype": "FP32", "shape": [1, 2], "data": [3, 4]}
            self.answer({"outputs": [row]})

    with http_server(Http) as port:
        yield f"http://127.0.0.1:{port}", Http


@pytest.mark.parametrize("triton", [grpc_triton, http_triton])
def test_every_type_goes_over_the_wire(triton):
    inputs = {
        "input": np.asfortranarray(IDS.astype(np.int32)),
        "lengths": np.array([[4], [0], [1]], np.int32),
        "h_0": STATE,
    }
    with triton() as (url, heard), closing(connect(line(url))) as transport:
        call = Call(model="tokens", inputs=inputs, outputs=["head"])
        answer = transport.infer(transport.prepare(call), 10)
    np.testing.assert_array_equal(answer["head"], np.array([[3, 4]], np.float32))
    assert heard.got == {
        "input": ("INT32", [3, 4], IDS.astype("<i4").tobytes()),
        "lengths": ("INT32", [3, 1], np.array([4, 0, 1], "<i4").tobytes()),
        "h_0": ("FP32", [3, 4, 5], STATE.astype("<f4").tobytes()),
    }
