"""A TCP proxy before a server, to pull the plug of."""

import socket
import threading
from contextlib import suppress

HOLD = 150  # bytes: more than HTTP/2's own frames between calls, less than an answer


class Proxy:
    """Forwards connections; `lose_answer` cuts the next one whose answer has come, unforwarded."""

    def __init__(self, target):
        host, port = target.rsplit(":", 1)
        self.target = host, int(port)
        self.connections = []
        self.losing = threading.Event()
        self.lost = threading.Event()
        self.hanging = threading.Event()

    def __enter__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.accepting = threading.Thread(target=self._accept, daemon=True)
        self.accepting.start()
        return self

    def __exit__(self, *error):
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.accepting.join()
        self.cut()

    def cut(self):
        """Ends every connection."""
        self.hanging.clear()
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        self.connections = []

    def lose_answer(self):
        self.lost.clear()
        self.losing.set()

    def hang(self):
        """No further answer of the connections there are; `cut` ends them."""
        self.hanging.set()

    def _accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            self.connections.append(client)
            server = socket.create_connection(self.target)
            self.connections.append(server)
            for source, to, answers in ((client, server, False), (server, client, True)):
                threading.Thread(
                    target=self._forward, args=(source, to, answers), daemon=True
                ).start()

    def _forward(self, source, to, answers):
        held = b""
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if answers and self.hanging.is_set():
                    continue
                if answers and self.losing.is_set():
                    held += data
                    if len(held) < HOLD:
                        continue
                    self.losing.clear()
                    self.lost.set()
                    self.cut()
                    return
                to.sendall(held + data)
                held = b""
            to.shutdown(socket.SHUT_WR)
