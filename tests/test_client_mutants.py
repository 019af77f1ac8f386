"""Each mistake a client of streams could make is noticed by a test of it."""

from collections import deque

import pytest
import test_client_broken as broken
import test_client_many as many
import test_client_streams as streams
from client_doubles import client_of
from client_proxy import Proxy
from looprnn_client import Client, _grpc, _grpc_aio
from looprnn_client.many import Many
from looprnn_client.stream_core import StreamCore
from stream_model import write_repository
from test_client_lane import answers_find_their_streams

from looprnn.server import Server


def noticed(check, *arguments):
    try:
        check(*arguments)
    except Exception:
        return True
    return False


class First(dict):
    """Gives whoever waits longest, whatever the id."""

    def pop(self, key, *default):
        if not self:
            return default[0]
        return super().pop(next(iter(self)) if key in self else key, *default)


def test_answer_to_the_wrong_stream(monkeypatch):
    for lane in (_grpc.Lane, _grpc_aio.AsyncLane):
        original = lane.__init__

        def mixed(self, *arguments, original=original):
            original(self, *arguments)
            self._waiting = First()

        monkeypatch.setattr(lane, "__init__", mixed)
    for way in ("threads", "asyncio"):
        assert noticed(answers_find_their_streams, way)


class Last(deque):
    def popleft(self):
        return self.pop()

    def __getitem__(self, index):
        return super().__getitem__(-1)


def test_results_out_of_order(monkeypatch):
    original = Many.__init__

    def reversed_(self, *arguments, **options):
        original(self, *arguments, **options)
        self._waiting = Last()

    monkeypatch.setattr(Many, "__init__", reversed_)
    fake = many.Slow()
    with client_of(fake, timeout_s=30) as client:
        assert noticed(many.test_results_come_in_order_whatever_the_server_does, (client, fake))


@pytest.fixture(scope="module")
def summing(tmp_path_factory):
    repository = write_repository(tmp_path_factory.mktemp("sums"))
    with Server(repository) as running:
        yield running
        running.process.kill()  # it would take long to stop: calls were cut off


def no_end(self):
    self._ended = True
    return
    yield


@pytest.mark.live
def test_end_not_sent(monkeypatch, summing):
    def connect():
        return Client(summing.grpc, "sum", timeout_s=20)

    with monkeypatch.context() as patch:
        patch.setattr(StreamCore, "end", no_end)
        assert noticed(streams.test_end_is_sent_on_leaving, connect)
        assert noticed(streams.test_end_is_sent_after_an_error, connect)


def same_sequence(self, why, *, tell):
    """Broken off, yet sent on to the same sequence, whose state may be behind the chunk."""


def never_lost(self, why, *, tell):
    self._id, self._started = self._id, True


@pytest.mark.live
@pytest.mark.parametrize("protocol", ["grpc", "http"])
@pytest.mark.parametrize("mutant", [same_sequence, never_lost])
def test_chunk_sent_twice(monkeypatch, summing, protocol, mutant):
    monkeypatch.setattr(StreamCore, "_break_off", mutant)
    for check in (
        lambda client, plug: broken.test_resumed_chunk_counts_once_though_it_was_applied(
            client, plug
        ),
        lambda client, plug: broken.test_chunk_whose_answer_was_lost_is_not_sent_twice(
            client, plug, summing
        ),
    ):
        with (
            Proxy(getattr(summing, protocol)) as plug,
            Client(f"{protocol}://{plug.address}", "sum", timeout_s=20) as client,
        ):
            assert noticed(check, client, plug)


@pytest.mark.live
def test_state_forgotten_on_the_way_back(monkeypatch, summing):
    """A stream that resumes from nothing instead of its checkpoint."""
    original = StreamCore._request

    def blank(self, arrays, names):
        kept, self.checkpoint = self.checkpoint, None
        try:
            return original(self, arrays, names)
        finally:
            self.checkpoint = kept

    monkeypatch.setattr(StreamCore, "_request", blank)
    with (
        Proxy(summing.grpc) as plug,
        Client(plug.address, "sum", timeout_s=20) as client,
    ):
        assert noticed(broken.test_resumed_chunk_counts_once_though_it_was_applied, client, plug)
