"""The load generator's two protocols, as thin as they go: a request is framed once, and an answer
is delimited, not decoded.

A Python gRPC stub costs 150 to 200 µs of CPU a call, a third of what the whole server needs: on one
machine with it, the stub would be measured too. HTTP/2 here is RFC 9113 with HPACK literals (RFC
7541), one call at a time on a connection, which is all that a closed loop asks for.
"""

import socket
import struct
from collections.abc import Iterable, Iterator
from typing import Final, Protocol

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 1, 1, 4
FRAME: Final = 16384  # the largest frame that every peer takes
WINDOW: Final = 65535  # what a peer takes before it says more
MOST: Final = (1 << 31) - 1
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class WireError(Exception):
    """The peer refused, broke off, or spoke another protocol."""


class Connection(Protocol):
    """One call at a time: `send`, then `receive` whenever the socket is readable."""

    socket: socket.socket

    def send(self, request: bytes) -> None: ...

    def receive(self) -> bytes | None:
        """The whole answer, or None while it is not all there. Raises WireError."""

    def close(self) -> None: ...


def connect(protocol: str, address: str) -> Connection:
    return Grpc(address) if protocol == "grpc" else Http(address)


def ask(protocol: str, address: str, requests: Iterable[bytes]) -> Iterator[bytes]:
    """The answers to requests, one after another on one connection. Raises WireError."""
    connection = connect(protocol, address)
    try:
        for request in requests:
            connection.send(request)
            while (answer := connection.receive()) is None:
                pass
            yield answer
    finally:
        connection.close()


def _open(address: str) -> socket.socket:
    host, port = address.split(":")
    opened = socket.create_connection((host, int(port)), timeout=60)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return opened


class _Reader:
    """What has been received and not yet understood."""

    def __init__(self, address: str) -> None:
        self.socket = _open(address)
        self._got = bytearray()
        self._part = memoryview(bytearray(1 << 17))  # once: a new one each time costs page faults

    def _read(self) -> bytearray:
        if not (count := self.socket.recv_into(self._part)):
            raise WireError("the server closed the connection")
        self._got += self._part[:count]
        return self._got

    def close(self) -> None:
        self.socket.close()


class Http(_Reader):
    """HTTP/1.1, kept alive. A request is its bytes; see `http_request`."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._body = self._wanted = 0

    def send(self, request: bytes) -> None:
        self.socket.sendall(request)

    def receive(self) -> bytes | None:
        got = self._read()
        if not self._wanted:
            if (end := got.find(b"\r\n\r\n")) < 0:
                return None
            head = bytes(got[:end]).lower()
            if not head.startswith(b"http/1.1 200"):
                raise WireError(bytes(got[:500]).decode(errors="replace"))
            length = head.split(b"content-length:")[1].split(b"\r\n")[0]
            self._body, self._wanted = end + 4, end + 4 + int(length)
        if len(got) < self._wanted:
            return None
        answer = bytes(got[self._body : self._wanted])
        got.clear()
        self._wanted = 0
        return answer


def http_request(path: str, body: bytes, headers: str = "") -> bytes:
    """A POST, or a GET where there is no body; `headers` are whole lines."""
    verb = "POST" if body else "GET"
    head = f"{verb} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n{headers}"
    return f"{head}\r\n".encode() + body


class Grpc(_Reader):
    """Unary gRPC calls over HTTP/2. A request is its frames with stream 0; see `grpc_request`."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        hello = struct.pack(">HI", 4, MOST)  # SETTINGS_INITIAL_WINDOW_SIZE: answers never wait
        grow = struct.pack(">I", MOST - WINDOW)
        self.socket.sendall(PREFACE + frame(SETTINGS, 0, hello) + frame(WINDOW_UPDATE, 0, grow))
        self._message = bytearray()
        self._stream = -1
        self._room = WINDOW
        self._waiting: bytes | None = None
        self._unreported = 0

    def send(self, request: bytes) -> None:
        if len(request) > self._room:
            self._waiting = request  # until the peer's WINDOW_UPDATE
            return
        self._room -= len(request)
        self._stream += 2
        frames = bytearray(request)
        at = 0
        while at < len(frames):
            struct.pack_into(">I", frames, at + 5, self._stream)
            at += 9 + int.from_bytes(frames[at : at + 3], "big")
        self.socket.sendall(frames)

    def receive(self) -> bytes | None:
        got, at, answer = self._read(), 0, None
        while len(got) - at >= 9:
            end = at + 9 + int.from_bytes(got[at : at + 3], "big")
            if len(got) < end:
                break
            kind, flags = got[at + 3 : at + 5]
            with memoryview(got)[at + 9 : end] as payload:  # released before `got` shrinks
                answer = self._frame(kind, flags, payload) or answer
            at = end
        del got[:at]
        return answer

    def _frame(self, kind: int, flags: int, payload: memoryview) -> bytes | None:
        if kind == DATA:
            self._message += payload
            self._unreported += len(payload)
            if self._unreported > MOST // 2:
                grow = struct.pack(">I", self._unreported)
                self.socket.sendall(frame(WINDOW_UPDATE, 0, grow))
                self._unreported = 0
        elif kind == HEADERS and flags & END_STREAM:
            if not self._message:
                raise WireError(f"refused: {bytes(payload)!r}")
            answer = bytes(memoryview(self._message)[5:])  # past gRPC's own flag and length
            self._message = bytearray()
            return answer
        elif kind == SETTINGS and not flags & ACK:
            self.socket.sendall(frame(SETTINGS, ACK, b""))
        elif kind == PING and not flags & ACK:
            self.socket.sendall(frame(PING, ACK, bytes(payload)))
        elif kind == WINDOW_UPDATE:
            self._room += int.from_bytes(payload, "big")
            if self._waiting and len(self._waiting) <= self._room:
                request, self._waiting = self._waiting, None
                self.send(request)
        elif kind in (RST_STREAM, GOAWAY):
            raise WireError(f"HTTP/2 frame of type {kind}: {bytes(payload)!r}")
        return None


def grpc_request(method: str, message: bytes) -> bytes:
    """The frames of one call, with 0 for its stream; method is "/package.Service/Name"."""
    if len(message) + 1024 > WINDOW:
        raise ValueError(f"a request of {len(message)} bytes would wait for HTTP/2's window")

    def text(value: str) -> bytes:
        return bytes([len(value)]) + value.encode()  # below 127 bytes, no Huffman code

    # 0x83 :method POST, 0x86 :scheme http; literals without indexing: 4 :path, 1 :authority
    head = b"\x83\x86\x04" + text(method) + b"\x01" + text("localhost")
    head += b"\x00" + text("content-type") + text("application/grpc")
    head += b"\x00" + text("te") + text("trailers")
    body = b"\x00" + struct.pack(">I", len(message)) + message
    parts = [body[at : at + FRAME] for at in range(0, len(body), FRAME)]
    sent = [frame(DATA, END_STREAM if k == len(parts) - 1 else 0, p) for k, p in enumerate(parts)]
    return frame(HEADERS, END_HEADERS, head) + b"".join(sent)


def frame(kind: int, flags: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags, 0, 0, 0, 0]) + payload
