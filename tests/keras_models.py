"""Models of Keras, saved, with what Keras answers: run by test_import_keras.py in a process of its
own, as KERAS_BACKEND=numpy python keras_models.py FOLDER.

Each answer is named after ours: output, h_n0 (of the first recurrence), head; "last" is the last
step, "flipped" a sequence that go_backwards left reversed, "valid" one to compare within lengths.
"""

import sys
from pathlib import Path

import keras
import numpy as np
from keras import layers as L

MODELS = {}
B, T, I, H, J = 4, 7, 5, 6, 3  # noqa: E741 - no two axes agree
LENGTHS = np.array([7, 2, 0, 5], np.int32)


def model(*names, ragged=False, ids=0):
    """Register a builder: input → answers, one a name. `ragged`: the value of masked steps."""

    def keep(build):
        MODELS[build.__name__] = (build, names, ragged, ids)
        return build

    return keep


def one(name, layer, *names, **options):
    @model(*names, **options)
    def build(x):
        return layer()(x)

    MODELS[name] = MODELS.pop("build")


CELLS = {"rnn": L.SimpleRNN, "lstm": L.LSTM, "gru": L.GRU}
for kind, Kind in CELLS.items():
    one(
        f"{kind}_states",
        lambda K=Kind: K(H, return_sequences=True, return_state=True),
        *(("output", "h_n0", "c_n0") if kind == "lstm" else ("output", "h_n0")),
    )
    one(f"{kind}_last", lambda K=Kind: K(H), "last")
    one(f"{kind}_no_bias", lambda K=Kind: K(H, use_bias=False, return_sequences=True), "output")
    one(
        f"{kind}_backwards",
        lambda K=Kind: K(H, go_backwards=True, return_sequences=True),
        "flipped",
    )
    one(f"{kind}_backwards_last", lambda K=Kind: K(H, go_backwards=True), "last")
    for zero in (False, True):
        for back in (False, True):
            one(
                f"{kind}_masked{'_zero' * zero}{'_backwards' * back}",
                lambda K=Kind, z=zero, b=back: K(
                    H, return_sequences=True, go_backwards=b, zero_output_for_mask=z
                ),
                "flipped" if back else "output",
                ragged=0.25,
            )
    for merge in ("concat", "sum", "mul", "ave"):
        one(
            f"{kind}_both_{merge}",
            lambda K=Kind, m=merge: L.Bidirectional(K(H, return_sequences=True), merge_mode=m),
            "output",
            ragged=0.25,
        )
        one(
            f"{kind}_both_{merge}_last",
            lambda K=Kind, m=merge: L.Bidirectional(K(H), merge_mode=m),
            "last",
            ragged=0.25,
        )
    one(
        f"{kind}_both_none",
        lambda K=Kind: L.Bidirectional(K(H, return_sequences=True), merge_mode=None),
        "output",
        "output_reverse",
        ragged=0.25,
    )

one("gru_reset_before", lambda: L.GRU(H, reset_after=False, return_sequences=True), "output")
one(
    "gru_reset_before_no_bias",
    lambda: L.GRU(H, reset_after=False, use_bias=False, return_sequences=True),
    "output",
)
for act in (
    "relu",
    "sigmoid",
    "hard_sigmoid",
    "linear",
    "elu",
    "softsign",
    "softplus",
    "leaky_relu",
):
    one(
        f"lstm_{act}",
        lambda a=act: L.LSTM(
            H, activation=a, recurrent_activation="hard_sigmoid", return_sequences=True
        ),
        "output",
    )
one("rnn_leaky_layer", lambda: L.SimpleRNN(H, activation=L.LeakyReLU(0.1)), "last")
one(
    "gru_gates_differ",
    lambda: L.GRU(H, activation="softsign", recurrent_activation="hard_sigmoid"),
    "last",
)
one("lstm_dropout", lambda: L.LSTM(H, dropout=0.3, recurrent_dropout=0.4), "last")
one("lstm_unroll", lambda: L.LSTM(H, unroll=True), "last")
one("lstm_cell", lambda: L.RNN(L.LSTMCell(H), return_sequences=True), "output")
one("gru_cell_both", lambda: L.Bidirectional(L.RNN(L.GRUCell(H), return_sequences=True)), "output")
one(
    "cells_stacked",
    lambda: L.RNN(
        L.StackedRNNCells([L.LSTMCell(H), L.GRUCell(J), L.LSTMCell(4)]), return_sequences=True
    ),
    "output",
    ragged=0.25,
)
one(
    "cells_stacked_backwards",
    lambda: L.RNN(
        L.StackedRNNCells([L.GRUCell(H), L.SimpleRNNCell(J)]),
        return_sequences=True,
        go_backwards=True,
    ),
    "flipped",
)
one(
    "other_backward_layer",
    lambda: L.Bidirectional(
        L.LSTM(H, activation="softsign", return_sequences=True, name="ahead"),
        backward_layer=L.LSTM(
            H,
            recurrent_activation="hard_sigmoid",
            return_sequences=True,
            go_backwards=True,
            name="astern",
        ),
    ),
    "output",
)


