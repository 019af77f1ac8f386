"""The oracle: float64, explicit loops, NumPy alone, written from the equations.

RNN    h = act(W_h x + b_h + R_h h + d_h)                        Elman 1990; torch.nn.RNN
LSTM   i, f, g, o = σ, σ, tanh, σ of (W x + b + R h + d)         Hochreiter and Schmidhuber 1997,
with the forget
       c = f c + i g,  h = o tanh(c)                             gate of Gers et al. 2000;
       torch.nn.LSTM
W weight_ih, b bias_ih, R weight_hh, d bias_hh. Nothing here is fast, hoisted or fused: it is read,
not run, in production.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):  # exp(-x) = Inf gives the right limit, 0
        return np.asarray(1.0 / (1.0 + np.exp(-x)))


ACTIVATION: dict[str, Callable[[Array], Array]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0.0),
}


def rnn_step(x: Array, h: Array, w: Array, r: Array, b: Array, d: Array, activation: str) -> Array:
    """x [I], h [H], w [H, I], r [H, H], b and d [H] → the next h [H]."""
    return np.asarray(ACTIVATION[activation](w @ x + b + r @ h + d))


def lstm_step(
    x: Array, h: Array, c: Array, w: Array, r: Array, b: Array, d: Array
) -> tuple[Array, Array]:
    """x [I], h and c [H], w [4·H, I], r [4·H, H], b and d [4·H], gates in the order i f g o → the
    next h, c [H].
    """
    n = len(h)
    gate = {}
    for k, name in enumerate("ifgo"):
        rows = slice(k * n, (k + 1) * n)
        gate[name] = w[rows] @ x + b[rows] + r[rows] @ h + d[rows]
    c = sigmoid(gate["f"]) * c + sigmoid(gate["i"]) * np.tanh(gate["g"])
    h = sigmoid(gate["o"]) * np.tanh(c)
    return h, c


def run(
    cell: str,
    directions: tuple[str, ...],
    weights: Mapping[str, NDArray[Any]],
    inputs: Mapping[str, NDArray[Any]],
    *,
    activation: str = "tanh",
) -> dict[str, Array]:
    """input [B, T, I], h_0 and c_0 [B, D, H] → output [B, T, D·H], h_n and c_n [B, D, H], all
    float64.
    """
    x_all = np.asarray(inputs["input"], np.float64)
    batch, time, _ = x_all.shape
    hidden = inputs["h_0"].shape[2]
    output = np.full((batch, time, len(directions) * hidden), np.nan)
    h_n = np.full((batch, len(directions), hidden), np.nan)
    c_n = np.full((batch, len(directions), hidden), np.nan)

    for k, direction in enumerate(directions):
        suffix = "l0_reverse" if direction == "reverse" else "l0"
        w, r, b, d = (
            np.asarray(weights[f"{name}_{suffix}"], np.float64)
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        steps = range(time) if direction == "forward" else range(time - 1, -1, -1)
        for row in range(batch):
            h = np.asarray(inputs["h_0"][row, k], np.float64)
            c = (
                np.asarray(inputs["c_0"][row, k], np.float64)
                if cell == "lstm"
                else np.zeros(hidden)
            )
            for t in steps:
                if cell == "lstm":
                    h, c = lstm_step(x_all[row, t], h, c, w, r, b, d)
                else:
                    h = rnn_step(x_all[row, t], h, w, r, b, d, activation)
                output[row, t, k * hidden : (k + 1) * hidden] = h
            h_n[row, k] = h
            c_n[row, k] = c

    return {"output": output, "h_n": h_n} | ({"c_n": c_n} if cell == "lstm" else {})
