"""Keras 2 files written by hand, against equations written here.

Keras 2 cannot be installed beside Keras 3, so the layout of its files is spelled out.
"""

import json

import numpy as np
import pytest
from keras_by_hand import RNG, H, I, drawn, h5py, layer, named, rnn, write

from looprnn import importers, reference
from looprnn.errors import SpecError, WeightsError

B, T = 3, 4


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def hard_sigmoid(x):
    return np.clip(0.2 * x + 0.5, 0, 1)


def keras_lstm(x, kernel, recurrent, bias, gate=sigmoid):
    """Gates i f c o along the last axis."""
    h = c = np.zeros((len(x), len(recurrent)))
    for t in range(x.shape[1]):
        i, f, g, o = np.split(x[:, t] @ kernel + h @ recurrent + bias, 4, axis=1)
        c = gate(f) * c + gate(i) * np.tanh(g)
        h = gate(o) * np.tanh(c)
    return h


def keras_gru(x, kernel, recurrent, bias, gate=sigmoid):
    """Gates z r h; the reset after the product if the bias has two rows."""
    h, size = np.zeros((len(x), len(recurrent))), len(recurrent)
    for t in range(x.shape[1]):
        if bias.ndim == 2:
            from_x, from_h = x[:, t] @ kernel + bias[0], h @ recurrent + bias[1]
            reset = sigmoid(from_x[:, size : 2 * size] + from_h[:, size : 2 * size])
            inner = from_x[:, 2 * size :] + reset * from_h[:, 2 * size :]
        else:
            from_x, from_h = x[:, t] @ kernel + bias, h @ recurrent
            reset = gate(from_x[:, size : 2 * size] + from_h[:, size : 2 * size])
            inner = from_x[:, 2 * size :] + (reset * h) @ recurrent[:, 2 * size :]
        z = gate(from_x[:, :size] + from_h[:, :size])
        h = z * h + (1 - z) * np.tanh(inner)
    return h


def from_cudnn(kernel, recurrent, gates):
    """As Keras 2's preprocess_weights_for_loading turns CuDNN kernels into its own."""
    blocks = [block.T.reshape(block.shape, order="F") for block in np.hsplit(kernel, gates)]
    return np.hstack(blocks), np.hstack([block.T for block in np.hsplit(recurrent, gates)])


def answer(imported, x):
    spec = imported.spec
    found = reference.run(spec, imported.weights, {**spec.defaults(*x.shape[:2]), "input": x})
    return found["h_n"].reshape(len(x), -1)


def inputs():
    return RNG.normal(size=(B, T, I))


def assert_equal(got, want):
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_keras_2_lstm_has_the_hard_sigmoid_of_its_time(tmp_path):
    w, x = drawn("LSTM"), inputs()
    entry = rnn("LSTM", "lstm_1", recurrent_activation="hard_sigmoid", activation="tanh")
    path = write(tmp_path / "a.h5", [entry], {"lstm_1": named("lstm_1", w)})
    assert_equal(answer(importers.read(path, name="a"), x), keras_lstm(x, *w, gate=hard_sigmoid))


def test_keras_2_gru_without_reset_after_resets_before(tmp_path):
    w, x = drawn("GRU"), inputs()
    path = write(tmp_path / "a.h5", [rnn("GRU", "g")], {"g": named("g/gru_cell", w)})
    imported = importers.read(path, name="a")
    assert imported.spec.layers[0].reset == "before"
    assert_equal(answer(imported, x), keras_gru(x, *w))


def test_keras_2_gru_with_reset_after(tmp_path):
    w, x = drawn("GRU", bias=(2, 3 * H)), inputs()
    entry = rnn("GRU", "g", reset_after=True)
    path = write(tmp_path / "a.h5", [entry], {"g": named("g/gru_cell", w)}, version=b"2.15.0")
    assert_equal(answer(importers.read(path, name="a"), x), keras_gru(x, *w))


