"""Keras 2 files written by hand, against equations written here; and graphs.

Keras 2 cannot be installed beside Keras 3, so the layout of its files is spelled out.
"""

import json

import numpy as np
import pytest

from looprnn import importers, reference
from looprnn.errors import SpecError, WeightsError

h5py = pytest.importorskip(
    "h5py", reason="h5py is not installed; type: pip install 'looprnn[keras]'"
)
B, T, I, H = 3, 4, 5, 2  # noqa: E741 - no two axes agree
RNG = np.random.default_rng(3)
GATES = {"LSTM": 4, "GRU": 3, "SimpleRNN": 1, "CuDNNLSTM": 4, "CuDNNGRU": 3}


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


def drawn(kind, inputs=I, bias=None):
    rows = GATES[kind] * H
    shapes = [(inputs, rows), (H, rows), bias or (rows,)]
    return [RNG.uniform(-1, 1, shape).astype(np.float32) for shape in shapes]


def layer(kind, name, **config):
    return {"class_name": kind, "config": {"name": name, **config}}


def rnn(kind, name, **config):
    return layer(kind, name, units=H, **config)


def called(entry, *sources):
    """The entry of a Functional model of Keras 2."""
    calls = [[[name, 0, 0, {}] for name in sources]] if sources else []
    return {**entry, "name": entry["config"]["name"], "inbound_nodes": calls}


def write(path, layers, weights, version=b"2.2.4", kind="Sequential"):
    """model.save of Keras 2: `weights` is path, as in weight_names, → array, by layer."""
    config = {"name": "net", "layers": layers}
    with h5py.File(path, "w") as file:
        file.attrs["model_config"] = json.dumps({"class_name": kind, "config": config}).encode()
        file.attrs["keras_version"] = version
        file.attrs["backend"] = b"tensorflow"
        root = file.create_group("model_weights")
        root.attrs["layer_names"] = [e["config"]["name"].encode() for e in layers]
        for name, arrays in weights.items():
            group = root.create_group(name)
            group.attrs["weight_names"] = [each.encode() for each in arrays]
            for each, array in arrays.items():
                group[each] = array
    return path


def named(prefix, arrays):
    names = (f"{prefix}/{name}:0" for name in ("kernel", "recurrent_kernel", "bias"))
    return dict(zip(names, arrays, strict=True))


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


def two(tmp_path, between, kind="Functional", entries=None):
    """LSTM a → `between` → LSTM b, and the weights of both."""
    first = rnn("LSTM", "a", return_sequences=True)
    chain = [layer("InputLayer", "in"), first, between, rnn("LSTM", "b")]
    sources = [None, "in", "a", between["config"]["name"]]
    layers = [called(e, *([s] if s else [])) for e, s in zip(chain, sources, strict=True)]
    weights = {"a": named("a", drawn("LSTM")), "b": named("b", drawn("LSTM", H))}
    return write(tmp_path / "two.h5", entries or layers, weights, kind=kind), layers


def test_several_stacks_are_listed_with_what_to_type(tmp_path):
    path, _ = two(tmp_path, layer("Conv1D", "conv"))
    with pytest.raises(WeightsError, match=r"(?s)several stacks.*--layer a: a \(LSTM\).*--layer b"):
        importers.read(path, name="x")
    with pytest.raises(WeightsError, match="no layer 'c'"):
        importers.read(path, name="x", layer="c")
    first, second = (importers.read(path, name="x", layer=n) for n in "ab")
    assert "not imported, after a (LSTM): conv (Conv1D)" in first.notes
    assert any("reads from conv (Conv1D), which is not imported" in n for n in second.notes)
    assert (first.spec.input_size, second.spec.input_size) == (I, H)


def test_a_lambda_is_named_and_never_run(tmp_path):
    code = layer("Lambda", "trick", function=["gAN9cQAu", None, None])
    path, _ = two(tmp_path, code)
    notes = importers.read(path, name="x", layer="b").notes
    assert "trick (Lambda): holds code, which was not run" in notes


def test_dropout_between_makes_one_stack(tmp_path):
    path, _ = two(tmp_path, layer("Dropout", "drop", rate=0.5))
    assert len(importers.read(path, name="x").spec.layers) == 2


def test_a_circle_is_refused(tmp_path):
    _, layers = two(tmp_path, layer("Dropout", "drop"))
    sequences = rnn("LSTM", "b", return_sequences=True)
    for turn in (
        [called(layers[2], "drop"), *layers[:2], layers[3]],
        [layers[0], called(layers[1], "b"), layers[2], called(sequences, "drop")],
    ):
        path, _ = two(tmp_path, layer("Dropout", "drop"), entries=turn)
        with pytest.raises(WeightsError, match="circle"):
            importers.read(path, name="x")


def test_a_missing_source_is_named(tmp_path):
    path, _ = two(tmp_path, layer("Dropout", "d"), entries=[called(rnn("LSTM", "a"), "nowhere")])
    with pytest.raises(WeightsError, match="a reads from 'nowhere', not a layer"):
        importers.read(path, name="x")


def test_a_reversed_sequence_under_a_mask_is_refused(tmp_path):
    layers = [
        layer("Masking", "m", mask_value=0.0),
        rnn("LSTM", "a", return_sequences=True, go_backwards=True),
        rnn("LSTM", "b"),
    ]
    weights = {"a": named("a", drawn("LSTM")), "b": named("b", drawn("LSTM", H))}
    with pytest.raises(SpecError, match="b \\(LSTM\\): it reads a sequence that go_backwards left"):
        importers.read(write(tmp_path / "a.h5", layers, weights), name="x")


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
