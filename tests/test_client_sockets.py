"""Sockets that misbehave: closed, silent, trickling, or another program's."""

import socket
import threading
import time
from contextlib import ExitStack, contextmanager

import pytest
from client_doubles import X
from looprnn_client import Client, LoopRNNClientError, Timeout, Unreachable, list_models
from looprnn_client.address import line
from looprnn_client.transport import Failure, connect


@contextmanager
def listening(answer):
    """A server whose every connection is handled by answer(socket); yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as server, ExitStack() as connections:

        def serve():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connections.enter_context(connection)
                threading.Thread(target=handle, args=(connection,), daemon=True).start()

        def handle(connection):
            try:
                answer(connection)
            except OSError:
                return  # the client went away: that is what the test is about

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def silent(connection):
    while connection.recv(4096):
        pass


def trickling(connection):
    for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" + b" " * 99999:
        connection.sendall(bytes([byte]))
        time.sleep(0.02)


def saying(text):
    def answer(connection):
        connection.recv(4096)
        connection.sendall(text)
        connection.shutdown(socket.SHUT_WR)

    return answer


def page(status, body):
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


@pytest.fixture(params=["", "http://"], ids=["grpc", "http"])
def scheme(request):
    return request.param


def test_closed_port(scheme):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with Client(f"{scheme}127.0.0.1:{port}", "lstm", timeout_s=5) as client:
        for _ in range(2):
            start = time.monotonic()
            with pytest.raises(Unreachable, match="no Triton server answers"):
                client.infer(X)
            assert time.monotonic() - start < 5


def test_name_that_does_not_resolve(scheme):
    url = f"{scheme}no-such-host.invalid:8001"
    with Client(url, "lstm", timeout_s=5) as client, pytest.raises((Unreachable, Timeout)):
        client.infer(X)


def test_port_that_drops_every_packet(scheme):
    with ExitStack() as opened:
        server = opened.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(8):  # a full backlog answers no further SYN
            waiting = opened.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        url = f"{scheme}127.0.0.1:{server.getsockname()[1]}"
        client = opened.enter_context(Client(url, "lstm", timeout_s=0.5))
        assert_times_out(client, 0.5)


@pytest.mark.parametrize("answer", [silent, trickling])
def test_server_that_never_finishes(scheme, answer):
    with (
        listening(answer) as port,
        Client(f"{scheme}127.0.0.1:{port}", "lstm", timeout_s=0.5) as client,
    ):
        if scheme == "" and answer is trickling:
            with pytest.raises(Unreachable):  # gRPC sees at once that this is no HTTP/2
                client.infer(X)
        else:
            assert_times_out(client, 0.5)


def assert_times_out(client, seconds):
    start = time.monotonic()
    with pytest.raises(Timeout, match=f"within {seconds:g} s") as raised:
        client.infer(X)
    assert "worker" not in str(raised.value), "the call was abandoned, not ended"
    assert seconds * 0.9 < time.monotonic() - start < seconds + 1.5


@pytest.mark.parametrize(
    "text",
    [
        b"220 mail.example ESMTP\r\n",
        b"",
        page("200 OK", "<html>hello</html>"),
        page("404 Not Found", "<html>nginx</html>"),
        page("404 Not Found", ""),
        page("502 Bad Gateway", "[]"),
    ],
    ids=["mail", "hangs_up", "page", "page_not_found", "empty_not_found", "gateway"],
)
def test_something_else_listens_there(scheme, text):
    with (
        listening(saying(text)) as port,
        Client(f"{scheme}127.0.0.1:{port}", "lstm", timeout_s=5) as client,
        pytest.raises(Unreachable, match="no Triton server answers"),
    ):
        client.infer(X)


@pytest.mark.live
@pytest.mark.parametrize(
    ("wrong", "port", "right", "words"),
    [
        ("http", "grpc", "grpc", "speaks gRPC. If that is the port of gRPC, write grpc://{}; "),
        ("grpc", "http", "http", "If that is the port of HTTP, write http://{}; "),
    ],
)
def test_the_port_of_the_other_protocol_says_what_to_write(summing, wrong, port, right, words):
    address = getattr(summing, port)
    with (
        Client(f"{wrong}://{address}", "sum_stream", timeout_s=20) as client,
        pytest.raises(Unreachable) as raised,
    ):
        client.infer(X)
    assert words.format(address) in str(raised.value)
    assert "\\x" not in str(raised.value), "bytes of the other protocol"
    assert "sum_stream" in {
        state.name for state in list_models(f"{right}://{address}", timeout_s=20)
    }


@pytest.mark.live
def test_the_port_of_the_metrics_is_no_servers(scheme, summing):
    url = f"{scheme}{summing.metrics}"
    with Client(url, "sum_stream", timeout_s=20) as client:
        for ask in (lambda: client.infer(X), lambda: list_models(url, timeout_s=20)):
            with pytest.raises(Unreachable, match="8001 for gRPC and 8000 for HTTP"):
                ask()


def test_json_that_is_not_tritons():
    with (
        listening(saying(page("200 OK", "[1, 2]"))) as port,
        pytest.raises(Unreachable, match="not Triton's"),
    ):
        list_models(f"http://127.0.0.1:{port}", timeout_s=5)


def test_closed_by_another_thread_during_a_call(scheme):
    with listening(silent) as port:
        client = Client(f"{scheme}127.0.0.1:{port}", "lstm", timeout_s=30)
        threading.Timer(0.3, client.close).start()
        start = time.monotonic()
        with pytest.raises(LoopRNNClientError, match="closed"):
            client.infer(X)
        assert time.monotonic() - start < 10


def test_transport_closed_between_two_calls(scheme):
    transport = connect(line(f"{scheme}127.0.0.1:1"))
    transport.close()
    transport.close()
    with pytest.raises(Failure, match="closed"):
        transport.index(1)


def workers():
    return [thread for thread in threading.enumerate() if thread.name == "looprnn-client"]


def test_forgotten_http_client_ends_its_thread():
    before = workers()
    client = Client("http://127.0.0.1:1", "lstm", timeout_s=1)
    (worker,) = set(workers()) - set(before)
    del client
    worker.join(5)
    assert not worker.is_alive()
