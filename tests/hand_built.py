"""Small hand-built TensorRT networks, and the comparison, for the tests of the interpreter."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from interpreter import InterpreterError, run

trt = pytest.importorskip("tensorrt_rtx", reason="needs tensorrt_rtx, which builds without a GPU")
FLOAT, HALF, BF16, BOOL = trt.float32, trt.float16, trt.bfloat16, trt.bool
INT32, INT64 = trt.int32, trt.int64
COUNT, WHILE = trt.TripLimit.COUNT, trt.TripLimit.WHILE
LAST, CONCATENATE, REVERSE = (
    trt.LoopOutput.LAST_VALUE,
    trt.LoopOutput.CONCATENATE,
    trt.LoopOutput.REVERSE,
)
T, B, H = 4, 3, 5  # no two alike
random = np.random.default_rng(20)
X = random.standard_normal((T, B, H)).astype(np.float32)
H0 = random.standard_normal((B, H)).astype(np.float32)
DYNAMIC = (-1, -1, H)  # [T, B, H]


class Net:
    """A network under construction; keeps the arrays of its constants alive."""

    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)
    builder = trt.Builder(logger)

    def __init__(self):
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self.net, self.kept = self.builder.create_network(flags), []

    def input(self, name, shape, dtype=FLOAT):
        return self.net.add_input(name, dtype, shape)

    def constant(self, value):
        array = np.array(value, order="C")
        self.kept.append(array)
        return self.net.add_constant(array.shape, array).get_output(0)

    def length(self, tensor, axis=0):  # 0-d INT64
        shape = self.net.add_shape(tensor).get_output(0)
        return self.net.add_gather(shape, self.constant(np.int32(axis)), 0).get_output(0)

    def sum(self, a, b):
        return self.net.add_elementwise(a, b, trt.ElementWiseOperation.SUM).get_output(0)

    def output(self, tensor, name="y"):
        tensor.name = name
        assert tensor.name == name, f"{name} is taken"
        self.net.mark_output(tensor)

    def run(self, **inputs):
        return run(trt, self.net, inputs)

    def builds(self, **inputs):
        """Whether TensorRT's builder takes it, with a profile of exactly these shapes."""
        config = self.builder.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM86, 0)
        if any(-1 in tuple(self.net.get_input(i).shape) for i in range(self.net.num_inputs)):
            profile = self.builder.create_optimization_profile()
            for name, array in inputs.items():
                profile.set_shape(name, array.shape, array.shape, array.shape)
            config.add_optimization_profile(profile)
        return self.builder.build_serialized_network(self.net, config) is not None


class LoopNet(Net):
    """new = x[t] + h[t-1], over the first axis of a dynamic x; `outputs` adds what is asked for."""

    def __init__(self, *, axis=0, reverse=False, start=None, trips=None, shape=DYNAMIC):
        super().__init__()
        self.x = self.input("x", shape)
        self.trips = self.length(self.x, axis) if trips is None else self.constant(trips)
        self.loop = self.net.add_loop()
        self.loop.add_trip_limit(self.trips, COUNT)
        self.step = self.loop.add_iterator(self.x, axis, reverse).get_output(0)
        self.recurrence = self.loop.add_recurrence(
            self.input("h", (-1, 5)) if start is None else self.constant(start)
        )
        self.h = self.recurrence.get_output(0)
        self.new = self.sum(self.step, self.h)
        self.recurrence.set_input(1, self.new)

    def leave(self, tensor, kind, name="y", axis=0, length=None):
        out = self.loop.add_loop_output(tensor, kind, axis)
        if kind != LAST:
            out.set_input(1, self.trips if length is None else length)
        self.output(out.get_output(0), name)
        return self


def check(got, want, atol=1e-6):
    want = np.asarray(want)
    assert (got.shape, got.dtype) == (want.shape, want.dtype)
    np.testing.assert_allclose(got, want, rtol=0, atol=atol)


def refused(n, words, *, builder_too=True, **inputs):
    with pytest.raises(InterpreterError, match=words):
        n.run(**inputs)
    if builder_too:
        assert not n.builds(**inputs)


def one_layer(add: Callable, *arrays, dtypes=None):
    """The output of one layer whose inputs have only dynamic dimensions; `add(n, *tensors)`."""
    n = Net()
    kinds = {np.float32: FLOAT, np.float16: HALF, np.int32: INT32, np.int64: INT64, np.bool_: BOOL}
    dtypes = dtypes or [kinds[a.dtype.type] for a in arrays]
    tensors = [
        n.input(f"x{i}", (-1,) * a.ndim, d)
        for i, (a, d) in enumerate(zip(arrays, dtypes, strict=True))
    ]
    n.output(add(n, *tensors).get_output(0))
    feeds = {f"x{i}": a for i, a in enumerate(arrays)}
    return n.run(**feeds)["y"]


def configured(layer, **attributes):
    for name, value in attributes.items():
        setattr(layer, name, value)
    return layer


def f32(*values):
    return np.array(values, np.float32)
