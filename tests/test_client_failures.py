"""Every failure of a server becomes one of the client's own errors."""

import time

import looprnn_client
import pytest
from client_doubles import BROKEN, DEAD, READY, Fake, X, client_of, state_of
from looprnn_client import (
    BadInput,
    LoopRNNClientError,
    NotReady,
    ServerError,
    StreamLost,
    StreamRefused,
    Timeout,
    UnknownModel,
    Unreachable,
)
from looprnn_client.transport import Code, Failure

MAPPED = {
    "refused_by_the_model": (Code.INVALID, "bad input: T is odd", READY, BadInput, ": T is odd"),
    "refused_without_codes": (Code.INTERNAL, "bad input: T is odd", READY, BadInput, ": T is odd"),
    "refused_by_triton": (Code.INVALID, "unexpected shape", READY, BadInput, "unexpected shape"),
    "engine_failed": (Code.INTERNAL, "out of memory", READY, ServerError, "out of memory"),
    "misspelt": (Code.NOT_FOUND, "?", READY[1:], UnknownModel, "'bilstm'.*mean 'lstm'.*has: lstm"),
    "misspelt_as_invalid": (
        Code.INVALID,
        "Request for unknown model",
        READY[1:],
        UnknownModel,
        "lstm",
    ),
    "empty_repository": (Code.NOT_FOUND, "?", [], UnknownModel, "It has none"),
    "failed_to_load": (
        Code.NOT_FOUND,
        "?",
        BROKEN,
        NotReady,
        "UNAVAILABLE: .*no model.onnx. Then start the server again",
    ),
    "not_ready": (Code.UNAVAILABLE, "?", BROKEN, NotReady, "version 1 is UNAVAILABLE"),
    "built_while_the_server_ran": (
        Code.NOT_FOUND,
        "?",
        [state_of("bilstm", ""), *READY[1:]],
        NotReady,
        "'bilstm' is in the repository of here:8001, but.*Start it again.*Served there: lstm$",
    ),
    "loading": (Code.UNAVAILABLE, "?", [state_of("bilstm", "LOADING")], NotReady, "is LOADING$"),
    "queue_full": (Code.UNAVAILABLE, "queue is full", READY, ServerError, "queue is full"),
    "server_died": (
        Code.UNAVAILABLE,
        "failed to connect",
        DEAD,
        Unreachable,
        "Start one: looprnn serve",
    ),
    "no_server": (Code.UNREACHABLE, "refused", DEAD, Unreachable, "refused.*8001 for gRPC"),
    "broke_off": (Code.BROKEN, "reset by peer", DEAD, Unreachable, "reset by peer.*looprnn serve"),
    "stream_unknown": (
        Code.INTERNAL,
        "stream 42: unknown: send START",
        READY,
        StreamLost,
        r"unknown: send START.*client.resume\(state\)",
    ),
    "stream_expired": (
        Code.INTERNAL,
        "stream a-b: expired after 60 s",
        READY,
        StreamLost,
        "expired after 60 s",
    ),
    "stream_refused": (
        Code.UNAVAILABLE,
        "stream refused: capacity 4",
        READY,
        StreamRefused,
        "no further stream: capacity 4",
    ),
    "too_slow": (Code.TIMEOUT, "deadline", READY, Timeout, "within 5 s.*deadline"),
}


@pytest.mark.parametrize("case", MAPPED)
def test_failure_becomes(case):
    code, words, models, kind, match = MAPPED[case]
    failure = Failure(code, words)
    dead = models is DEAD
    fake = Fake(fails=failure, models=() if dead else models, index_fails=DEAD if dead else None)
    with client_of(fake) as client, pytest.raises(kind, match=match) as raised:
        client.infer(X)
    assert type(raised.value) is kind
    assert raised.value.__cause__ is failure
    fake.fails = None
    client_of(fake).infer(X)


def test_failure_makes_the_next_call_read_again():
    fake = Fake(fails=Failure(Code.INTERNAL, "out of memory"))
    with client_of(fake) as client:
        with pytest.raises(ServerError):
            client.infer(X)
        fake.fails = None
        client.infer(X)
    assert fake.asked == ["config", "infer", "config", "infer"]


def test_every_error_is_one_of_ours():
    kinds = [NotReady, UnknownModel, Unreachable, BadInput, ServerError, Timeout]
    kinds += [StreamLost, StreamRefused]
    assert all(kind.__bases__ == (LoopRNNClientError,) for kind in kinds)
    drawn = looprnn_client.errors.__doc__
    assert all(f" {kind.__name__} " in drawn for kind in kinds)


def test_time_spent_reading_the_model_counts():
    fake = Fake()
    slow = fake.config
    fake.config = lambda *a: (time.sleep(0.2), slow(*a))[1]
    with client_of(fake, timeout_s=0.1) as client, pytest.raises(Timeout):
        client.infer(X)
    assert "infer" not in fake.asked
