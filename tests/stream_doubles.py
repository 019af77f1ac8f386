"""What the tests of streams share: a sequence and its sums, and a look at the server."""

import numpy as np
from client_both import inner
from looprnn_client import StreamRefused
from stream_model import CAPACITY, SIZE

X = np.random.default_rng(3).uniform(-1, 1, (1, 12, SIZE)).astype(np.float32)
SUMS = np.cumsum(X, 1)


def live_streams(client):
    """How many streams the server holds: as many as it may, less those it still takes."""
    opened = []
    try:
        while True:
            stream = client.stream()
            opened.append(stream)
            stream.send(X[:, :1])
    except StreamRefused:
        return CAPACITY - (len(opened) - 1)
    finally:
        for stream in opened:
            stream.close()


def forget(client, stream):
    """The server's END of a stream whose client knows nothing of it."""
    other = client.stream()
    other.send(X[:, :1])
    twin = inner(other)._core
    real, twin._id = twin._id, inner(stream)._core._id
    other.close()
    twin._id, twin._ended = real, False
    other.close()
