"""Every layer that the interpreter models against hand-worked NumPy, with dynamic dimensions."""

from __future__ import annotations

import numpy as np
import pytest
from hand_built import (
    FLOAT,
    INT32,
    Net,
    X,
    check,
    configured,
    f32,
    one_layer,
    trt,
)
from interpreter import InterpreterError

E, U, A, M = (trt.ElementWiseOperation, trt.UnaryOperation, trt.ActivationType, trt.MatrixOperation)


@pytest.mark.parametrize(
    "value",
    [
        np.float32(2.5),
        np.arange(6, dtype=np.int32).reshape(2, 3),
        np.float16([[1], [2]]),
        np.int64(7),
        np.array([True, False]),
    ],
    ids=lambda v: f"{v.dtype}{v.shape}",
)
def test_constant(value):
    got = one_layer(lambda n: n.net.add_identity(n.constant(value)))
    check(got, value)


def test_shape_is_int64():
    check(one_layer(lambda n, x: n.net.add_shape(x), X), np.array([4, 3, 5], np.int64))


@pytest.mark.parametrize(
    ("attributes", "want"),
    [
        ({}, X),
        ({"first_transpose": (1, 0, 2)}, X.transpose(1, 0, 2)),
        ({"second_transpose": (2, 0, 1)}, X.transpose(2, 0, 1)),
        ({"reshape_dims": (0, -1)}, X.reshape(4, 15)),
        (
            {"reshape_dims": (5, 0, 4), "second_transpose": (1, 2, 0)},
            X.reshape(5, 3, 4).transpose(1, 2, 0),
        ),
        (
            {"first_transpose": (2, 0, 1), "reshape_dims": (0, -1)},  # 0 copies the 5, not the 4
            X.transpose(2, 0, 1).reshape(5, 12),
        ),
    ],
    ids=str,
)
def test_shuffle(attributes, want):
    check(one_layer(lambda n, x: configured(n.net.add_shuffle(x), **attributes), X), want)


def test_shuffle_by_an_input():
    def add(n, x, dims):
        layer = configured(n.net.add_shuffle(x), first_transpose=(1, 0, 2))
        layer.set_input(1, dims)
        return layer

    n = Net()
    n.output(add(n, n.input("x", (-1, -1, -1)), n.constant(np.int64([0, -1]))).get_output(0))
    check(n.run(x=X)["y"], X.transpose(1, 0, 2).reshape(3, 20))


def test_shuffle_to_and_from_a_scalar():
    n = Net()
    scalar = configured(n.net.add_shuffle(n.input("x", (1, 1))), reshape_dims=()).get_output(0)
    n.output(scalar, "scalar")
    n.output(configured(n.net.add_shuffle(scalar), reshape_dims=(1,)).get_output(0))
    got = n.run(x=np.full((1, 1), 3, np.float32))
    check(got["scalar"], np.float32(3))
    check(got["y"], f32(3))


def test_squeeze_and_unsqueeze():
    check(
        one_layer(lambda n, x: n.net.add_unsqueeze(x, n.constant(np.int64([-1, 1]))), X),
        X[:, None, :, :, None],
    )
    check(
        one_layer(lambda n, x: n.net.add_squeeze(x, n.constant(np.int64([1]))), X[:, :1]), X[:, 0]
    )


@pytest.mark.parametrize("indices", [np.int32(2), np.int64([1]), np.int32([[2, 0, 1, 1]])], ids=str)
def test_gather(indices):
    check(
        one_layer(lambda n, x: n.net.add_gather(x, n.constant(indices), 1), X),
        np.take(X, indices, 1),
    )


@pytest.mark.parametrize("index", [-1, 3])
def test_gather_outside(index):
    with pytest.raises(InterpreterError, match=r"\[Gather\] \(GATHER\).*outside 0\.\.2"):
        one_layer(lambda n, x: n.net.add_gather(x, n.constant(np.int32(index)), 1), X)


def test_gather_modes_are_not_modelled():
    with pytest.raises(InterpreterError, match="ELEMENT"):
        one_layer(
            lambda n, x, i: n.net.add_gather_v2(x, i, trt.GatherMode.ELEMENT),
            X,
            np.zeros((4, 3, 5), np.int32),
        )


