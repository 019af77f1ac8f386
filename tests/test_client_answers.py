"""What goes to the server and what comes back from it, by a transport without a server."""

import numpy as np
import pytest
from client_doubles import IDS, PADDED, STATE, TOKENS, B, D, Fake, H, T, X, client_of, config
from looprnn_client import ServerError


def test_every_input_goes_under_its_own_name():
    fake = Fake()
    with client_of(fake) as client:
        client.infer(X, STATE, STATE * 2)
        assert set(fake.inputs) == {"input", "h_0", "c_0"}
        np.testing.assert_array_equal(fake.inputs["input"], X)
        np.testing.assert_array_equal(fake.inputs["h_0"], STATE)
        np.testing.assert_array_equal(fake.inputs["c_0"], STATE * 2)
        client.infer(X, c_0=STATE)
        assert set(fake.inputs) == {"input", "c_0"}


@pytest.mark.parametrize(
    "lengths",
    [[4, 0, 1], (4, 0, 1), *(np.array([4, 0, 1], kind) for kind in ("u1", "i8", ">i4", "u8"))],
    ids=["list", "tuple", "uint8", "int64", "big_endian", "uint64"],
)
def test_lengths_go_as_a_column_of_int32(lengths):
    fake = Fake(PADDED)
    with client_of(fake) as client:
        client.infer(X, STATE, lengths=lengths)
    assert set(fake.inputs) == {"input", "lengths", "h_0"}
    sent = fake.inputs["lengths"]
    assert (sent.dtype, sent.dtype.isnative) == (np.int32, True)
    np.testing.assert_array_equal(sent, [[4], [0], [1]])


def test_lengths_left_out_are_not_sent():
    fake = Fake(PADDED)
    with client_of(fake) as client:
        client.infer(X)
    assert set(fake.inputs) == {"input"}


@pytest.mark.parametrize(
    "ids",
    [IDS.tolist(), *(IDS.astype(kind) for kind in ("i1", "i4", "i8", ">i2", "u8"))],
    ids=["list", "int8", "int32", "int64", "big_endian", "uint64"],
)
def test_ids_go_as_int32(ids):
    fake = Fake(TOKENS)
    with client_of(fake) as client:
        result = client.infer(ids, c_0=STATE)
    assert set(fake.inputs) == {"input", "c_0"}
    sent = fake.inputs["input"]
    assert (sent.dtype, sent.dtype.isnative) == (np.int32, True)
    np.testing.assert_array_equal(sent, IDS)
    assert result.output.shape == (B, T, D * H)


@pytest.mark.parametrize(("dims", "shape"), [([-1, 6], (B, T, 6)), ([6], (B, 6))])
def test_head_and_reverse_come_as_they_are(dims, shape):
    fake = Fake(config(reverse=11, head=dims))
    with client_of(fake) as client:
        result = client.infer(X)
        alone = client.infer(X, outputs=["head"])
    assert (result.head.shape, result.output_reverse.shape) == (shape, (B, T, 11))
    np.testing.assert_array_equal(alone.head, fake.answer["head"])
    assert (alone.output, alone.output_reverse, alone.h_n, alone.c_n) == (None, None, None, None)


def test_only_what_was_asked_for_comes():
    fake = Fake()
    with client_of(fake) as client:
        result = client.infer(X, outputs=["h_n", "h_n"])
    assert fake.outputs == ("h_n",)
    assert (result.output, result.c_n) == (None, None)
    np.testing.assert_array_equal(result.h_n, fake.answer["h_n"])


def test_what_the_model_has_not_is_none():
    with client_of(Fake(config(c=None))) as client:
        result = client.infer(X)
    assert (result.c_n, result.output_reverse, result.head) == (None, None, None)


def test_outputs_are_nobody_elses_memory():
    fake = Fake(config(reverse=11, head=[3]))
    with client_of(fake) as client:
        result = client.infer(X)
    assert len(fake.answer) == 5
    for name, wire in fake.answer.items():
        array = getattr(result, name)
        np.testing.assert_array_equal(array, wire)
        assert (array.dtype, array.flags.c_contiguous) == (np.float32, True)
        assert array.flags.writeable and array.flags.owndata
        assert not np.shares_memory(array, wire)


def test_result_is_frozen():
    with client_of(Fake()) as client, pytest.raises(AttributeError):
        client.infer(X).output = None


@pytest.mark.parametrize(
    "wrong",
    [lambda a: None, lambda a: a[:1], lambda a: a.astype(np.float64), lambda a: a.swapaxes(0, 1)],
    ids=["missing", "rows_lost", "float64", "time_first"],
)
@pytest.mark.parametrize("name", ["output", "output_reverse", "h_n", "c_n", "head"])
def test_answer_that_breaks_the_contract(wrong, name):
    fake = Fake(config(reverse=11, head=[6]))
    compute = fake.compute
    fake.compute = lambda n, x: wrong(compute(n, x)) if n == name else compute(n, x)
    with client_of(fake) as client, pytest.raises(ServerError, match=f"'{name}'.*its contract"):
        client.infer(X)
