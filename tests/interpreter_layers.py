"""What one TensorRT layer computes, in NumPy: the table LAYERS, read by interpreter.py.

Written from TensorRT's documentation of each layer and from what its builder was seen to refuse,
never from the code that builds the networks. Every function takes (trt, layer, inputs), where
inputs[i] is the Value of the layer's input i or None, and returns the Value of output 0. What is
not modelled raises.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from interpreter_math import (
    activation,
    elementwise,
    matrix_multiply,
    normalization,
    reduce,
    softmax,
    unary,
)
from interpreter_values import (
    NUMPY,
    InterpreterError,
    Value,
    integers,
    one_type,
    require,
    store,
)


def constant(trt, layer, inputs):
    weights, type_ = layer.weights, layer.get_output(0).dtype.name
    require(
        isinstance(weights, np.ndarray) and type_ in NUMPY,
        f"weights of type {type_} do not read back as an array",
    )
    for known, dtype in NUMPY.items():  # the type comes from the weights themselves
        if known != "BF16" and weights.dtype == dtype:
            return Value(weights.reshape(tuple(layer.shape)).copy(), known)
    raise InterpreterError(f"weights of NumPy type {weights.dtype} are not modelled")


def identity(trt, layer, inputs):
    return inputs[0]


def cast(trt, layer, inputs):
    """Float to integer drops the fraction; anything but zero is true."""
    x, to = inputs[0], layer.to_type.name
    require(to in NUMPY, f"cast to {to} is not modelled")
    if to in ("INT32", "INT64") and x.type != "BOOL":
        limit, whole = np.iinfo(NUMPY[to]), np.trunc(x.wide)
        inside = (whole >= limit.min) & (whole <= limit.max)
        inside &= whole < 2.0 ** (limit.bits - 1)  # float(max) rounds up to a value outside
        require(inside.all(), f"cast of {x} to {to}: a value is NaN or outside {to}")
    return store(x.wide, to)


def shape(trt, layer, inputs):
    return store(np.array(inputs[0].array.shape, np.int64), "INT64")


def shuffle(trt, layer, inputs):
    """Transpose, reshape, transpose; 0 copies a dimension of what is reshaped, -1 is inferred."""

    def permuted(array, permutation):
        order = list(permutation)[: array.ndim]  # TensorRT hands back all 8 entries
        require(sorted(order) == list(range(array.ndim)), f"{order} permutes no {array.ndim} axes")
        return array.transpose(order)

    array = permuted(inputs[0].array, layer.first_transpose)
    dims = (
        integers(inputs[1], "reshape dimensions", 1) if len(inputs) > 1 else layer.reshape_dims
    )  # None: no reshape
    if dims is not None:
        dims = list(dims)
        require(dims.count(-1) <= 1 and min(dims, default=0) >= -1, f"cannot reshape to {dims}")
        if layer.zero_is_placeholder:
            require(
                all(d or i < array.ndim for i, d in enumerate(dims)),
                f"0 in {dims} has no dimension to copy from {list(array.shape)}",
            )
            dims = [d or array.shape[i] for i, d in enumerate(dims)]
        array = array.reshape(dims)
    return Value(permuted(array, layer.second_transpose), inputs[0].type)


def squeeze(trt, layer, inputs):
    axes = integers(inputs[1], "axes", 1)
    return Value(np.squeeze(inputs[0].array, tuple(axes)), inputs[0].type)


def unsqueeze(trt, layer, inputs):
    axes = integers(inputs[1], "axes", 1)
    return Value(np.expand_dims(inputs[0].array, tuple(axes)), inputs[0].type)


def concatenation(trt, layer, inputs):
    return Value(np.concatenate([x.array for x in inputs], layer.axis), one_type(*inputs))


def gather(trt, layer, inputs):
    """ONNX's Gather, without its negative indices: TensorRT builds those, but promises nothing."""
    data, indices = inputs
    require(
        layer.mode == trt.GatherMode.DEFAULT and layer.num_elementwise_dims == 0,
        f"gather mode {layer.mode}, {layer.num_elementwise_dims} elementwise is not modelled",
    )
    integers(indices, "indices", indices.array.ndim)
    end = data.array.shape[layer.axis]
    require(
        ((indices.array >= 0) & (indices.array < end)).all(),
        f"index {indices.array.tolist()} outside 0..{end - 1} of axis {layer.axis}",
    )
    return Value(np.take(data.array, indices.array, layer.axis), data.type)


