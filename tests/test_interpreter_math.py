"""Layers that calculate, in every type that the interpreter models, against hand-worked NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hand_built import (
    BF16,
    BOOL,
    FLOAT,
    HALF,
    INT32,
    INT64,
    X,
    check,
    configured,
    f32,
    one_layer,
    trt,
)
from interpreter import InterpreterError
from interpreter_values import round_to_bf16

E, U, A, M = (trt.ElementWiseOperation, trt.UnaryOperation, trt.ActivationType, trt.MatrixOperation)


COLUMN, ROW = f32([0.5], [-1.5], [2.0]), f32([2.0, -0.5, 1.5, 0.5])


@pytest.mark.parametrize(
    ("op", "want"),
    [
        (E.SUM, COLUMN + ROW),
        (E.SUB, COLUMN - ROW),
        (E.PROD, COLUMN * ROW),
        (E.DIV, COLUMN / ROW),
        (E.MAX, np.where(COLUMN > ROW, COLUMN, ROW)),
        (E.MIN, np.where(COLUMN < ROW, COLUMN, ROW)),
        (E.FLOOR_DIV, np.floor(COLUMN / ROW)),
        (E.GREATER, COLUMN > ROW),
        (E.LESS, COLUMN < ROW),
        (E.EQUAL, COLUMN == ROW),
    ],
    ids=str,
)
def test_elementwise_stretches_ones(op, want):
    check(one_layer(lambda n, a, b: n.net.add_elementwise(a, b, op), COLUMN, ROW), want)


def test_elementwise_power_and_logic():
    check(
        one_layer(lambda n, a, b: n.net.add_elementwise(a, b, E.POW), f32(4, 9), f32(0.5, 2)),
        f32(2, 81),
    )
    p, q = np.array([0, 0, 1, 1], bool), np.array([0, 1, 0, 1], bool)
    for op, want in (E.AND, p & q), (E.OR, p | q), (E.XOR, p ^ q):
        check(one_layer(lambda n, a, b, op=op: n.net.add_elementwise(a, b, op), p, q), want)


def test_integer_division_drops_the_fraction_and_floor_division_does_not():
    a, b = np.int32([7, -7, 7, -7]), np.int32([2, 2, -2, -2])
    check(
        one_layer(lambda n, a, b: n.net.add_elementwise(a, b, E.DIV), a, b),
        np.int32([3, -3, -3, 3]),
    )
    check(
        one_layer(lambda n, a, b: n.net.add_elementwise(a, b, E.FLOOR_DIV), a, b),
        np.int32([3, -4, -4, 3]),
    )
    with pytest.raises(InterpreterError, match="by zero"):
        one_layer(lambda n, a, b: n.net.add_elementwise(a, b, E.DIV), a, 0 * b)


@pytest.mark.parametrize(
    "others", [X[0], X[:, :2], X.astype(np.float16)], ids=["rank", "dimension", "type"]
)
def test_elementwise_of_unlike_tensors(others):
    with pytest.raises(InterpreterError, match=r"\[ElementWise\]"):
        one_layer(lambda n, a, b: n.net.add_elementwise(a, b, E.SUM), X, others)


@pytest.mark.parametrize(
    ("op", "f"),
    [
        (U.EXP, math.exp),
        (U.LOG, math.log),
        (U.SQRT, math.sqrt),
        (U.RECIP, lambda x: 1 / x),
        (U.ABS, abs),
        (U.NEG, lambda x: -x),
        (U.SIN, math.sin),
        (U.COS, math.cos),
        (U.TAN, math.tan),
        (U.SINH, math.sinh),
        (U.COSH, math.cosh),
        (U.ATAN, math.atan),
        (U.ASIN, math.asin),
        (U.ACOS, math.acos),
        (U.ASINH, math.asinh),
        (U.ATANH, math.atanh),
        (U.CEIL, math.ceil),
        (U.FLOOR, math.floor),
        (U.ERF, math.erf),
        (U.ROUND, round),
        (U.SIGN, lambda x: math.copysign(1, x)),
    ],
    ids=str,
)
def test_unary(op, f):
    x = f32(0.25, 0.5, 0.875)
    check(one_layer(lambda n, x: n.net.add_unary(x, op), x), f32(*map(f, x.tolist())))


def test_unary_of_the_rest():
    x = f32(1, np.nan, -np.inf)
    check(one_layer(lambda n, x: n.net.add_unary(x, U.ISNAN), x), np.array([0, 1, 0], bool))
    check(one_layer(lambda n, x: n.net.add_unary(x, U.ISINF), x), np.array([0, 0, 1], bool))
    check(one_layer(lambda n, x: n.net.add_unary(x, U.NOT), x > 0), ~(x > 0))
    check(one_layer(lambda n, x: n.net.add_unary(x, U.ACOSH), f32(3)), f32(math.acosh(3)))
    check(one_layer(lambda n, x: n.net.add_unary(x, U.SIGN), f32(-2, 0, 3)), f32(-1, 0, 1))


@pytest.mark.parametrize(
    ("kind", "f"),
    [  # alpha 0.75, beta 1.25
        (A.RELU, lambda x: max(x, 0)),
        (A.SIGMOID, lambda x: 1 / (1 + math.exp(-x))),
        (A.TANH, math.tanh),
        (A.LEAKY_RELU, lambda x: x if x >= 0 else 0.75 * x),
        (A.ELU, lambda x: x if x >= 0 else 0.75 * (math.exp(x) - 1)),
        (A.SELU, lambda x: 1.25 * (x if x > 0 else 0.75 * math.exp(x) - 0.75)),
        (A.SOFTSIGN, lambda x: x / (1 + abs(x))),
        (A.SOFTPLUS, lambda x: 0.75 * math.log(math.exp(1.25 * x) + 1)),
        (A.CLIP, lambda x: max(0.75, min(1.25, x))),
        (A.HARD_SIGMOID, lambda x: max(0, min(1, 0.75 * x + 1.25))),
        (A.SCALED_TANH, lambda x: 0.75 * math.tanh(1.25 * x)),
        (A.THRESHOLDED_RELU, lambda x: x if x > 0.75 else 0),
        (A.GELU_ERF, lambda x: 0.5 * x * (1 + math.erf(math.sqrt(0.5) * x))),
        (
            A.GELU_TANH,
            lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (0.044715 * x**3 + x))),
        ),
    ],
    ids=str,
)
def test_activation(kind, f):
    x = f32(-3, -1.5, -0.5, 0, 0.75, 1, 2.5)
    got = one_layer(
        lambda n, x: configured(n.net.add_activation(x, kind), alpha=0.75, beta=1.25), x
    )
    check(got, f32(*map(f, x.tolist())))


def test_sigmoid_of_large_numbers_neither_warns_nor_fails():
    check(one_layer(lambda n, x: n.net.add_activation(x, A.SIGMOID), f32(-1e4, 1e4)), f32(0, 1))


MATRIX, VECTORS = X[:, :, :2], X[:, 1, :]  # [4, 3, 2], [4, 5]


@pytest.mark.parametrize(
    ("a", "op0", "b", "op1", "want"),
    [
        (X, M.NONE, MATRIX, M.TRANSPOSE, None),
        (X, M.TRANSPOSE, MATRIX, M.NONE, np.einsum("tbh,tbk->thk", X, MATRIX)),
        (X, M.NONE, X[:1], M.TRANSPOSE, np.einsum("tbh,ch->tbc", X, X[0])),
        (X[:1], M.NONE, X, M.TRANSPOSE, np.einsum("bh,tch->tbc", X[0], X)),
        (X, M.NONE, VECTORS, M.VECTOR, np.einsum("tbh,th->tb", X, VECTORS)),
        (X[:, :, 0], M.VECTOR, X, M.NONE, np.einsum("tb,tbh->th", X[:, :, 0], X)),
        (VECTORS, M.VECTOR, VECTORS[:1], M.VECTOR, np.einsum("th,h->t", VECTORS, VECTORS[0])),
        (VECTORS[0], M.VECTOR, VECTORS[1], M.VECTOR, VECTORS[0] @ VECTORS[1]),
        (X, M.NONE, VECTORS[0], M.VECTOR, None),
        (X, M.NONE, X[0], M.TRANSPOSE, None),
    ],
    ids=[
        "inner",
        "left_transposed",
        "right_stretched",
        "left_stretched",
        "matrix_vector",
        "vector_matrix",
        "vector_vector",
        "dot",
        "vector_without_batch",
        "ranks",
    ],
)
def test_matrix_multiply(a, op0, b, op1, want):
    def add(n, a, b):
        return n.net.add_matrix_multiply(a, op0, b, op1)

    if want is None:
        with pytest.raises(InterpreterError, match=r"\[Matrix Multiply\]"):
            one_layer(add, a, b)
    else:
        check(one_layer(add, a, b), want)


def test_select_stretches_ones():
    rows = np.array([[[True], [False], [True]]])  # [1, 3, 1]
    check(
        one_layer(lambda n, c, a, b: n.net.add_select(c, a, b), rows, X, X[:1] * 0),
        np.where(rows, X, np.float32(0)),
    )
    with pytest.raises(InterpreterError, match=r"\[Select\]"):
        one_layer(lambda n, c, a, b: n.net.add_select(c, a, b), rows[0], X, X)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("op", ["SUM", "PROD", "MAX", "MIN", "AVG"])
def test_reduce(op, keep):
    numpy_op = {"AVG": "mean"}.get(op, op.lower())
    check(
        one_layer(
            lambda n, x: n.net.add_reduce(x, getattr(trt.ReduceOperation, op), 0b101, keep), X
        ),
        getattr(X, numpy_op)((0, 2), keepdims=keep),
    )


def test_softmax():
    powers = np.exp(X)
    check(
        one_layer(lambda n, x: configured(n.net.add_softmax(x), axes=0b010), X),
        powers / powers.sum(1, keepdims=True),
    )


def test_normalization():
    scale, bias = X[:1, :1], X[1:2, :1]  # [1, 1, 5]
    centred = X - X.mean(2, keepdims=True)
    want = centred / np.sqrt((centred**2).mean(2, keepdims=True) + np.float32(0.5)) * scale + bias
    check(
        one_layer(
            lambda n, x, s, b: configured(n.net.add_normalization_v2(x, s, b, 0b100), epsilon=0.5),
            X,
            scale,
            bias,
        ),
        want,
    )


# ---- types -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "to", "want"),
    [
        (f32(1.75, -1.75, 0), INT32, np.int32([1, -1, 0])),
        (f32(0.5, 0), BOOL, np.array([True, False])),
        (np.int64([2**31 - 1]), INT32, np.int32([2**31 - 1])),
        (np.int32([3]), FLOAT, f32(3)),
        (np.array([True, False]), INT64, np.int64([1, 0])),
        (f32(1 / 3), HALF, np.float16([1 / 3])),
        (f32(1 + 2**-8, 1 + 3 * 2**-8), BF16, f32(1, 1 + 2**-6)),
    ],
    ids=str,
)
def test_cast(x, to, want):
    check(one_layer(lambda n, x: n.net.add_cast(x, to), x), want, atol=0)


@pytest.mark.parametrize("value", [f32(np.nan), f32(3e9), np.int64([2**31])], ids=str)
def test_cast_outside_the_integers(value):
    with pytest.raises(InterpreterError, match="outside INT32"):
        one_layer(lambda n, x: n.net.add_cast(x, INT32), value)


def test_half_rounds_each_result_but_not_what_leads_to_it():
    x = np.linspace(-4, 4, 33, dtype=np.float16)
    want = np.float16(1 / (1 + np.exp(-x.astype(np.float32))))
    assert (want != 1 / (1 + np.exp(-x))).any()  # in half all the way, some last bits differ
    check(one_layer(lambda n, x: n.net.add_activation(x, A.SIGMOID), x), want, atol=0)
    a, b = np.float16([2048]), np.float16([1])
    check(one_layer(lambda n, a, b: n.net.add_elementwise(a, b, E.SUM), a, b), a, atol=0)


def test_bfloat16_is_float32_rounded_to_8_bits():
    a, b = f32(256), f32(1)
    check(
        one_layer(lambda n, a, b: n.net.add_elementwise(a, b, E.SUM), a, b, dtypes=[BF16, BF16]),
        f32(256),
        atol=0,
    )
    check(round_to_bf16(f32(257, 259, -np.inf, np.nan)), f32(256, 260, -np.inf, np.nan), atol=0)
    with pytest.raises(InterpreterError, match="values that BF16 does not"):
        one_layer(lambda n, x: n.net.add_identity(x), f32(257), dtypes=[BF16])
