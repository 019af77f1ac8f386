"""Graph: ONNX's operators behind the operations of cells.py, for the main graph and for the body of
a Scan.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from looprnn.cells import Array, Ops, Tensor
from looprnn.spec import Activation

OPERATIONS = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "min": "Min", "max": "Max"}
# kind → operator and the attributes it takes
ACTIVATIONS = {
    "tanh": ("Tanh", ()),
    "relu": ("Relu", ()),
    "sigmoid": ("Sigmoid", ()),
    "softsign": ("Softsign", ()),
    "softplus": ("Softplus", ()),
    "hard_sigmoid": ("HardSigmoid", ("alpha", "beta")),
    "leaky_relu": ("LeakyRelu", ("alpha",)),
    "elu": ("Elu", ("alpha",)),
    "thresholded_relu": ("ThresholdedRelu", ("alpha",)),
    "scaled_tanh": ("ScaledTanh", ("alpha", "beta")),
    "affine": ("Affine", ("alpha", "beta")),
}


class Graph(Ops):
    """Nodes and constants under construction. A tensor is its name; ranks are remembered beside
    it.
    """

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []
        self._ranks: dict[str, int] = {}

    def path(self, name: str) -> str:
        return f"{self.where}/{name}" if self.where else name

    def known(self, name: str, rank: int) -> str:
        """Tell the rank of a tensor that is an input, or comes from an outer graph."""
        self._ranks[name] = rank
        return name

    def node(
        self, name: str, op: str, inputs: Sequence[str], rank: int | None = None, **attributes: Any
    ) -> str:
        """One node with one output, of the rank of its first input unless told."""
        path = self.path(name)
        self.nodes.append(helper.make_node(op, inputs, [path], path, **attributes))
        return self.known(path, self._ranks[inputs[0]] if rank is None else rank)

    def raw(self, name: str, array: NDArray[Any]) -> str:
        """A constant of the array's own type."""
        path = self.path(name)
        self.constants.append(numpy_helper.from_array(np.array(array, order="C"), path))
        return self.known(path, array.ndim)

    def rank(self, x: Tensor) -> int:
        return self._ranks[x]

    def constant(self, name: str, array: NDArray[Any]) -> Tensor:
        return self.raw(name, array.astype(np.float32))

    def product(self, name: str, x: Tensor, matrix: Array) -> Tensor:
        weight = self.constant(f"{name}_weight", matrix)
        return self.node(name, "MatMul", [x, weight])

    def binary(self, name: str, op: str, a: Tensor, b: Tensor) -> Tensor:
        return self.node(name, OPERATIONS[op], [a, b])

    def activate(self, name: str, activation: Activation, x: Tensor) -> Tensor:
        shape = (1,) * self.rank(x)

        def scaled(part: str, op: str, y: Tensor, value: float | None) -> Tensor:
            return self.binary(part, op, y, self.constant(f"{part}_by", np.full(shape, value)))

        if activation.kind == "affine":
            return scaled(
                name, "add", scaled(f"{name}_alpha", "mul", x, activation.alpha), activation.beta
            )
        if activation.kind == "scaled_tanh":
            inner = self.node(
                f"{name}_tanh", "Tanh", [scaled(f"{name}_beta", "mul", x, activation.beta)]
            )
            return scaled(name, "mul", inner, activation.alpha)
        op, takes = ACTIVATIONS[activation.kind]
        attributes: dict[str, Any] = {a: float(getattr(activation, a)) for a in takes}
        return self.node(name, op, [x], **attributes)

    def mean(self, name: str, x: Tensor) -> Tensor:
        return self.node(name, "ReduceMean", [x], axes=[-1], keepdims=1)

    def sqrt(self, name: str, x: Tensor) -> Tensor:
        return self.node(name, "Sqrt", [x])

    def split(self, name: str, x: Tensor, parts: Sequence[str], size: int) -> dict[str, Tensor]:
        names = [self.path(f"{name}_{part}") for part in parts]
        sizes = self.raw(f"{name}_sizes", np.full(len(parts), size, np.int64))
        self.nodes.append(helper.make_node("Split", [x, sizes], names, self.path(name), axis=-1))
        return {part: self.known(n, self.rank(x)) for part, n in zip(parts, names, strict=True)}

    # What the layers around the cells need

    def transpose(self, name: str, x: Tensor, *axes: int) -> Tensor:
        return self.node(name, "Transpose", [x], perm=axes)

    def reshape(self, name: str, x: Tensor, *dims: int) -> Tensor:
        """0 copies an axis, -1 is what is left."""
        return self.node(
            name, "Reshape", [x, self.raw(f"{name}_dims", np.array(dims, np.int64))], len(dims)
        )

    def columns(self, name: str, x: Tensor, offset: int, size: int, whole: int) -> Tensor:
        """x [B, whole] → [B, size], from `offset` on."""
        if size == whole:
            return x
        begin, end, axis = (
            self.raw(f"{name}_{what}", np.array([value], np.int64))
            for what, value in (("begin", offset), ("end", offset + size), ("axis", 1))
        )
        return self.node(name, "Slice", [x, begin, end, axis])

    def unsqueeze(self, name: str, x: Tensor, axis: int) -> Tensor:
        at = self.raw(f"{name}_axis", np.array([axis], np.int64))
        return self.node(name, "Unsqueeze", [x, at], self.rank(x) + 1)

    def take(self, name: str, x: Tensor, index: int, axis: int) -> Tensor:
        """x without `axis`, at `index`."""
        at = self.raw(f"{name}_index", np.array(index, np.int64))
        return self.node(name, "Gather", [x, at], self.rank(x) - 1, axis=axis)

    def concatenate(self, name: str, parts: list[Tensor], axis: int) -> Tensor:
        return parts[0] if len(parts) == 1 else self.node(name, "Concat", parts, axis=axis)

    def softmax(self, name: str, x: Tensor) -> Tensor:
        return self.node(name, "Softmax", [x], axis=-1)

    def select(self, name: str, condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
        return self.node(name, "Where", [condition, yes, no], self.rank(yes))

    def zero(self, name: str) -> Tensor:
        return self.raw(f"{name}_zero", np.zeros((), np.float32))

    def make(
        self, name: str, inputs: Sequence[ValueInfoProto], outputs: Sequence[ValueInfoProto]
    ) -> GraphProto:
        """The finished graph."""
        return helper.make_graph(self.nodes, name, inputs, outputs, self.constants)


def value(name: str, kind: int, shape: Sequence[str | int | None] | None) -> ValueInfoProto:
    """An input or output of a graph; None stands for an unknown size."""
    return helper.make_tensor_value_info(name, kind, shape)