def slice_(trt, layer, inputs):
    require(
        layer.mode == trt.SampleMode.STRICT_BOUNDS and (len(inputs) < 5 or inputs[4] is None),
        f"slice mode {layer.mode} is not modelled",
    )

    def setting(name, index):  # an input wins over the attribute
        if index < len(inputs) and inputs[index] is not None:
            return integers(inputs[index], name, 1)
        dims = getattr(layer, name)
        return None if dims is None else list(dims)

    array, rank = inputs[0].array, inputs[0].array.ndim
    start, size, stride = (setting(n, i) for i, n in enumerate(("start", "shape", "stride"), 1))
    axes = setting("axes", 5)
    axes = list(range(rank)) if axes is None else [a + rank if a < 0 else a for a in axes]
    require(
        start is not None
        and size is not None
        and stride is not None
        and len(start) == len(size) == len(stride) == len(axes) == len(set(axes)),
        f"start {start}, size {size}, stride {stride} and axes {axes} do not agree",
    )
    for axis, first, count, step in zip(axes, start, size, stride, strict=True):
        end, last = array.shape[axis], first + (count - 1) * step
        require(
            count == 0 or (count > 0 and 0 <= first < end and 0 <= last < end),
            f"out of bounds: {count} from {first} by {step} on axis {axis} of length {end}",
        )
        array = np.take(array, first + step * np.arange(count), axis)
    return Value(array, inputs[0].type)


def select(trt, layer, inputs):
    condition, then, otherwise = inputs
    require(condition.type == "BOOL", f"condition must be BOOL, got {condition}")
    require(condition.array.ndim == then.array.ndim == otherwise.array.ndim, "ranks differ")
    return Value(np.where(condition.array, then.array, otherwise.array), one_type(then, otherwise))


def reverse_sequence(trt, layer, inputs):
    """In slice b of the batch axis, the first lengths[b] entries of the sequence are reversed."""
    batch, sequence = layer.batch_axis, layer.sequence_axis
    lengths = integers(inputs[1], "sequence lengths", 1)
    moved = np.moveaxis(inputs[0].array, (batch, sequence), (0, 1)).copy()
    require(
        len(lengths) == moved.shape[0] and all(0 <= n <= moved.shape[1] for n in lengths),
        f"lengths {lengths} do not fit batch {moved.shape[0]}, sequence {moved.shape[1]}",
    )
    for row, length in zip(moved, lengths, strict=True):
        row[:length] = row[:length][::-1].copy()
    return Value(np.moveaxis(moved, (0, 1), (batch, sequence)), inputs[0].type)


def fill(trt, layer, inputs):
    """LINSPACE: alpha + beta · index; as inputs, beta has one entry for each axis."""
    require(layer.operation == trt.FillOperation.LINSPACE, f"{layer.operation} is not modelled")
    dims, alpha, beta = (*inputs, None, None, None)[:3]
    dims = integers(dims, "shape", 1) if dims is not None else list(layer.shape)
    require((alpha is None) == (beta is None), "one of alpha and beta is an input, one is not")
    if alpha is None:
        require(len(dims) == 1, f"constant alpha and beta fill 1 axis, not {len(dims)}")
        return store(layer.alpha + layer.beta * np.arange(dims[0]), layer.to_type.name)
    require(
        alpha.array.ndim == 0 and beta.array.shape == (len(dims),),
        f"alpha must be 0-d and beta [{len(dims)}], got {alpha} and {beta}",
    )
    steps = np.tensordot(beta.array, np.indices(dims), 1)
    return store(alpha.array + steps, one_type(alpha, beta))


LAYERS: dict[str, tuple[str, Callable]] = {  # LayerType → class to read it with, function
    "CONSTANT": ("IConstantLayer", constant),
    "IDENTITY": ("IIdentityLayer", identity),
    "CAST": ("ICastLayer", cast),
    "SHAPE": ("IShapeLayer", shape),
    "SHUFFLE": ("IShuffleLayer", shuffle),
    "SQUEEZE": ("ISqueezeLayer", squeeze),
    "UNSQUEEZE": ("IUnsqueezeLayer", unsqueeze),
    "CONCATENATION": ("IConcatenationLayer", concatenation),
    "GATHER": ("IGatherLayer", gather),
    "SLICE": ("ISliceLayer", slice_),
    "ELEMENTWISE": ("IElementWiseLayer", elementwise),
    "UNARY": ("IUnaryLayer", unary),
    "ACTIVATION": ("IActivationLayer", activation),
    "MATRIX_MULTIPLY": ("IMatrixMultiplyLayer", matrix_multiply),
    "SELECT": ("ISelectLayer", select),
    "REDUCE": ("IReduceLayer", reduce),
    "SOFTMAX": ("ISoftMaxLayer", softmax),
    "NORMALIZATION": ("INormalizationLayer", normalization),
    "REVERSE_SEQUENCE": ("IReverseSequenceLayer", reverse_sequence),
    "FILL": ("IFillLayer", fill),
}
