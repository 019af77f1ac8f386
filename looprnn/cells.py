"""One step of each cell, written once over the operations that a graph builder offers.

TensorRT's network (network.py) and ONNX's Scan (engines/onnx_model.py) both build these; the
reference does not know them. B batch, H hidden, P what a step puts out (H, or proj_size), G gates.
`xw` is x·Wᵀ and the biases that can be hoisted out of the loop.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from looprnn.spec import Activation, Head, Layer
from looprnn.weights import layer_shapes, suffix

Tensor = Any
Array = NDArray[np.float32]
EPSILON = 1e-5  # layer_norm's, as in haste and PyTorch


class Ops(ABC):
    """What a graph can do inside a step. Every operation has a name, unique within `where`."""

    where: str = ""

    @abstractmethod
    def constant(self, name: str, array: NDArray[Any]) -> Tensor:
        """A float constant of the step's type."""

    @abstractmethod
    def product(self, name: str, x: Tensor, matrix: Array) -> Tensor:
        """x [..., K] @ matrix [K, N], in the engine's precision."""

    @abstractmethod
    def binary(self, name: str, op: str, a: Tensor, b: Tensor) -> Tensor:
        """op is add, sub, mul, div, min or max; axes of size 1 broadcast, ranks are equal."""

    @abstractmethod
    def activate(self, name: str, activation: Activation, x: Tensor) -> Tensor:
        """activation(x)"""

    @abstractmethod
    def mean(self, name: str, x: Tensor) -> Tensor:
        """The mean over the last axis, which stays as 1."""

    @abstractmethod
    def sqrt(self, name: str, x: Tensor) -> Tensor: ...

    @abstractmethod
    def split(self, name: str, x: Tensor, parts: Sequence[str], size: int) -> dict[str, Tensor]:
        """[B, len(parts)·size] → one [B, size] a part."""

    @abstractmethod
    def concatenate(self, name: str, parts: list[Tensor], axis: int) -> Tensor: ...

    @abstractmethod
    def softmax(self, name: str, x: Tensor) -> Tensor:
        """Over the last axis."""

    def clip(self, name: str, x: Tensor, limit: float | None) -> Tensor:
        if limit is None:
            return x
        shape = (1,) * self.rank(x)
        low = self.binary(
            f"{name}_min", "min", x, self.constant(f"{name}_most", np.full(shape, limit))
        )
        return self.binary(name, "max", low, self.constant(f"{name}_least", np.full(shape, -limit)))

    @abstractmethod
    def rank(self, x: Tensor) -> int: ...

    def row(self, name: str, array: NDArray[Any], like: Tensor) -> Tensor:
        """[N] as a constant that broadcasts along the last axis of `like`."""
        return self.constant(name, array.reshape((1,) * (self.rank(like) - 1) + (-1,)))

    def normalized(self, name: str, x: Tensor, scale: Array) -> Tensor:
        """(x - mean) / sqrt(variance + ε) · scale, over the last axis: Ba et al. 2016."""
        centered = self.binary(f"{name}_centered", "sub", x, self.mean(f"{name}_mean", x))
        squared = self.binary(f"{name}_squared", "mul", centered, centered)
        epsilon = self.constant(f"{name}_epsilon", np.full((1,) * self.rank(x), EPSILON))
        variance = self.binary(
            f"{name}_variance", "add", self.mean(f"{name}_mean2", squared), epsilon
        )
        unit = self.binary(
            f"{name}_unit", "div", centered, self.sqrt(f"{name}_deviation", variance)
        )
        return self.binary(name, "mul", unit, self.row(f"{name}_scale", scale, x))