def test_cudnn_lstm_holds_its_kernels_row_by_row(tmp_path):
    (kernel, recurrent, bias), x = drawn("CuDNNLSTM", bias=(8 * H,)), inputs()
    path = write(
        tmp_path / "a.h5",
        [rnn("CuDNNLSTM", "c")],
        {"c": named("c", [kernel, recurrent, bias])},
    )
    want = keras_lstm(x, *from_cudnn(kernel, recurrent, 4), bias[: 4 * H] + bias[4 * H :])
    assert_equal(answer(importers.read(path, name="a"), x), want)


def test_cudnn_gru_resets_after_and_has_two_biases(tmp_path):
    (kernel, recurrent, bias), x = drawn("CuDNNGRU", bias=(6 * H,)), inputs()
    path = write(
        tmp_path / "a.h5",
        [rnn("CuDNNGRU", "c")],
        {"c": named("c", [kernel, recurrent, bias])},
    )
    want = keras_gru(x, *from_cudnn(kernel, recurrent, 3), bias.reshape(2, -1))
    assert_equal(answer(importers.read(path, name="a"), x), want)


def test_keras_2_bidirectional_listed_backward_first(tmp_path):
    """A frozen half is listed last: the names decide."""
    forward, backward, x = drawn("LSTM"), drawn("LSTM"), inputs()
    entry = layer("Bidirectional", "b", layer=rnn("LSTM", "lstm"), merge_mode="concat")
    listed = named("b/backward_lstm/lstm_cell_2", backward)
    listed |= named("b/forward_lstm/lstm_cell_1", forward)
    imported = importers.read(write(tmp_path / "a.h5", [entry], {"b": listed}), name="a")
    want = np.hstack([keras_lstm(x, *forward), keras_lstm(x[:, ::-1], *backward)])
    assert_equal(answer(imported, x), want)


def test_sequential_of_keras_2_0_is_a_list_with_chunked_names(tmp_path):
    w, x = drawn("LSTM"), inputs()
    path = write(tmp_path / "a.h5", [rnn("LSTM", "l")], {"l": named("l", w)})
    with h5py.File(path, "r+") as file:
        file.attrs["model_config"] = json.dumps(
            {"class_name": "Sequential", "config": [rnn("LSTM", "l")]}
        )
        attributes = file["model_weights/l"].attrs
        names = attributes["weight_names"]
        del attributes["weight_names"]
        attributes["weight_names0"], attributes["weight_names1"] = names[:2], names[2:]
    assert_equal(answer(importers.read(path, name="a"), x), keras_lstm(x, *w))


@pytest.mark.parametrize("name", ["selu", "gelu", "swish", {"class_name": "PReLU", "config": {}}])
def test_an_activation_that_cannot_be_served_is_named(tmp_path, name):
    entry = rnn("LSTM", "odd", activation=name)
    path = write(tmp_path / "a.h5", [entry], {"odd": named("odd", drawn("LSTM"))})
    wanted = name if isinstance(name, str) else "PReLU"
    with pytest.raises(SpecError, match=f"odd: activation '{wanted}' cannot be served"):
        importers.read(path, name="x")


def test_hard_sigmoid_of_an_unknown_keras_is_refused(tmp_path):
    entry = rnn("LSTM", "odd", recurrent_activation="hard_sigmoid")
    path = write(tmp_path / "a.h5", [entry], {"odd": named("odd", drawn("LSTM"))}, version=b"")
    with pytest.raises(WeightsError, match="Keras 2 and x/6"):
        importers.read(path, name="x")


def test_a_class_of_ones_own_is_not_taken_for_keras(tmp_path):
    entry = {**rnn("LSTM", "mine"), "module": "mine.layers", "registered_name": "LSTM"}
    path = write(tmp_path / "a.h5", [entry], {"mine": named("mine", drawn("LSTM"))})
    with pytest.raises(WeightsError, match=r"no recurrent layer, only mine \(mine.layers.LSTM\)"):
        importers.read(path, name="x")
