"""infer_many and submit: order, bounds, laziness, errors; both clients, over a transport that waits
to be told which call to answer.
"""

import threading
from concurrent.futures import CancelledError

import numpy as np
import pytest
from client_both import clients
from client_doubles import PADDED, X, client_of
from client_slow import Slow, SlowAio
from looprnn_client import BadInput, Client, LoopRNNClientError, ServerError


@pytest.fixture(params=["threads", "asyncio"])
def pair(request):
    """A client and its transport."""
    fake = (Slow if request.param == "threads" else SlowAio)()
    with (
        clients(request.param) as kind,
        kind("here:1", "bilstm", timeout_s=30, transport=fake) as client,
    ):
        yield client, fake


def numbered(n):
    return np.full_like(X, n)


def test_results_come_in_order_whatever_the_server_does(pair):
    client, fake = pair
    answers = client.infer_many((numbered(k) for k in range(6)), in_flight=3)
    fake.release(*range(1, 6))  # 0 comes last
    threading.Timer(0.2, fake.release, (0,)).start()
    got = [answer.output.flat[0] for answer in answers]
    assert got == [0, 1, 2, 3, 4, 5]
    assert fake.begun[:3] and set(fake.begun) == set(range(6))


def test_no_more_in_flight_than_said_and_no_item_before_its_time(pair):
    client, fake = pair
    taken = []

    def endless():
        k = 0
        while True:
            taken.append(k)
            yield numbered(k)
            k += 1

    fake.release(*range(100))
    answers = client.infer_many(endless(), in_flight=4)
    assert taken == []
    for k in range(10):
        assert next(answers).output.flat[0] == k
        assert len(taken) <= k + 4
    answers.close()
    assert fake.most <= 4
    assert len(taken) <= 14


def test_items_may_be_arguments_and_reuse_their_memory():
    fake = Slow(PADDED)
    fake.release(*range(10))
    buffer = np.empty_like(X)
    seen = []
    fake.prepare = lambda call: (seen.append(dict(call.inputs)), copied(call))[1]

    def items():
        for k in range(5):
            buffer[:] = k
            yield {"x": buffer, "lengths": [4, 1, k % 5]}

    with client_of(fake) as client:
        got = list(client.infer_many(items(), outputs=["h_n"]))
    assert [answer.h_n.flat[0] for answer in got] == [0, 1, 2, 3, 4]
    assert [inputs["lengths"][2, 0] for inputs in seen] == [0, 1, 2, 3, 4]
    assert got[0].output is None


def copied(call):
    """A real codec turns arrays into bytes at once."""
    from dataclasses import replace

    return replace(call, inputs={name: array.copy() for name, array in call.inputs.items()})


def test_first_error_names_its_item_and_cancels_the_rest(pair):
    client, fake = pair
    fake.release(0, 86)
    answers = client.infer_many(map(numbered, [0, 86, 2, 3, 4, 5]), in_flight=4)
    assert next(answers).output.flat[0] == 0
    with pytest.raises(ServerError, match=r"^item 1: .*no such number") as raised:
        next(answers)
    assert raised.value.index == 1
    assert isinstance(raised.value.__cause__, ServerError)
    fake.wait_for(lambda: fake.under_way == 0)
    assert set(fake.cancelled) == set(fake.begun) - {0, 86}
    with pytest.raises(StopIteration):
        next(answers)


def test_items_left_untaken_are_cancelled(pair):
    client, fake = pair
    fake.release(0)
    answers = client.infer_many(map(numbered, range(6)), in_flight=3)
    next(answers)
    answers.close()
    fake.wait_for(lambda: fake.under_way == 0)
    assert 0 not in fake.cancelled


@pytest.mark.parametrize(
    ("bad", "words"),
    [(X[:, :, 1:], "item 1: input is"), ({"x": X, "length": 3}, "item 1: .*'length'")],
)
def test_item_that_does_not_fit(pair, bad, words):
    client, fake = pair
    fake.release(*range(5))
    answers = client.infer_many([numbered(0), bad, numbered(2)])
    assert next(answers).output.flat[0] == 0
    with pytest.raises(BadInput, match=words) as raised:
        next(answers)
    assert raised.value.index == 1