@dataclass(frozen=True)
class Recurrence:
    """One direction of one layer: its own arrays by their names without suffix, and its
    activations.
    """

    layer: Layer
    arrays: Mapping[str, Array]
    activations: tuple[Activation, ...]

    @property
    def hoisted_bias(self) -> Array | None:
        """[G·H]: both biases, but for a GRU that resets after the product, whose bias_hh is reset
        too.
        """
        if not self.layer.bias:
            return None
        inside = self.layer.cell == "gru" and self.layer.reset == "after"
        bias = self.arrays["bias_ih"].astype(np.float64)
        return (bias if inside else bias + self.arrays["bias_hh"]).astype(np.float32)


def project(ops: Ops, rec: Recurrence, x: Tensor) -> Tensor:
    """x [B, T, I] → x @ W.T + b [B, T, G·H], for all steps at once, before the loop."""
    layer = rec.layer
    # SKIP mode has no W: every gate reads x itself.
    w = (
        np.tile(np.eye(layer.hidden_size, dtype=np.float32), (len(layer.gates), 1))
        if layer.skip_input
        else rec.arrays["weight_ih"]
    )
    xw = ops.product("x_w", x, w.T)
    if layer.layer_norm:
        xw = ops.normalized("x_w_norm", xw, rec.arrays["weight_ln_ih"])
    bias = rec.hoisted_bias
    return xw if bias is None else ops.binary("x_w_b", "add", xw, ops.row("b", bias, xw))


