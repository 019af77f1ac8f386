"""The oracle: float64, explicit loops, NumPy alone, written from the equations.

RNN    h = f(W x + b + R h + d)                     Elman 1990
GRU    r, z = f(W x + b + R h + d)                  Cho et al. 2014
       n = g(W x + b + r (R h + d))                 reset after the product (PyTorch)
       n = g(W x + b + R (r h) + d)                 reset before it
       h = (1 - z) n + z h
LSTM   i, f = f(W x + b + R h + d + p c)            Hochreiter and Schmidhuber 1997; the forget gate
       c = f c + i g(W x + b + R h + d)             and peepholes p: Gers et al. 2000
       o = f(W x + b + R h + d + p c)               p here sees the new c
       h = o h(c), or V (o h(c))                    projection V: Sak et al. 2014

W weight_ih, b bias_ih, R weight_hh, d bias_hh. Nothing here is fast, hoisted or fused: it is read,
not run, in production. `spec` is an RNNSpec, used by its attributes alone.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
LAYER_NORM_EPSILON = 1e-5


def sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore", under="ignore"):  # exp(-x) = Inf gives the right limit, 0
        return np.asarray(1.0 / (1.0 + np.exp(-x)))


def elu(x: Array, alpha: float) -> Array:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0.0)))


ACTIVATION: dict[str, Callable[[Array, float, float], Array]] = {
    "tanh": lambda x, a, b: np.tanh(x),
    "relu": lambda x, a, b: np.maximum(x, 0.0),
    "sigmoid": lambda x, a, b: sigmoid(x),
    "softsign": lambda x, a, b: x / (1.0 + np.abs(x)),
    "softplus": lambda x, a, b: np.logaddexp(0.0, x),
    "hard_sigmoid": lambda x, a, b: np.clip(a * x + b, 0.0, 1.0),
    "leaky_relu": lambda x, a, b: np.where(x >= 0, x, a * x),
    "elu": lambda x, a, b: elu(x, a),
    "thresholded_relu": lambda x, a, b: np.where(x > a, x, 0.0),
    "scaled_tanh": lambda x, a, b: a * np.tanh(b * x),
    "affine": lambda x, a, b: a * x + b,
}


def activate(activation: Any, x: Array) -> Array:
    return ACTIVATION[activation.kind](x, activation.alpha, activation.beta)


def clipped(x: Array, limit: float | None) -> Array:
    return x if limit is None else np.clip(x, -limit, limit)


def normalized(x: Array) -> Array:
    """(x - mean) / sqrt(variance + ε) over the last axis: Ba et al. 2016."""
    return np.asarray((x - x.mean()) / np.sqrt(x.var() + LAYER_NORM_EPSILON))


def from_input(layer: Any, w: Mapping[str, Array], x: Array) -> list[Array]:
    """W x + b, one [H] a gate; x itself for every gate where the layer skips W."""
    gates = len(layer.gates)
    product = np.tile(x, gates) if layer.skip_input else w["weight_ih"] @ x
    if layer.layer_norm:
        product = normalized(product) * w["weight_ln_ih"]
    return np.split(product + w["bias_ih"] if layer.bias else product, gates)


def from_state(layer: Any, w: Mapping[str, Array], h: Array) -> list[Array]:
    """R h + d, one [H] a gate."""
    product = w["weight_hh"] @ h
    if layer.layer_norm:
        product = normalized(product) * w["weight_ln_hh"]
    return np.split(product + w["bias_hh"] if layer.bias else product, len(layer.gates))


def rnn_step(
    layer: Any, acts: Any, w: Mapping[str, Array], x: Array, h: Array, c: Array
) -> tuple[Array, Array]:
    (wx,), (rh,) = from_input(layer, w, x), from_state(layer, w, h)
    return activate(acts[0], clipped(wx + rh, layer.clip)), c


def gru_step(
    layer: Any, acts: Any, w: Mapping[str, Array], x: Array, h: Array, c: Array
) -> tuple[Array, Array]:
    x_r, x_z, x_n = from_input(layer, w, x)
    h_r, h_z, h_n = from_state(layer, w, h)
    r = activate(acts[0], clipped(x_r + h_r, layer.clip))
    z = activate(acts[0], clipped(x_z + h_z, layer.clip))
    if layer.reset == "before":
        _, _, reset = from_state(layer, w, r * h)
    else:
        reset = r * h_n
    n = activate(acts[1], clipped(x_n + reset, layer.clip))
    return (1.0 - z) * n + z * h, c


def lstm_step(
    layer: Any, acts: Any, w: Mapping[str, Array], x: Array, h: Array, c: Array
) -> tuple[Array, Array]:
    x_i, x_f, x_g, x_o = from_input(layer, w, x)
    h_i, h_f, h_g, h_o = from_state(layer, w, h)
    p_i, p_f, p_o = np.split(w["weight_p"], 3) if layer.peepholes else (0.0, 0.0, 0.0)
    i = activate(acts[0], clipped(x_i + h_i + p_i * c, layer.clip))
    f = 1.0 - i if layer.coupled else activate(acts[0], clipped(x_f + h_f + p_f * c, layer.clip))
    g = activate(acts[1], clipped(x_g + h_g, layer.clip))
    c = clipped(f * c + i * g, layer.cell_clip)
    o = activate(acts[0], clipped(x_o + h_o + p_o * c, layer.clip))
    seen = normalized(c) * w["weight_ln_c"] + w["bias_ln_c"] if layer.layer_norm else c
    h = o * activate(acts[2], seen)
    return (w["weight_hr"] @ h if layer.proj_size else h), c


STEP = {"rnn": rnn_step, "gru": gru_step, "lstm": lstm_step}


def run(
    spec: Any, weights: Mapping[str, NDArray[Any]], inputs: Mapping[str, NDArray[Any]]
) -> dict[str, Array]:
    """Every input of the spec → every output, all float64; shapes as in RNNSpec.shapes."""
    weights = {name: np.asarray(array, np.float64) for name, array in weights.items()}
    x = (
        weights["embedding.weight"][inputs["input"]]
        if spec.vocabulary
        else np.asarray(inputs["input"], np.float64)
    )
    batch, time = x.shape[:2]
    lengths = inputs["lengths"] if spec.lengths else np.full(batch, time)
    flat = {s: np.asarray(inputs[f"{s}_0"], np.float64).reshape(batch, -1) for s in spec.states}
    last = {s: np.full_like(array, np.nan) for s, array in flat.items()}
    ends: list[Array] = []

    for k, layer in enumerate(spec.layers):
        halves = []
        ends = []
        for direction in layer.directions:
            end = f"_l{k}_reverse" if direction == "reverse" else f"_l{k}"
            own = {n.removesuffix(end): a for n, a in weights.items() if n.endswith(end)}
            place = {
                s: slice(at, at + size)
                for s in layer.states
                for at, size in [spec.state_slots(s)[k, direction]]
            }
            start = {s: flat[s][:, where] for s, where in place.items()}
            y, end_of = direction_of(layer, direction, own, x, lengths, start, spec.padding)
            halves.append(y)
            ends.append(end_of["h"])
            for s, where in place.items():
                last[s][:, where] = end_of[s]
        outputs = merged(layer.merge, halves)
        if layer.residual:
            within = np.arange(time)[None, :, None] < lengths[:, None, None]
            outputs = [np.where(within, outputs[0] + x, 0.0)]
        x = outputs[0]

    answer = dict(zip(("output", "output_reverse"), outputs, strict=False))
    for s in spec.states:
        answer[f"{s}_n"] = last[s].reshape(batch, *spec.state_dims(s))
    if spec.head:
        answer["head"] = head(
            spec.head, weights, x if spec.head.on == "output" else np.concatenate(ends, axis=1)
        )
        if spec.head.on == "output" and spec.padding == "zero":
            answer["head"][np.arange(time)[None, :] >= lengths[:, None]] = 0.0
    return answer


def direction_of(
    layer: Any,
    direction: str,
    w: Mapping[str, Array],
    x: Array,
    lengths: NDArray[Any],
    start: Mapping[str, Array],
    padding: str,
) -> tuple[Array, dict[str, Array]]:
    """x [B, T, I] → output [B, T, P] and the states at each row's true end."""  # fmt: skip
    batch, time, _ = x.shape
    output = np.zeros((batch, time, layer.state_size("h")))
    ends = {s: np.array(array) for s, array in start.items()}
    for row in range(batch):
        h, c = start["h"][row], start["c"][row] if "c" in start else np.zeros(0)
        steps = range(int(lengths[row]))
        for t in steps if direction == "forward" else reversed(steps):
            h, c = STEP[layer.cell](layer, layer.activations_of(direction), w, x[row, t], h, c)
            output[row, t] = h
        if padding == "repeat" and direction == "forward" and len(steps):
            output[row, len(steps) :] = h
        ends["h"][row] = h
        if "c" in ends:
            ends["c"][row] = c
    return output, ends


def merged(merge: str, halves: list[Array]) -> list[Array]:
    if len(halves) == 1 or merge == "none":
        return halves
    if merge == "concat":
        return [np.concatenate(halves, axis=2)]
    forward, reverse = halves
    if merge == "mul":
        return [forward * reverse]
    return [forward + reverse if merge == "sum" else (forward + reverse) / 2.0]


def head(head: Any, weights: Mapping[str, Array], y: Array) -> Array:
    """y [..., F] → [..., size]"""
    z = y @ weights["head.weight"].T + (weights["head.bias"] if head.bias else 0.0)
    if head.activation == "sigmoid":
        return sigmoid(z)
    if head.activation == "softmax":
        z = np.exp(z - z.max(axis=-1, keepdims=True))
        return np.asarray(z / z.sum(axis=-1, keepdims=True))
    return z
