"""Weights → the arrays that the kernels of one step read. G gates, D directions, Z = D.

A unit's gates lie side by side (rows of fused_persistent.projection_rows), and the K of every
product is padded with zeros to a multiple of 32. For layer k:

    l{k}.w      [D, H·G, K]  W, in the weights' type         l{k}.bias    [D, H·G] what x·W takes
    l{k}.r      [D, H·G, K]  R; a GRU that resets before:    l{k}.bias_n  [D, H]   GRU, inside r·
                r and z of each unit, then all n             l{k}.p       [D, 3·H] peepholes i f o
    l{k}.v      [D, P, K]    projection                      l{k}.ln_…    [D, …]   layer_norm's
and embedding [V, I], head.w [size, K], head.bias [size].
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from looprnn.cells import Recurrence, recurrences
from looprnn.engines.fused_persistent import fold_bias, projection_rows
from looprnn.engines.fused_source import WEIGHT
from looprnn.errors import EngineError
from looprnn.spec import Layer, RNNSpec
from looprnn.weights import Weights

Array = NDArray[Any]
KIND: Final = ("fp32", "fp16", "bf16")  # by fused_source.WEIGHT


def padded(size: int) -> int:
    """K as it lies in memory."""
    return -(-size // 32) * 32


def pack_weights(spec: RNNSpec, weights: Weights) -> dict[str, Array]:
    """Raises EngineError for a weight that half precision cannot hold."""
    found: dict[str, Array] = {}
    if spec.vocabulary:
        found["embedding"] = np.asarray(weights["embedding.weight"])
    for k, layer in enumerate(spec.layers):
        recs = recurrences(layer, k, weights)
        parts = [_recurrence(layer, rec, spec.layer_input(k)) for rec in recs.values()]
        found |= {f"l{k}.{name}": np.stack([p[name] for p in parts]) for name in parts[0]}
    if spec.head:
        found["head.w"] = np.asarray(weights["head.weight"])
        if spec.head.bias:
            found["head.bias"] = np.asarray(weights["head.bias"])
    products = ("w", "r", "v")
    return {
        name: narrowed(_pad(array), spec.precision, f"{spec.name}: {name}")
        if name.rpartition(".")[2] in products
        else np.ascontiguousarray(array, np.float32)
        for name, array in found.items()
    }


def _recurrence(layer: Layer, rec: Recurrence, inputs: int) -> dict[str, Array]:
    """One direction's arrays, in float32."""
    gates, hidden, arrays = len(layer.gates), layer.hidden_size, rec.arrays
    rows = projection_rows(gates, hidden)
    zeros = np.zeros(gates * hidden, np.float32)
    bias, bias_n = fold_bias(
        layer.cell, layer.reset, arrays.get("bias_ih", zeros), arrays.get("bias_hh", zeros)
    )
    # SKIP mode has no W: every gate reads x itself.
    eye = np.tile(np.eye(hidden, dtype=np.float32), (gates, 1))
    found = {"w": arrays.get("weight_ih", eye)[rows], "bias": bias[rows]}
    r = arrays["weight_hh"]
    if layer.cell == "gru" and layer.reset == "before":
        found["r"] = np.concatenate([r[: 2 * hidden][projection_rows(2, hidden)], r[2 * hidden :]])
    else:
        found["r"] = r[rows]
    if bias_n is not None:
        found["bias_n"] = bias_n
    if layer.proj_size:
        found["v"] = arrays["weight_hr"]
    if layer.peepholes:
        found["p"] = arrays["weight_p"]
    if layer.layer_norm:
        found["ln_w"], found["ln_r"] = arrays["weight_ln_ih"][rows], arrays["weight_ln_hh"][rows]
        found["ln_c"], found["ln_c_bias"] = arrays["weight_ln_c"], arrays["bias_ln_c"]
    assert found["w"].shape == (gates * hidden, inputs)
    return found


def _pad(array: Array) -> Array:
    """Zeros after the last axis, up to padded()."""
    extra = padded(array.shape[-1]) - array.shape[-1]
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, extra)])


def narrowed(array: Array, precision: str, what: str) -> Array:
    """float32 → the weights' type: float32, float16, or bfloat16's bits in uint16."""
    kind = KIND[WEIGHT[precision]]
    array = np.ascontiguousarray(array, np.float32)
    if kind == "fp32":
        return array
    if kind == "bf16":  # to the nearest, ties to even; finite weights near the end become Inf
        bits = array.view(np.uint32)
        half = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        fits = (half & 0x7F80) != 0x7F80
    else:
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        fits = np.isfinite(half)
    if not fits.all():
        worst = float(np.abs(array).max())
        raise EngineError(f"{what} holds {worst:g}, more than {kind} can. Set precision = 'fp32'")
    return half
