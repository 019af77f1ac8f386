"""What the interpreter must refuse; where TensorRT can tell at build time, it must as well."""

from __future__ import annotations

import interpreter
import numpy as np
import pytest
from hand_built import (
    CONCATENATE,
    COUNT,
    DYNAMIC,
    H0,
    LAST,
    WHILE,
    LoopNet,
    Net,
    T,
    X,
    check,
    refused,
    trt,
)
from interpreter_values import Value


def test_a_recurrence_is_not_stretched():
    n = LoopNet(start=H0[:1])
    n.leave(n.h, LAST)
    refused(n, r"\[Recurrence\] \(RECURRENCE\): input 0 is FLOAT \[1, 5\].*FLOAT \[3, 5\]", x=X)


def test_a_recurrence_is_not_stretched_when_only_the_inputs_tell():
    n = LoopNet()  # the builder knows [-1, 5] alone
    n.leave(n.h, LAST)
    refused(n, "input 0 is", builder_too=False, x=X, h=H0[:1])


def test_a_recurrence_without_its_next_value():
    n = LoopNet()
    lone = n.loop.add_recurrence(n.constant(H0))
    n.leave(n.h, LAST).leave(lone.get_output(0), LAST, "lone")
    refused(n, r"\(RECURRENCE\) needs 2 inputs, has 1", x=X, h=H0)


def test_the_last_value_of_anything_but_a_recurrence():
    n = LoopNet()
    n.leave(n.new, LAST)
    refused(n, "LAST_VALUE takes a recurrence", x=X, h=H0)


def test_a_network_output_inside_a_loop():
    n = LoopNet()
    n.output(n.new)
    refused(n, "network output y is inside a loop", x=X, h=H0)


@pytest.mark.parametrize("limits", [(), (COUNT, COUNT)], ids=["none", "two"])
def test_the_number_of_trip_limits(limits):
    n = Net()
    x, loop = n.input("x", DYNAMIC), n.net.add_loop()
    trips = n.length(x)
    for kind in limits:
        loop.add_trip_limit(trips, kind)
    every = loop.add_loop_output(loop.add_iterator(x, 0, False).get_output(0), CONCATENATE, 0)
    every.set_input(1, trips)
    n.output(every.get_output(0))
    refused(n, "only one trip limit of kind COUNT", x=X)


def test_a_while_loop_is_not_modelled():
    n = LoopNet()
    n.loop.add_trip_limit(n.constant(np.array(True)), WHILE)
    n.leave(n.h, LAST)
    refused(n, "WHILE", builder_too=False, x=X, h=H0)


@pytest.mark.parametrize("trips", [np.int32([4]), np.float32(4), np.int32(-1)], ids=repr)
def test_an_impossible_trip_count(trips):
    n = LoopNet(trips=trips)
    n.leave(n.h, LAST)
    refused(n, r"\[TripLimit\].*trip count", builder_too=False, x=X, h=H0)


def test_more_trips_than_the_axis_has_entries():
    n = LoopNet(trips=np.int32(T + 1))
    n.leave(n.h, LAST)
    refused(n, r"\[Iterator\].*entry 4 is outside axis 0", builder_too=False, x=X, h=H0)


@pytest.mark.parametrize("reverse", [False, True])
def test_fewer_trips_than_entries_in_a_loop_that_concatenates(reverse):
    n = LoopNet(trips=np.int32(T - 1), reverse=reverse)
    n.leave(n.new, CONCATENATE)
    refused(n, r"\[Iterator\].*3 trips over axis 0 of FLOAT \[4, 3, 5\]", x=X, h=H0)


@pytest.mark.parametrize("length", [3, 5])
def test_a_length_that_is_not_the_trip_count(length):
    n = LoopNet()
    n.leave(n.new, CONCATENATE, length=n.constant(np.int32(length)))
    refused(n, f"length {length} is not the trip count 4", x=X, h=H0)


def test_a_concatenation_without_length():
    n = LoopNet()
    n.output(n.loop.add_loop_output(n.new, CONCATENATE, 0).get_output(0))
    refused(n, "CONCATENATE needs its length", x=X, h=H0)


