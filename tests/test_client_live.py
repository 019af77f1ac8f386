"""The client against a running tritonserver: every test over gRPC and over HTTP."""

import threading
import time
from dataclasses import fields, replace

import numpy as np
import pytest
from looprnn_client import BadInput, Client, LoopRNNClientError, Timeout, UnknownModel, list_models

pytestmark = pytest.mark.live

MODELS = ["relu_rnn", "lstm", "bilstm", "relu_rnn_random", "lstm_random", "bilstm_random"]
PADDED = ["padded_gru", "tokens"]  # with lengths and a head; tokens takes ids


@pytest.fixture(params=["grpc", "http"])
def url(request, server):
    address = getattr(server, request.param)
    return address if request.param == "grpc" else f"http://{address}"


def draw(client, batch, time, seed=0):
    """x: [B, T, I] or ids [B, T], h_0 and c_0: [B, N, H]; c_0 is None for a cell without c."""
    rng = np.random.default_rng(seed)
    s = client.signature
    x, h_0, c_0 = (
        rng.uniform(-1, 1, s.shape(name, batch, time)).astype(np.float32)
        if name in s.takes
        else None
        for name in ("input", "h_0", "c_0")
    )
    if s.vocabulary is not None:
        x = rng.integers(s.vocabulary, size=x.shape)
    return x, h_0, c_0


@pytest.mark.parametrize("model", MODELS)
def test_signature_is_the_models(url, model):
    with Client(url, model, timeout_s=10) as client:
        s = client.signature
    sizes = (64, 256) if model.endswith("_random") else (7, 5)
    inputs, hidden = sizes
    directions = 2 if model.startswith("bi") else 1
    layers = s.takes["h_0"][0] // directions
    state = (layers * directions, hidden)
    states = ("h", "c") if "lstm" in model else ("h",)
    lengths = {"lengths": ()} if model in ("lstm", "lstm_random") else {}
    assert s.takes == {"input": (-1, inputs), **lengths, **{f"{n}_0": state for n in states}}
    assert s.gives == {"output": (-1, directions * hidden), **{f"{n}_n": state for n in states}}
    assert layers > 0 and s.vocabulary is None
    assert s.batch_max > 0 and (s.time_max is None or s.time_max > 0)


@pytest.mark.parametrize("model", [*MODELS, *PADDED])
def test_shapes_that_come_back(url, model):
    with Client(url, model, timeout_s=10) as client:
        s = client.signature
        result = client.infer(*draw(client, batch=2, time=3))
    for field in fields(result):
        array = getattr(result, field.name)
        assert (array is not None) == (field.name in s.outputs)
        if array is not None:
            assert array.shape == s.shape(field.name, 2, 3)
            assert (array.dtype, array.flags.c_contiguous) == (np.float32, True)
            assert array.flags.writeable and array.flags.owndata and np.isfinite(array).all()


@pytest.mark.parametrize("model", MODELS)
def test_whole_batch_and_all_its_time(url, model):
    with Client(url, model, timeout_s=60) as client:
        s = client.signature
        steps = s.time_max or 64
        result = client.infer(*draw(client, s.batch_max, steps))
        assert result.output.shape == (s.batch_max, steps, s.gives["output"][-1])


@pytest.mark.parametrize("model", ["lstm", *PADDED])
def test_protocols_agree(server, model):
    answers = []
    for url in (server.grpc, f"http://{server.http}"):
        with Client(url, model, timeout_s=10) as client:
            options = {"lengths": [4, 1, 2]} if model in PADDED else {}
            answers.append(client.infer(*draw(client, batch=3, time=4), **options))
            names = client.signature.outputs
    for name in names:
        first, second = (getattr(answer, name) for answer in answers)
        np.testing.assert_allclose(first, second, rtol=0, atol=1e-6)