@model("output", "h_n0", "c_n0", "h_n1", "c_n1")
def states_of_both(x):
    return L.Bidirectional(L.LSTM(H, return_sequences=True, return_state=True))(x)


@model("output", ragged=-1.0)
def stack_of_three(x):
    x = L.Dropout(0.5)(L.LSTM(H, return_sequences=True)(x))
    x = L.Bidirectional(L.GRU(J, return_sequences=True), merge_mode="sum")(x)
    return L.SimpleRNN(4, return_sequences=True)(x)


@model("output")
def there_and_back(x):
    """The second reads what the first left reversed: a GRU that runs backwards, to us."""
    x = L.LSTM(H, return_sequences=True, go_backwards=True)(x)
    return L.GRU(J, return_sequences=True, go_backwards=True)(x)


@model("flipped")
def back_then_forth(x):
    x = L.LSTM(H, return_sequences=True, go_backwards=True)(x)
    return L.GRU(J, return_sequences=True)(x)


@model("head", ragged=0.25)
def head_on_last(x):
    return L.Dense(2, activation="softmax")(L.Dropout(0.1)(L.LSTM(H)(x)))


@model("head", ragged=0.25)
def head_on_output(x):
    return L.TimeDistributed(L.Dense(2, activation="sigmoid"))(L.GRU(H, return_sequences=True)(x))


@model("head")
def head_without_bias(x):
    return L.Dense(2, use_bias=False)(L.LSTM(H, return_sequences=True)(x))


@model("head")
def head_on_concat(x):
    return L.Dense(2)(L.Bidirectional(L.GRU(H))(x))


@model("head")
def head_on_sum(x):
    return L.Dense(2)(L.Bidirectional(L.LSTM(H), merge_mode="sum")(x))


@model("head")
def head_on_average(x):
    return L.Dense(2)(L.Bidirectional(L.LSTM(H), merge_mode="ave")(x))


@model("head")
def head_and_softmax(x):
    return L.Softmax()(L.Dense(2)(L.LSTM(H)(x)))


@model("head")
def head_on_state(x):
    return L.Dense(2)(L.LSTM(H, return_sequences=True, return_state=True)(x)[1])


@model("output")
def residual(x):
    x = L.LSTM(I, return_sequences=True)(x)
    x = L.Add()([x, L.GRU(I, return_sequences=True)(x)])
    return L.SimpleRNN(H, return_sequences=True)(x)


@model("valid", ragged=0.25)
def residual_last_and_masked(x):
    return x + L.LSTM(I, return_sequences=True)(x)


@model("head", ragged=0.0, ids=9)
def embedding_with_zeros(x):
    x = L.Embedding(9, I, mask_zero=True)(x)
    return L.Dense(2)(L.LSTM(H)(x))


@model("output", ids=9)
def embedding(x):
    return L.GRU(H, return_sequences=True)(L.Embedding(9, I)(x))


@model("output")
def stateful(x):
    return L.LSTM(H, stateful=True, return_sequences=True)(x)


@model("output", "h_n0")
def named_and_frozen(x):
    layer = L.Bidirectional(L.GRU(H, return_sequences=True, return_state=True), name="forward_all")
    answer = layer(x)
    layer.forward_layer.trainable = False
    return answer[:2]


def save(name, folder):
    build, names, ragged, ids = MODELS[name]
    keras.utils.clear_session()
    rng = np.random.default_rng(sum(name.encode()))
    shape = {"batch_shape": (B, T)} if ids else {"batch_shape": (B, T, I)}
    given = keras.Input(dtype="int32" if ids else "float32", **shape)
    inner = L.Masking(ragged)(given) if ragged is not False and not ids else given
    made = build(inner)
    made = list(made) if isinstance(made, list | tuple) else [made]
    net = keras.Model(given, made)
    for weight in net.weights:
        # Widely spread: gates leave the middle, where a swapped pair would nearly agree.
        weight.assign(rng.uniform(-0.8, 0.8, weight.shape))
    x = rng.integers(1, ids, (B, T)).astype(np.int32) if ids else rng.normal(size=(B, T, I))
    if ragged is not False:
        x[np.arange(T) >= LENGTHS[:, None]] = ragged
    answers = [np.asarray(a) for a in keras.tree.flatten(net(x if ids else x.astype(np.float32)))]
    net.save(folder / f"{name}.keras")
    net.save(folder / f"{name}.h5")
    np.savez(
        folder / f"{name}.npz",
        x=x,
        **({"lengths": LENGTHS} if ragged is not False else {}),
        **dict(zip(names, answers, strict=True)),
    )


if __name__ == "__main__":
    for each in MODELS:
        save(each, Path(sys.argv[1]))