@pytest.mark.parametrize(
    ("start", "size", "stride", "want"),
    [
        ((1, 0, 2), (2, 3, 3), (1, 1, 1), X[1:3, :, 2:5]),
        ((3, 2, 0), (4, 2, 3), (-1, -2, 2), X[::-1, ::-2, ::2]),
        ((0, 0, 0), (0, 3, 5), (1, 1, 1), X[:0]),
    ],
    ids=["forward", "strides", "nothing"],
)
def test_slice(start, size, stride, want):
    check(one_layer(lambda n, x: n.net.add_slice(x, start, size, stride), X), want)

    def by_inputs(n, x):
        layer = n.net.add_slice(x, (0,) * 3, (1,) * 3, (1,) * 3)
        for index, dims in enumerate((start, size, stride), 1):
            layer.set_input(index, n.constant(np.int64(dims)))
        return layer

    check(one_layer(by_inputs, X), want)


@pytest.mark.parametrize("axis", [1, -2])
def test_slice_of_one_axis(axis):
    check(
        one_layer(lambda n, x: configured(n.net.add_slice(x, (1,), (2,), (1,)), axes=(axis,)), X),
        X[:, 1:3],
    )


@pytest.mark.parametrize(
    ("start", "size", "stride"),
    [
        ((3, 0, 0), (2, 3, 5), (1, 1, 1)),
        ((-1, 0, 0), (1, 3, 5), (1, 1, 1)),
        ((0, 1, 0), (1, 3, 5), (1, -1, 1)),
        ((4, 0, 0), (1, 3, 5), (1, 1, 1)),
    ],
    ids=str,
)
def test_slice_out_of_bounds(start, size, stride):
    with pytest.raises(InterpreterError, match="out of bounds"):
        one_layer(lambda n, x: n.net.add_slice(x, start, size, stride), X)


def test_slice_modes_are_not_modelled():
    with pytest.raises(InterpreterError, match=r"CLAMP.* not modelled"):
        one_layer(
            lambda n, x: configured(
                n.net.add_slice(x, (0, 0, 0), (9, 3, 5), (1, 1, 1)), mode=trt.SampleMode.CLAMP
            ),
            X,
        )


def test_concatenation():
    check(
        one_layer(lambda n, a, b: configured(n.net.add_concatenation([a, b]), axis=1), X, X[:, :2]),
        np.concatenate([X, X[:, :2]], 1),
    )


def test_reverse_sequence():
    want = X.copy()
    want[:2, 1], want[:, 2] = X[1::-1, 1], X[::-1, 2]  # batch axis 1, rows of length 1, 2, 4
    check(one_layer(lambda n, x, s: n.net.add_reverse_sequence(x, s), X, np.int32([1, 2, 4])), want)
    got = one_layer(
        lambda n, x, s: configured(n.net.add_reverse_sequence(x, s), batch_axis=0, sequence_axis=1),
        X.swapaxes(0, 1).copy(),
        np.int32([1, 2, 4]),
    )
    check(got, want.swapaxes(0, 1))


@pytest.mark.parametrize("lengths", [[1, 2, 5], [-1, 2, 4], [1, 2, 3, 4]], ids=str)
def test_reverse_sequence_of_impossible_lengths(lengths):
    with pytest.raises(InterpreterError, match=r"\[ReverseSequence\].*lengths"):
        one_layer(lambda n, x, s: n.net.add_reverse_sequence(x, s), X, np.int32(lengths))


def test_fill_counts_the_steps_of_a_dynamic_length():
    n = Net()
    x = n.input("x", (-1, 3, 5))
    shape = n.net.add_slice(n.net.add_shape(x).get_output(0), (0,), (2,), (1,)).get_output(0)
    steps = n.net.add_fill((1,), trt.FillOperation.LINSPACE, INT32)
    for index, tensor in enumerate((shape, n.constant(np.int32(2)), n.constant(np.int32([10, 1])))):
        steps.set_input(index, tensor)
    n.output(steps.get_output(0))
    check(
        n.run(x=X)["y"],
        2 + 10 * np.arange(4, dtype=np.int32)[:, None] + np.arange(3, dtype=np.int32),
    )
    assert n.builds(x=X)


def test_fill_of_constants():
    def add(n):
        return configured(
            n.net.add_fill((3,), trt.FillOperation.LINSPACE, FLOAT), alpha=1.0, beta=0.5
        )

    check(one_layer(add), f32(1, 1.5, 2))