@pytest.mark.parametrize("model", PADDED)
def test_padded_rows_are_the_rows_alone(url, model):
    lengths = [4, 1, 6, 3]
    with Client(url, model, timeout_s=10) as client:
        s = client.signature
        x, *states = draw(client, batch=4, time=6)
        got = client.infer(x, *states, lengths=lengths)
        for row, steps in enumerate(lengths):
            rows = slice(row, row + 1)
            alone = client.infer(x[rows, :steps], *(v if v is None else v[rows] for v in states))
            for name in s.outputs:
                want, padded = getattr(alone, name), getattr(got, name)[rows]
                if s.gives[name][0] == -1:
                    padded = padded[:, :steps]
                np.testing.assert_allclose(padded, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("model", PADDED)
def test_lengths_left_out_are_the_whole_rows(url, model):
    with Client(url, model, timeout_s=10) as client:
        arguments = draw(client, batch=3, time=4)
        whole, told, cut = (
            client.infer(*arguments, **options)
            for options in ({}, {"lengths": np.array([4, 4, 4], np.uint8)}, {"lengths": [4, 3, 4]})
        )
    np.testing.assert_allclose(whole.h_n, told.h_n, rtol=0, atol=1e-6)
    np.testing.assert_allclose(whole.h_n[[0, 2]], cut.h_n[[0, 2]], rtol=0, atol=1e-6)
    assert np.abs(whole.h_n[1] - cut.h_n[1]).max() > 1e-4


def test_head_on_the_last_state(url):
    with Client(url, "padded_gru", timeout_s=10) as client:
        arguments = draw(client, batch=2, time=5)
        result = client.infer(*arguments)
        alone = client.infer(*arguments, outputs=["head"])
    assert result.head.shape == (2, 3)
    assert alone.output is None
    np.testing.assert_allclose(alone.head, result.head, rtol=0, atol=1e-6)


def test_ids_in_and_distributions_out(url):
    with Client(url, "tokens", timeout_s=10) as client:
        ids = np.arange(12).reshape(3, 4) % 11
        heads = [client.infer(ids.astype(kind)).head for kind in ("i8", "i4", "u1", ">i2")]
        other = client.infer((ids + 1) % 11).head
        with pytest.raises(BadInput, match=r"input\[1, 2\] is 11"):
            client.infer(ids + 5)
        with pytest.raises(BadInput, match="takes ids"):
            client.infer(ids.astype(np.float32))
    assert heads[0].shape == (3, 4, 4)
    np.testing.assert_allclose(heads[0].sum(-1), np.ones((3, 4)), rtol=0, atol=1e-5)
    for head in heads[1:]:
        np.testing.assert_allclose(head, heads[0], rtol=0, atol=1e-6)
    assert np.abs(other - heads[0]).max() > 1e-4


def test_memory_order_is_not_sent(url):
    with Client(url, "lstm", timeout_s=10) as client:
        x, h_0, c_0 = draw(client, batch=3, time=4)
        want = client.infer(x, h_0, c_0)
        got = client.infer(
            np.asfortranarray(x), np.asfortranarray(h_0), c_0[:, :, ::-1][:, :, ::-1]
        )
    np.testing.assert_allclose(got.output, want.output, rtol=0, atol=1e-6)
    np.testing.assert_allclose(got.c_n, want.c_n, rtol=0, atol=1e-6)


@pytest.mark.parametrize("names", [["h_n"], ["c_n", "output"], ["c_n", "h_n", "output"]])
def test_subset_of_outputs(url, names):
    with Client(url, "lstm", timeout_s=10) as client:
        arguments = draw(client, batch=2, time=5)
        whole = client.infer(*arguments)
        part = client.infer(*arguments, outputs=names)
    for name in ("output", "h_n", "c_n"):
        if name in names:
            np.testing.assert_allclose(getattr(part, name), getattr(whole, name), rtol=0, atol=1e-6)
        else:
            assert getattr(part, name) is None


def test_states_left_out_are_not_states_given(url):
    with Client(url, "lstm", timeout_s=10) as client:
        x, h_0, c_0 = draw(client, batch=2, time=3)
        answers = [client.infer(x, *states).h_n for states in ((), (h_0,), (None, c_0), (h_0, c_0))]
    for i, one in enumerate(answers):
        for other in answers[i + 1 :]:
            assert np.abs(one - other).max() > 1e-4


def test_unknown_model(url):
    with (
        Client(url, "lsmt", timeout_s=10) as client,
        pytest.raises(UnknownModel, match=r"no model 'lsmt'.*mean 'lstm'.*bilstm, ") as raised,
    ):
        client.infer(np.zeros((1, 1, 7), np.float32))
    assert raised.value.__cause__ is not None


def test_refused_and_then_served(url):
    with Client(url, "bilstm", timeout_s=10) as client:
        x, h_0, c_0 = draw(client, batch=2, time=3)
        for wrong in ((x[:, :, 1:],), (x, h_0[:1]), (x, h_0, c_0[:, :1]), (np.repeat(x, 50, 0),)):
            with pytest.raises(BadInput):
                client.infer(*wrong)
        assert client.infer(x, h_0, c_0).output.shape[:2] == (2, 3)


def test_servers_own_refusal_keeps_its_words(url):
    """NaN gets past a client that does not look: the server must refuse it, in its words."""
    with Client(url, "lstm", timeout_s=10) as client:
        x, _, _ = draw(client, batch=1, time=2)
        client.infer(x)
        blind = client._core.transport
        x[0, 1, 2] = np.nan

        class Blind:
            def prepare(self, call):
                return blind.prepare(replace(call, inputs={"input": x}))

            def __getattr__(self, name):
                return getattr(blind, name)

        client._core.transport = Blind()
        with pytest.raises(BadInput, match=r"refused the input: .*(nan|finite)"):
            client.infer(np.zeros_like(x))


def test_threads_share_a_client(url):
    """Each thread draws its own numbers, so an answer that reaches another thread is noticed."""
    with Client(url, "lstm", timeout_s=30) as client:
        drawn = [draw(client, batch=1 + k % 3, time=1 + k, seed=k) for k in range(8)]
        want = [client.infer(*arguments) for arguments in drawn]
        wrong, done = [], []

        def run(k):
            try:
                for _ in range(10):
                    got = client.infer(*drawn[k])
                    np.testing.assert_allclose(got.output, want[k].output, rtol=0, atol=1e-5)
                    np.testing.assert_allclose(got.c_n, want[k].c_n, rtol=0, atol=1e-5)
                done.append(k)
            except BaseException as error:
                wrong.append(error)

        threads = [threading.Thread(target=run, args=(k,), daemon=True) for k in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert wrong == []
    assert sorted(done) == list(range(8)), "a thread hangs"


def test_time_too_short_and_then_long_enough(url):
    with Client(url, "lstm_random", timeout_s=30) as client:
        arguments = draw(client, batch=1, time=2)
        client._core.timeout_s = 1e-5
        start = time.monotonic()
        with pytest.raises(Timeout, match="longer timeout_s"):
            client.infer(*arguments)
        assert time.monotonic() - start < 2
        client._core.timeout_s = 30.0
        assert client.infer(*arguments).output.shape[:2] == (1, 2)


def test_used_after_close(url):
    with Client(url, "lstm", timeout_s=10) as client:
        x, _, _ = draw(client, batch=1, time=1)
        client.infer(x)
    client.close()
    with pytest.raises(LoopRNNClientError, match="closed"):
        client.infer(x)


def test_two_clients_close_apart(url):
    with Client(url, "lstm", timeout_s=10) as outer:
        with Client(url, "bilstm", timeout_s=10) as inner:
            inner.infer(draw(inner, batch=1, time=1)[0])
        outer.infer(draw(outer, batch=1, time=1)[0])


def test_models_are_listed(url):
    states = {row.name: row.state for row in list_models(url, timeout_s=10)}
    assert {name: states.get(name) for name in MODELS} == dict.fromkeys(MODELS, "READY")
