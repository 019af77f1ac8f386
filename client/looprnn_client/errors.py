"""Every error the client raises on purpose.

LoopRNNClientError       also raised itself: a client that is used after close()
├── Unreachable          no Triton server answers at this address
├── UnknownModel         the server has no such model; lists the ones it has
├── NotReady             the server has the model but cannot serve it; says the server's reason
├── BadInput             an argument or an array that cannot be sent, or that the server refused
├── ServerError          the server failed, or its answer is not looprnn's
├── Timeout              the whole call took longer than timeout_s
├── StreamLost           a stream's state is no more, or nobody knows which chunk it is at
└── StreamRefused        the server holds as many streams as it may

Each message says what came, what is wanted and how to mend it; the server's own words are kept.
The error it came from, if any, is its __cause__.
"""


class LoopRNNClientError(Exception):
    """Base of all of them: the command line prints its message alone and exits 1.

    index: which item of `infer_many` it was, counted from 0; None elsewhere.
    """

    index: int | None = None


class Unreachable(LoopRNNClientError):
    """Nothing listens there, the name does not resolve, or what answers is not Triton."""


class UnknownModel(LoopRNNClientError):
    """The server has no model of this name."""


class NotReady(LoopRNNClientError):
    """The model is loading, or failed to load."""


class BadInput(LoopRNNClientError):
    """An argument or an array that the client refuses to send, or that the server refused."""


class ServerError(LoopRNNClientError):
    """The server or its engine failed, or what it answered does not fit the model's contract."""


class Timeout(LoopRNNClientError):
    """No answer came within timeout_s."""


class StreamLost(LoopRNNClientError):
    """The stream cannot go on: unknown, expired, or broken off within a chunk."""


class StreamRefused(LoopRNNClientError):
    """The server's own capacity for streams is used up."""
