"""Loops in the interpreter against loops in Python, and against what TensorRT's builder takes."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from hand_built import CONCATENATE, COUNT, H0, LAST, REVERSE, LoopNet, Net, X, check, trt

TESTS = Path(__file__).parent
M, RELU, TANH = trt.MatrixOperation, trt.ActivationType.RELU, trt.ActivationType.TANH
R = (0.3 * np.random.default_rng(21).standard_normal((5, 5))).astype(np.float32)  # [H, H]


def sums(x=X, h=H0):
    """h[t] for all t of the loop of LoopNet."""
    return np.stack([h := h + row for row in x])


def test_every_kind_of_output_of_one_loop():
    n = LoopNet()
    for tensor, name in (n.h, "old"), (n.new, "new"), (n.step, "x_t"):
        n.leave(tensor, CONCATENATE, name).leave(tensor, REVERSE, f"{name}_back")
    n.leave(n.h, LAST, "last")
    got, new = n.run(x=X, h=H0), sums()
    old = np.concatenate([H0[None], new[:-1]])  # the recurrence lags the body by one
    for name, want in ("new", new), ("old", old), ("x_t", X):
        check(got[name], want)
        check(got[f"{name}_back"], want[::-1])
    check(got["last"], new[-1])
    assert n.builds(x=X, h=H0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_axis_of_a_loop_output(axis):
    n = LoopNet()
    n.leave(n.new, CONCATENATE, axis=axis)
    check(n.run(x=X, h=H0)["y"], np.moveaxis(sums(), 0, axis))
    assert n.builds(x=X, h=H0)


def test_axis_of_an_iterator():
    n = LoopNet(axis=1)
    n.leave(n.h, LAST)
    check(n.run(x=X.swapaxes(0, 1).copy(), h=H0)["y"], sums()[-1])


def test_a_reversed_iterator():
    n = LoopNet(reverse=True)
    n.leave(n.step, CONCATENATE, "x_t").leave(n.new, CONCATENATE, "new")
    got = n.run(x=X, h=H0)
    check(got["x_t"], X[::-1])
    check(got["new"], sums(X[::-1]))
    assert n.builds(x=X, h=H0)


def test_a_reversed_iterator_counts_from_the_trip_count_not_from_the_end_of_the_axis():
    n = LoopNet(reverse=True, trips=np.int32(3))
    n.leave(n.h, LAST)
    check(n.run(x=X, h=H0)["y"], sums(X[2::-1])[-1])  # entries 2, 1, 0 of 4
    assert n.builds(x=X, h=H0)


@pytest.mark.parametrize("trips", [0, 1, 2])
def test_last_value_after_few_trips(trips):
    n = LoopNet(trips=np.int64(trips))
    n.leave(n.h, LAST)
    check(n.run(x=X, h=H0)["y"], H0 + X[:trips].sum(0))


def test_two_recurrences_change_at_once():
    n = LoopNet()
    other = n.loop.add_recurrence(n.constant(2 * H0))
    n.recurrence.set_input(1, other.get_output(0))
    other.set_input(1, n.h)  # swapped in each iteration
    n.leave(n.h, LAST, "last").leave(other.get_output(0), CONCATENATE, "other")
    got = n.run(x=X, h=H0)
    check(got["last"], H0)  # an even number of swaps
    check(got["other"], np.stack([2 * H0, H0, 2 * H0, H0]))


def test_one_loop_after_another():
    n = LoopNet()
    n.leave(n.new, CONCATENATE, "first")
    second = n.net.add_loop()
    second.name = n.loop.name  # loops may share a name
    second.add_trip_limit(n.trips, COUNT)
    step = second.add_iterator(n.net.get_output(0), 0, True).get_output(0)
    total = second.add_recurrence(n.constant(0 * H0))
    total.set_input(1, n.sum(step, n.sum(total.get_output(0), total.get_output(0))))
    n.output(second.add_loop_output(total.get_output(0), LAST, 0).get_output(0), "second")
    got, want = n.run(x=X, h=H0), 0 * H0
    for row in sums()[::-1]:
        want = row + 2 * want
    check(got["second"], want, atol=1e-5)
    assert n.builds(x=X, h=H0)


def test_a_tanh_rnn_with_an_invariant_in_the_body():
    n = LoopNet()
    product = n.net.add_matrix_multiply(n.h, M.NONE, n.constant(R), M.TRANSPOSE).get_output(0)
    new = n.net.add_activation(n.sum(n.step, product), TANH).get_output(0)
    n.recurrence.set_input(1, new)
    n.leave(new, CONCATENATE).leave(n.h, LAST, "h_n")
    h, want = H0.astype(np.float64), []
    for row in X.astype(np.float64):
        want.append(h := np.tanh(row + h @ R.T.astype(np.float64)))
    for _ in range(2):  # reading a network leaves it as it was
        got = n.run(x=X, h=H0)
        check(got["y"], np.float32(want))
        check(got["h_n"], np.float32(want[-1]))
    assert n.builds(x=X, h=H0)


def test_the_relu_rnn_whose_answer_is_known_by_heart():
    """Weights, input and first state of ones: 7 + 5·1 = 12, 7 + 5·12 = 67, then 342 and 1717."""
    n = Net()
    x = n.input("x", (1, 3, 4, 7))  # [1, B, T, I]
    steps = n.constant(np.int32(4))
    loop = n.net.add_loop()
    loop.add_trip_limit(steps, COUNT)
    step = loop.add_iterator(x, 2, False).get_output(0)  # [1, B, I]
    state = loop.add_recurrence(n.constant(np.ones((1, 3, 5), np.float32)))
    from_x = n.net.add_matrix_multiply(
        step, M.NONE, n.constant(np.ones((1, 7, 5), np.float32)), M.NONE
    ).get_output(0)
    from_h = n.net.add_matrix_multiply(
        state.get_output(0), M.NONE, n.constant(np.ones((1, 5, 5), np.float32)), M.NONE
    )
    bias = n.constant(np.zeros((1, 3, 5), np.float32))
    new = n.net.add_activation(n.sum(n.sum(from_x, from_h.get_output(0)), bias), RELU).get_output(0)
    state.set_input(1, new)
    last = loop.add_loop_output(state.get_output(0), LAST, 0)
    every = loop.add_loop_output(new, CONCATENATE, 1)
    every.set_input(1, steps)
    n.output(last.get_output(0), "h_n")
    back = n.net.add_shuffle(every.get_output(0))  # [1, T, B, H] → [1, B, T, H]
    back.first_transpose = (0, 2, 1, 3)
    n.output(back.get_output(0), "output")
    ones = np.ones((1, 3, 4, 7), np.float32)
    got, known = n.run(x=ones), np.float32([12, 67, 342, 1717])
    check(got["output"], np.broadcast_to(known[:, None], (1, 3, 4, 5)))
    check(got["h_n"], np.full((1, 3, 5), 1717, np.float32))
    assert n.builds(x=ones)


def test_a_layer_that_someone_else_has_open():
    n = Net()
    n.output(n.net.add_activation(n.input("x", (3, 5)), RELU).get_output(0))
    layer = n.net.get_layer(0)
    layer.__class__ = trt.IActivationLayer  # from here on its type is RELU, not ACTIVATION
    check(n.run(x=H0)["y"], np.maximum(H0, 0))


def test_the_interpreter_shares_nothing_with_the_product():
    allowed = {
        "__future__",
        "collections.abc",
        "dataclasses",
        "graphlib",
        "math",
        "numpy",
        "typing",
        "interpreter_layers",
        "interpreter_math",
        "interpreter_values",
    }
    for path in TESTS.glob("interpreter*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {a.name for n in nodes if isinstance(n, ast.Import) for a in n.names}
        names |= {n.module or "." for n in nodes if isinstance(n, ast.ImportFrom)}
        assert names <= allowed, path
