"""Arrays that do not fit the model: refused, in words, before anything is sent."""

import numpy as np
import pytest
from client_doubles import IDS, PADDED, STATE, TOKENS, B, D, Fake, H, I, T, X, client_of, config
from looprnn_client import BadInput


def with_value(array, index, value):
    changed = array.copy()
    changed[index] = value
    return changed


REFUSED = {
    "batch_axis_forgotten": ((X[0],), r"\[4, 7\].*takes \[B, T, I\].*x\[np.newaxis\]"),
    "rank_four": ((X[None],), r"\[1, 3, 4, 7\]"),
    "scalar": ((np.float32(1),), r"input is \[\]"),
    "time_last": ((X.swapaxes(1, 2),), r"\[3, 7, 4\].*1\.\.16, 7\].*last axis"),
    "no_rows": ((X[:0],), "no row to compute"),
    "no_steps": ((X[:, :0],), "no step to compute"),
    "too_many_rows": ((np.repeat(X, 3, 0),), r"\[9, 4, 7\].*\[1\.\.8.*at most 8 rows"),
    "too_many_steps": (
        (np.repeat(X, 5, 1),),
        r"\[3, 20, 7\].*cut the sequence at 16 steps.*carry h_n",
    ),
    "float64": ((X.astype(np.float64),), r"float64.*x\.astype\(np\.float32\)"),
    "float16": ((X.astype(np.float16),), r"float16.*x\.astype\(np\.float32\)"),
    "ints": ((X.astype(np.int32),), r"int32.*x\.astype\(np\.float32\)"),
    "big_endian": ((X.astype(">f4"),), r">f4.*x\.astype\(np\.float32\)"),
    "nested_list": ((X.tolist(),), r"float64.*np\.asarray\(x, dtype=np\.float32\)"),
    "ragged_list": (([[1.0], [1.0, 2.0]],), "input is not an array of numbers"),
    "words": (("x.npy",), "input is <U5"),
    "mask_dropped": ((np.ma.masked_array(X),), "mask cannot be sent"),
    "nan": ((with_value(X, (1, 2, 3), np.nan),), r"input\[1, 2, 3\] is nan.*finite"),
    "first_of_two": (
        (with_value(with_value(X, (2, 0, 1), np.nan), (0, 3, 6), -np.inf),),
        r"input\[0, 3, 6\] is -inf",
    ),
    "nan_in_h": ((X, with_value(STATE, (2, 3, 4), np.nan)), r"h_0\[2, 3, 4\] is nan"),
    "inf_in_c": ((X, STATE, with_value(STATE, (0, 0, 1), np.inf)), r"c_0\[0, 0, 1\] is inf"),
    "h_of_other_batch": ((X, STATE[:2]), r"h_0 is \[2, 4, 5\].*\[3, 4, 5\]"),
    "h_layers_first": ((X, STATE.swapaxes(0, 1)), r"h_0 is \[4, 3, 5\].*swapaxes\(0, 1\)"),
    "h_without_batch": ((X[:1], STATE[0]), r"h_0 is \[4, 5\].*np\.newaxis"),
    "c_of_one_direction": ((X, STATE, STATE[:, :2]), r"c_0 is \[3, 2, 5\].*\[3, 4, 5\]"),
    "h_float64": ((X, STATE.astype(np.float64)), "h_0 is float64"),
}
REFUSED_OUTPUTS = {
    "misspelt": (["output", "hn"], "'hn'; did you mean 'h_n'.*output, h_n"),
    "as_string": ("h_n", r"pass \['h_n'\]"),
    "empty": ([], "nothing to ask for"),
    "not_a_name": ([0], "no output 0"),
    "of_another_model": (["head"], "no output 'head'"),
}
REFUSED_LENGTHS = {
    "past_the_end": ([4, 5, 1], r"lengths\[1\] is 5, but .* 0\.\.4 steps"),
    "negative": ([0, 4, -1], r"lengths\[2\] is -1"),
    "past_int32": ([4, 2**32 + 1, 4], r"lengths\[1\] is 4294967297"),
    "past_int64": (np.array([4, 2**63, 4], np.uint64), r"lengths\[1\] is 9223372036854775808"),
    "past_every_integer": ([4, 2**64, 4], "lengths is object"),
    "one_too_few": ([4, 2], r"lengths is \[2\], but .*\[B\] = \[3\]"),
    "as_the_wire_has_them": ([[4], [2], [1]], r"lengths is \[3, 1\], but .*\[B\] = \[3\]"),
    "one_for_all": (4, r"lengths is \[\]"),
    "floats": ([4.0, 2.0, 1.0], r"float64, but .*integers.*np\.asarray\(x, dtype=np\.int32\)"),
    "a_mask": (np.ones(B, bool), "lengths is bool, but .*integers"),
    "ragged": ([[4], [2, 1], [1]], "lengths is not an array"),
    "masked": (np.ma.masked_array([4, 2, 1]), "lengths is a masked array"),
}
REFUSED_IDS = {
    "one_past_the_vocabulary": (with_value(IDS, (1, 2), 11), r"input\[1, 2\] is 11.*0\.\.10"),
    "padding_of_minus_one": (with_value(IDS, (2, 3), -1), r"input\[2, 3\] is -1.*padding included"),
    "first_of_two": (with_value(with_value(IDS, (2, 0), 99), (0, 3), -7), r"input\[0, 3\] is -7"),
    "past_int32": (with_value(IDS, (0, 1), 2**32), r"input\[0, 1\] is 4294967296"),
    "unsigned": (with_value(IDS.astype(np.uint8), (0, 1), 255), r"input\[0, 1\] is 255"),
    "floats": (IDS.astype(np.float32), r"float32, but .*takes ids.*x\.astype\(np\.int32\)"),
    "one_hot": (
        np.eye(11, dtype=np.int32)[IDS],
        r"\[3, 4, 11\].*takes \[B, T\] = \[1\.\.8, 1\.\.16\]",
    ),
    "batch_axis_forgotten": (IDS[0], r"\[4\].*x\[np\.newaxis\]"),
    "no_steps": (IDS[:, :0], "no step to compute"),
    "too_many_rows": (np.repeat(IDS, 3, 0), "at most 8 rows"),
    "too_many_steps": (np.repeat(IDS, 5, 1), "cut the sequence at 16 steps"),
    "words": (["a", "b"], "input is <U1, but .*takes ids"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_is_sent(case):
    arguments, words = REFUSED[case]
    fake = Fake()
    with client_of(fake) as client, pytest.raises(BadInput, match=words):
        client.infer(*arguments)
    assert fake.asked == ["config"]


@pytest.mark.parametrize("case", REFUSED_OUTPUTS)
def test_outputs_that_cannot_be_asked_for(case):
    names, words = REFUSED_OUTPUTS[case]
    fake = Fake()
    with client_of(fake) as client, pytest.raises(BadInput, match=words):
        client.infer(X, outputs=names)
    assert fake.asked == ["config"]


@pytest.mark.parametrize("case", REFUSED_LENGTHS)
def test_lengths_that_do_not_fit(case):
    lengths, words = REFUSED_LENGTHS[case]
    fake = Fake(PADDED)
    with client_of(fake) as client, pytest.raises(BadInput, match=words):
        client.infer(X, lengths=lengths)
    assert fake.asked == ["config"]


@pytest.mark.parametrize("case", REFUSED_IDS)
def test_ids_that_do_not_fit(case):
    ids, words = REFUSED_IDS[case]
    fake = Fake(TOKENS)
    with client_of(fake) as client, pytest.raises(BadInput, match=words):
        client.infer(ids)
    assert fake.asked == ["config"]


def test_lengths_for_a_model_without_them():
    fake = Fake()
    with client_of(fake) as client, pytest.raises(BadInput, match="needs .*lengths = true"):
        client.infer(X, lengths=[4, 2, 1])
    assert fake.asked == ["config"]


def test_states_of_unequal_layers():
    """A projected LSTM below a GRU: h and c are rows of different size, checked each for itself."""
    flat = {s: np.zeros((B, 1, size), np.float32) for s, size in (("h", 9), ("c", 6))}
    fake = Fake(config(h=(1, 9), c=(1, 6), width=11))
    with client_of(fake) as client:
        result = client.infer(X, flat["h"], flat["c"])
        assert result.output.shape == (B, T, 11)
        assert (result.h_n.shape, result.c_n.shape) == ((B, 1, 9), (B, 1, 6))
        with pytest.raises(BadInput, match=r"h_0 is \[3, 1, 6\].*\[3, 1, 9\]"):
            client.infer(X, flat["c"])
        with pytest.raises(BadInput, match=r"c_0 is \[3, 1, 9\].*\[3, 1, 6\]"):
            client.infer(X, flat["h"], flat["h"])
        with pytest.raises(BadInput, match=r"c_0 is \[3, 6\].*\[:, np\.newaxis\]"):
            client.infer(X, c_0=flat["c"][:, 0])


def test_c_for_a_cell_without_c():
    with client_of(Fake(config(c=None))) as client:
        with pytest.raises(BadInput, match="no cell state; leave c_0 out"):
            client.infer(X, c_0=STATE)
        with pytest.raises(BadInput, match=r"no output 'c_n'.*'h_n'"):
            client.infer(X, outputs=["c_n"])


def test_limits_are_inclusive():
    with client_of(Fake()) as client:
        assert client.infer(np.zeros((8, 16, I), np.float32)).output.shape == (8, 16, D * H)
        assert client.infer(np.zeros((1, 1, I), np.float32)).output.shape == (1, 1, D * H)


def test_limits_of_lengths_and_ids_are_inclusive():
    fake = Fake(TOKENS)
    with client_of(fake) as client:
        client.infer([[0, 10, 0, 10]], lengths=[0])
        client.infer([[0, 10, 0, 10]], lengths=[4])
    np.testing.assert_array_equal(fake.inputs["lengths"], [[4]])


def test_no_time_limit_named():
    with client_of(Fake(config(time_max=None))) as client:
        assert client.signature.time_max is None
        assert client.infer(np.repeat(X, 50, 1)).output.shape == (B, T * 50, D * H)