def test_errors_returned_in_place(pair):
    client, fake = pair
    fake.release(0, 2, 86)
    items = map(numbered, [0, 86, 2])
    first, second, third = client.infer_many(items, return_errors=True)
    assert (first.output.flat[0], third.output.flat[0]) == (0, 2)
    assert isinstance(second, ServerError) and second.index == 1


def test_error_of_the_items_own(pair):
    client, fake = pair
    fake.release(*range(5))

    def items():
        yield numbered(0)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(client.infer_many(items()))
    fake.wait_for(lambda: fake.under_way == 0)


@pytest.mark.parametrize("in_flight", [0, -1, 2.5, True])
def test_bound_that_is_none(pair, in_flight):
    client, _ = pair
    with pytest.raises(BadInput, match="in_flight must be"):
        client.infer_many([], in_flight=in_flight)


def test_nothing_to_do(pair):
    client, fake = pair
    assert list(client.infer_many([])) == []
    assert fake.asked == []


def test_bar_counts_to_the_end(pair, capsys):
    client, fake = pair
    fake.release(*range(9))
    assert len(list(client.infer_many([numbered(k) for k in range(9)], progress=True))) == 9
    said = capsys.readouterr()
    assert "bilstm" in said.err and "9/9" in said.err and said.out == ""


def test_bar_without_rich(pair, monkeypatch):
    client, _ = pair
    monkeypatch.setitem(__import__("sys").modules, "rich.console", None)
    with pytest.raises(BadInput, match=r"pip install 'looprnn-client\[progress\]'"):
        list(client.infer_many([X], progress=True))


# ── futures ──────────────────────────────────────────────────────────────────────────────────────


def test_futures_of_calls_under_way_together():
    fake = Slow()
    with client_of(fake, timeout_s=30) as client:
        futures = [client.submit(numbered(k)) for k in range(3)]
        fake.wait_for(lambda: fake.under_way == 3)
        assert not any(future.done() for future in futures)
        fake.release(2, 1, 0)
        assert [f.result(20).output.flat[0] for f in futures] == [0, 1, 2]


def test_future_raises_what_infer_would():
    fake = Slow()
    fake.release(86)
    with client_of(fake) as client:
        with pytest.raises(ServerError, match="no such number"):
            client.submit(numbered(86)).result(20)
        with pytest.raises(BadInput, match="input is"):
            client.submit(X[0]).result(20)


def test_future_of_a_closed_client():
    fake = Slow()
    client = client_of(fake)
    client.close()
    with pytest.raises(LoopRNNClientError, match="closed"):
        client.submit(X)


def test_future_cancelled_before_it_is_sent(monkeypatch):
    monkeypatch.setattr("looprnn_client.client.THREADS", 1)
    fake = Slow()
    with client_of(fake, timeout_s=30) as client:
        first, second = client.submit(numbered(0)), client.submit(numbered(1))
        fake.wait_for(lambda: fake.begun == [0])
        assert second.cancel()
        fake.release(0)
        assert first.result(20).output.flat[0] == 0
        with pytest.raises(CancelledError):
            second.result()
    assert fake.begun == [0]


# ── real servers ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.live
@pytest.mark.parametrize("kind", ["threads", "asyncio"])
def test_many_are_each_alone(url, kind):
    rng = np.random.default_rng(0)
    items = [rng.uniform(-1, 1, (1, 1 + k % 7, 7)).astype(np.float32) for k in range(40)]
    with Client(url, "lstm", timeout_s=30) as client:
        want = [client.infer(x) for x in items]
    with clients(kind) as connect, connect(url, "lstm", timeout_s=30) as client:
        for got, alone in zip(client.infer_many(iter(items)), want, strict=True):
            np.testing.assert_allclose(got.output, alone.output, rtol=0, atol=1e-5)
            np.testing.assert_allclose(got.c_n, alone.c_n, rtol=0, atol=1e-5)


@pytest.mark.live
def test_futures_from_a_server(url):
    x = np.linspace(-1, 1, 21, dtype=np.float32).reshape(1, 3, 7)
    with Client(url, "lstm", timeout_s=30) as client:
        futures = [client.submit(x * k) for k in range(20)]
        for k, future in enumerate(futures):
            np.testing.assert_allclose(
                future.result(30).output, client.infer(x * k).output, rtol=0, atol=1e-5
            )
