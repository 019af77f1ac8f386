"""The layers that calculate, for the table in interpreter_layers.py; from TensorRT's words too.

Results are calculated in float32 and rounded once, to the type of the inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from interpreter_values import FLOATS, masked_axes, one_type, require, store


def elementwise(trt, layer, inputs):
    """Equal ranks; a dimension of 1 is stretched. Integer DIV drops the fraction, as in C."""
    op, type_, (a, b) = layer.op.name, one_type(*inputs), (x.wide for x in inputs)
    require(a.ndim == b.ndim, f"ranks differ: {inputs[0]} and {inputs[1]}")
    if op in COMPARISONS:
        return store(COMPARISONS[op](a, b), "BOOL")
    if type_ in ("INT32", "INT64"):
        require(op != "POW", "POW of integers is not modelled")
        require("DIV" not in op or (b != 0).all(), f"integer {op} by zero")
        if op == "DIV":
            return store(np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b)), type_)
    return store(ARITHMETIC[op](a, b), type_)


COMPARISONS = {
    "EQUAL": np.equal,
    "GREATER": np.greater,
    "LESS": np.less,
    "AND": np.logical_and,
    "OR": np.logical_or,
    "XOR": np.logical_xor,
}
ARITHMETIC = {
    "SUM": np.add,
    "SUB": np.subtract,
    "PROD": np.multiply,
    "DIV": np.divide,
    "MAX": np.maximum,
    "MIN": np.minimum,
    "POW": np.power,
    "FLOOR_DIV": lambda a, b: a // b if a.dtype.kind == "i" else np.floor(a / b),
}


def erf(x):
    return np.vectorize(math.erf, otypes=[np.float64])(x)


def unary(trt, layer, inputs):
    op, x = layer.op.name, inputs[0]
    if op in ("ISNAN", "ISINF", "NOT"):
        return store(
            {"ISNAN": np.isnan, "ISINF": np.isinf, "NOT": np.logical_not}[op](x.wide), "BOOL"
        )
    require(x.type in FLOATS or op in ("ABS", "NEG", "SIGN"), f"{op} of {x} is not modelled")
    return store(UNARY[op](x.wide), x.type)


UNARY = {
    "EXP": np.exp,
    "LOG": np.log,
    "SQRT": np.sqrt,
    "RECIP": lambda x: 1 / x,
    "ABS": np.abs,
    "NEG": np.negative,
    "SIN": np.sin,
    "COS": np.cos,
    "TAN": np.tan,
    "SINH": np.sinh,
    "COSH": np.cosh,
    "ASIN": np.arcsin,
    "ACOS": np.arccos,
    "ATAN": np.arctan,
    "ASINH": np.arcsinh,
    "ACOSH": np.arccosh,
    "ATANH": np.arctanh,
    "CEIL": np.ceil,
    "FLOOR": np.floor,
    "ERF": erf,
    "SIGN": np.sign,
    "ROUND": np.rint,
}


def activation(trt, layer, inputs):
    kind, x = layer.type.name, inputs[0]  # IActivationLayer.type is the function
    require(x.type in FLOATS, f"{kind} of {x} is not modelled")
    return store(ACTIVATION[kind](x.wide, layer.alpha, layer.beta), x.type)


ACTIVATION: dict[str, Callable] = {
    "RELU": lambda x, a, b: np.maximum(x, 0),
    "SIGMOID": lambda x, a, b: 1 / (1 + np.exp(-x)),
    "TANH": lambda x, a, b: np.tanh(x),
    "LEAKY_RELU": lambda x, a, b: np.where(x >= 0, x, a * x),
    "ELU": lambda x, a, b: np.where(x >= 0, x, a * np.expm1(x)),
    "SELU": lambda x, a, b: b * np.where(x > 0, x, a * np.expm1(x)),
    "SOFTSIGN": lambda x, a, b: x / (1 + np.abs(x)),
    "SOFTPLUS": lambda x, a, b: a * np.logaddexp(b * x, 0),
    "CLIP": lambda x, a, b: np.maximum(a, np.minimum(b, x)),
    "HARD_SIGMOID": lambda x, a, b: np.maximum(0, np.minimum(1, a * x + b)),
    "SCALED_TANH": lambda x, a, b: a * np.tanh(b * x),
    "THRESHOLDED_RELU": lambda x, a, b: np.where(x > a, x, 0),
    "GELU_ERF": lambda x, a, b: 0.5 * x * (1 + erf(math.sqrt(0.5) * x)),
    "GELU_TANH": lambda x, a, b: (
        0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (0.044715 * x**3 + x)))
    ),
}


def matrix_multiply(trt, layer, inputs):
    """A VECTOR is a row on the left and a column on the right; batch axes of 1 are stretched."""
    type_, vector = one_type(*inputs), trt.MatrixOperation.VECTOR
    a, b = (x.wide for x in inputs)
    a = a[..., None, :] if layer.op0 == vector else a
    b = b[..., :, None] if layer.op1 == vector else b
    require(a.ndim == b.ndim >= 2, f"batch axes differ: {inputs[0]} and {inputs[1]}")
    a = a.swapaxes(-1, -2) if layer.op0 == trt.MatrixOperation.TRANSPOSE else a
    b = b.swapaxes(-1, -2) if layer.op1 == trt.MatrixOperation.TRANSPOSE else b
    product = a @ b
    product = product[..., 0] if layer.op1 == vector else product
    if layer.op0 == vector:
        product = product.squeeze(product.ndim - (1 if layer.op1 == vector else 2))
    return store(product, type_)


def reduce(trt, layer, inputs):
    x, op = inputs[0], layer.op.name
    functions = {"SUM": np.sum, "PROD": np.prod, "MAX": np.max, "MIN": np.min, "AVG": np.mean}
    require(op in functions and (op != "AVG" or x.type in FLOATS), f"{op} of {x} is not modelled")
    axes = masked_axes(layer.axes, x.array.ndim)
    return store(functions[op](x.wide, axis=axes, keepdims=layer.keep_dims), x.type)


def softmax(trt, layer, inputs):
    axes = masked_axes(layer.axes, inputs[0].array.ndim)
    require(len(axes) == 1, f"softmax over axes {axes}: TensorRT takes one")
    powers = np.exp(inputs[0].wide - inputs[0].wide.max(axes, keepdims=True))
    return store(powers / powers.sum(axes, keepdims=True), inputs[0].type)


def normalization(trt, layer, inputs):
    """(x - mean) / sqrt(variance + epsilon) · scale + bias, both over the masked axes."""
    type_, (x, scale, bias) = one_type(*inputs), (v.wide for v in inputs)
    require(layer.num_groups == 1, f"{layer.num_groups} groups are not modelled")
    require(x.ndim == scale.ndim == bias.ndim, "ranks of input, scale and bias differ")
    axes = masked_axes(layer.axes, x.ndim)
    centred = x - x.mean(axes, keepdims=True)
    variance = (centred**2).mean(axes, keepdims=True)
    return store(centred / np.sqrt(variance + np.float32(layer.epsilon)) * scale + bias, type_)