def step(ops: Ops, rec: Recurrence, xw: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """xw [B, G·H], h [B, P], c [B, H] → the next h and c."""
    return {"rnn": rnn_step, "gru": gru_step, "lstm": lstm_step}[rec.layer.cell](
        ops, rec, xw, state
    )


def rnn_step(ops: Ops, rec: Recurrence, xw: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """h = f(xw + h @ R.T)                                 # [B, H]"""
    z = ops.binary("sum", "add", xw, ops.product("h_r", state["h"], rec.arrays["weight_hh"].T))
    return {"h": ops.activate("h", rec.activations[0], ops.clip("clip", z, rec.layer.clip))}


def gru_step(ops: Ops, rec: Recurrence, xw: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """r, z = f(xw[rz] + h @ R[rz].T)                      # each [B, H]
    n = g(xw[n] + r * (h @ R[n].T + d[n]))                 # [B, H], reset after the product
    n = g(xw[n] + (r * h) @ R[n].T)                        # [B, H], reset before it
    h = (1 - z) * n + z * h                                # [B, H]"""
    layer, h = rec.layer, state["h"]
    size, r_t = layer.hidden_size, rec.arrays["weight_hh"].T
    x = ops.split("x", xw, "rzn", size)
    if layer.reset == "after":
        hr = ops.product("h_r", h, r_t)
        if layer.bias:
            hr = ops.binary("h_r_d", "add", hr, ops.row("d", rec.arrays["bias_hh"], hr))
        from_h = ops.split("from_h", hr, "rzn", size)
    else:
        from_h = ops.split("from_h", ops.product("h_r", h, r_t[:, : 2 * size]), "rz", size)

    def gate(name: str, activation: Activation, recurrent: Tensor) -> Tensor:
        z = ops.binary(f"sum_{name}", "add", x[name], recurrent)
        return ops.activate(f"gate_{name}", activation, ops.clip(f"clip_{name}", z, layer.clip))

    f, g = rec.activations
    r, z = gate("r", f, from_h["r"]), gate("z", f, from_h["z"])
    if layer.reset == "after":
        reset = ops.binary("reset", "mul", r, from_h["n"])
    else:
        reset = ops.product("reset_r", ops.binary("reset", "mul", r, h), r_t[:, 2 * size :])
    n = gate("n", g, reset)
    new = ops.binary(
        "new", "mul", ops.binary("1_z", "sub", ops.constant("one", np.ones((1, 1))), z), n
    )
    return {"h": ops.binary("h", "add", new, ops.binary("kept", "mul", z, h))}


def lstm_step(ops: Ops, rec: Recurrence, xw: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """i, f, g, o = split(xw + h @ R.T, 4)                 # each [B, H]
    c = sigmoid(f + p_f * c) * c + sigmoid(i + p_i * c) * tanh(g)      # [B, H]; peepholes p
    h = sigmoid(o + p_o * c) * tanh(c)                     # [B, H]
    h = h @ V.T                                            # [B, P], projection"""
    layer, c = rec.layer, state["c"]
    size, (f_act, g_act, h_act) = layer.hidden_size, rec.activations
    hr = ops.product("h_r", state["h"], rec.arrays["weight_hh"].T)
    if layer.layer_norm:
        hr = ops.normalized("h_r_norm", hr, rec.arrays["weight_ln_hh"])
    z = ops.split("z", ops.binary("sum", "add", xw, hr), layer.gates, size)
    peephole = (
        dict(zip("ifo", np.split(rec.arrays["weight_p"], 3), strict=True))
        if layer.peepholes
        else {}
    )

    def gate(name: str, activation: Activation, seen: Tensor) -> Tensor:
        x = z[name]
        if name in peephole:
            p = ops.binary(f"p_{name}_c", "mul", ops.row(f"p_{name}", peephole[name], seen), seen)
            x = ops.binary(f"sum_{name}", "add", x, p)
        return ops.activate(f"gate_{name}", activation, ops.clip(f"clip_{name}", x, layer.clip))

    i = gate("i", f_act, c)
    if layer.coupled:
        f = ops.binary("gate_f", "sub", ops.constant("one", np.ones((1, 1))), i)
    else:
        f = gate("f", f_act, c)
    kept = ops.binary("forget", "mul", f, c)
    c = ops.binary("c_sum", "add", kept, ops.binary("add", "mul", i, gate("g", g_act, c)))
    c = ops.clip("c_clip", c, layer.cell_clip)
    o = gate("o", f_act, c)
    seen = c
    if layer.layer_norm:
        seen = ops.normalized("c_norm", c, rec.arrays["weight_ln_c"])
        seen = ops.binary(
            "c_norm_shifted", "add", seen, ops.row("c_norm_shift", rec.arrays["bias_ln_c"], seen)
        )
    h = ops.binary("h", "mul", o, ops.activate("act_c", h_act, seen))
    if layer.proj_size:
        h = ops.product("projection", h, rec.arrays["weight_hr"].T)
    return {"h": h, "c": c}


def merge(ops: Ops, layer: Layer, halves: list[Tensor]) -> list[Tensor]:
    """Each direction's output [B, T, P] → the layer's one, or two with merge = "none"."""
    if len(halves) == 1 or layer.merge == "none":
        return halves
    if layer.merge == "concat":
        return [ops.concatenate("merge", halves, 2)]
    joined = ops.binary("merge", "mul" if layer.merge == "mul" else "add", *halves)
    if layer.merge == "average":
        half = ops.constant("half", np.full((1, 1, 1), 0.5))
        joined = ops.binary("merge_half", "mul", joined, half)
    return [joined]


def linear(ops: Ops, head: Head, weights: Mapping[str, Array], y: Tensor) -> Tensor:
    """y [..., F] → activation(y @ W.T + b) [..., size]"""
    z = ops.product("y_w", y, weights["head.weight"].T)
    if head.bias:
        z = ops.binary("y_w_b", "add", z, ops.row("b", weights["head.bias"], z))
    if head.activation == "sigmoid":
        return ops.activate("sigmoid", Activation("sigmoid"), z)
    return ops.softmax("softmax", z) if head.activation == "softmax" else z


def recurrences(layer: Layer, k: int, weights: Mapping[str, Array]) -> dict[str, Recurrence]:
    """Direction → Recurrence of layer k, its arrays without their suffix."""
    names = layer_shapes(layer, 1)
    return {
        direction: Recurrence(
            layer,
            {name: weights[f"{name}_{suffix(k, direction)}"] for name in names},
            layer.activations_of(direction),
        )
        for direction in layer.directions
    }