def test_a_mix_of_two_loops():
    n = LoopNet()
    other = n.net.add_loop()
    other.add_trip_limit(n.trips, COUNT)
    mixed = n.sum(n.new, other.add_iterator(n.x, 0, True).get_output(0))
    n.leave(mixed, CONCATENATE)
    refused(n, "mixes values of two loops", x=X, h=H0)


def test_an_output_through_the_wrong_loop():
    n = LoopNet()
    n.loop = n.net.add_loop()
    n.loop.add_trip_limit(n.trips, COUNT)
    n.leave(n.new, CONCATENATE)
    refused(n, "takes its input from another loop", x=X, h=H0)


def test_nested_loops_are_not_modelled():
    n = LoopNet()
    inner = n.net.add_loop()
    inner.add_trip_limit(n.constant(np.int32(3)), COUNT)
    every = inner.add_loop_output(inner.add_iterator(n.new, 0, True).get_output(0), CONCATENATE, 0)
    every.set_input(1, n.constant(np.int32(3)))
    n.leave(every.get_output(0), CONCATENATE)
    refused(n, "nested loops are not modelled", builder_too=False, x=X, h=H0)


def test_layers_that_are_not_modelled():
    n = Net()
    n.output(n.net.add_topk(n.input("x", DYNAMIC), trt.TopKOperation.MAX, 2, 1).get_output(0))
    refused(n, r"\[TopK\] \(TOPK\) is not modelled", builder_too=False, x=X)
    n = Net()  # nothing needs an assertion, yet it can fail
    n.net.add_assertion(n.input("ok", (1,), trt.bool), "no")
    n.output(n.net.add_identity(n.input("x", DYNAMIC)).get_output(0))
    refused(n, r"\(ASSERTION\) is not modelled", builder_too=False, ok=np.array([True]), x=X)


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"x": X}, "wanted"),
        ({"x": X, "h": H0, "z": H0}, "wanted"),
        ({"x": X, "h": H0.astype(np.float64)}, "input h: got float64, wanted FLOAT"),
        ({"x": X, "h": H0[0]}, r"input h: computed FLOAT \[5\]"),
        ({"x": X[:, :, :4].copy(), "h": H0}, r"input x: .*FLOAT \[-1, -1, 5\]"),
        ({"x": X, "h": H0[:2]}, "ELEMENTWISE"),
    ],
    ids=["missing", "unknown", "type", "rank", "dimension", "batch"],
)
def test_inputs_that_do_not_fit(inputs, words):
    n = LoopNet()
    n.leave(n.h, LAST)
    refused(n, words, builder_too=False, **inputs)


def test_dimensions_of_one_name_are_equal():
    n = Net()
    a, b = n.input("a", (-1,)), n.input("b", (1,))
    for tensor in (a, b):
        tensor.set_dimension_name(0, "batch")
    n.output(n.sum(a, b))
    one = np.ones(1, np.float32)
    check(n.run(a=one, b=one)["y"], one + one)
    refused(
        n, "dimension batch is 3, but 1 in b", builder_too=False, a=np.ones(3, np.float32), b=one
    )


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda v: v.astype(np.int32), "computed INT32"),
        (lambda v: v[:1], r"computed FLOAT \[1, 5\]"),
        (lambda v: v[None], r"computed FLOAT \[1, 3, 5\]"),
    ],
    ids=["type", "dimension", "rank"],
)
def test_what_tensorrt_does_not_say_is_noticed(monkeypatch, wrong, words):
    def identity(trt, layer, inputs):
        array = wrong(inputs[0].array)
        return Value(array, "INT32" if array.dtype == np.int32 else "FLOAT")

    n = Net()
    n.output(n.net.add_identity(n.input("x", (3, 5))).get_output(0))
    monkeypatch.setitem(interpreter.LAYERS, "IDENTITY", ("IIdentityLayer", identity))
    refused(
        n,
        rf"\[Identity\] \(IDENTITY\): {words}.* but TensorRT says FLOAT \[3, 5\]",
        builder_too=False,
        x=H0,
    )
