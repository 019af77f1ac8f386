"""The top-level graph of a .onnx file: nodes, constants, and where tensors come from."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
from onnx import AttributeProto, NodeProto, TensorProto

from looprnn.errors import WeightsError
from looprnn.importers import BYTES_MAX
from looprnn.importers.onnx_file import (
    STORED,
    Array,
    attributes,
    check_node,
    claim,
    decode,
    inner,
    is_op,
    parse,
)  # fmt: skip

CAST: Final = {kind: dtype for kind, (dtype, _) in STORED.items() if kind != TensorProto.BFLOAT16}
# What a node with impossible attributes or inputs makes Python and NumPy raise.
BAD_NODE: Final = (
    ValueError, IndexError, KeyError, TypeError, AttributeError, OverflowError,
)  # fmt: skip
# Of these, every element of the output is an element of the data inputs: all, or the first alone.
MOVES_ALL: Final = ("Concat",)
MOVES_FIRST: Final = (
    "Identity", "Cast", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice",
    "Expand", "Tile", "Gather", "Split",
)  # fmt: skip


class Graph:
    """The top-level graph of a file.

    nodes    in file order, which is an order of execution
    label    node → how to name it: its name, or its first output where that is missing or twice
    maker    tensor → the node that makes it;  readers  tensor → the nodes that read it
    inputs   the graph's inputs that are not constants
    """

    def __init__(self, path: Path) -> None:
        model = parse(path)
        self.path = path
        self.nodes = list(model.graph.node)
        self.opset = max((o.version for o in model.opset_import if not o.domain), default=1)
        self.outputs = [output.name for output in model.graph.output]
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.inputs = {i.name for i in model.graph.input} - self.initializers.keys()
        self.maker: dict[str, NodeProto] = {}
        self.readers: dict[str, list[NodeProto]] = {}
        self._order: dict[str, int] = {}
        self._foldable = set(self.initializers)
        self._folded: dict[str, Array] = {}
        self._model = model
        self._connect()
        stored = sum(claim(path, tensor) for tensor in self._tensors())
        if stored > BYTES_MAX:
            raise WeightsError(f"{path}: its constants claim {stored} bytes, at most {BYTES_MAX}")
        self._budget = 8 * stored + (1 << 20)  # what folding may hold: a Concat can double

    def _connect(self) -> None:
        known = {"", *self.inputs, *self.initializers}
        known |= {sparse.values.name for sparse in self._model.graph.sparse_initializer}
        self._names = Counter(node.name for node in self.nodes)
        for k, node in enumerate(self.nodes):
            check_node(self.path, node)
            for name in node.input:
                if name not in known:
                    raise WeightsError(
                        f"{self.path}: {node.op_type} {node.name or k!r} reads {name!r} before "
                        "anything makes it: the graph has a cycle, or its nodes are out of order"
                    )
                self.readers.setdefault(name, []).append(node)
            for name in filter(None, node.output):
                if name in known:
                    raise WeightsError(f"{self.path}: {name!r} is made twice")
                known.add(name)
                self.maker[name] = node
                self._order[name] = k
            if (
                is_op(node, *FOLD)
                and all(node.output)
                and len(node.output) == 1
                and self._foldable.issuperset(filter(None, node.input))
            ):
                self._foldable.add(node.output[0])

    def key(self, node: NodeProto) -> str:
        """What tells it from every other node: its first output."""
        return next(filter(None, node.output), "")

    def label(self, node: NodeProto) -> str:
        return node.name if self._names[node.name] == 1 and node.name else self.key(node)

    def called(self, node: NodeProto) -> str:
        """ "LSTM 'encoder'"."""
        return f"{node.op_type} {self.label(node)!r}"

    def inner(self) -> list[str]:
        """Recurrent nodes that are not at the top, and where they are."""
        return [f"{n.op_type} {n.name!r} in {within}" for within, n in inner(self._model)]

    # ---- constants

    def _tensors(self) -> Iterator[TensorProto]:
        yield from self.initializers.values()
        for node in self.nodes:
            for attribute in node.attribute:
                if attribute.type == AttributeProto.TENSOR:
                    attribute.t.name = attribute.t.name or self.label(node)  # for the errors
                    yield attribute.t

    def is_constant(self, name: str) -> bool:
        return name in self._foldable

    def constant(self, name: str) -> Array:
        """The value of a tensor: an initializer, a Constant, or FOLD's nodes of such. Raises
        WeightsError, naming the tensor that is none.
        """
        if name not in self._foldable:
            raise WeightsError(f"{self.path}: {name!r} is no constant: {self._culprit(name)}")
        needed: set[int] = set()
        waiting = [name]
        while waiting:
            tensor = waiting.pop()
            if tensor in self._order and tensor not in self._folded:
                if self._order[tensor] not in needed:
                    waiting += filter(None, self.maker[tensor].input)
                needed.add(self._order[tensor])
        for k in sorted(needed):
            node = self.nodes[k]
            try:
                self._folded[node.output[0]] = FOLD[node.op_type](self, node)
            except BAD_NODE as error:
                raise WeightsError(f"{self.path}: {self.called(node)}: {error}") from error
        return self.value(name)

    def _culprit(self, name: str) -> str:
        """Why a tensor cannot be folded."""
        while True:
            node = self.maker.get(name)
            if node is None:
                return f"{name!r} is an input of the graph, or sparse"
            if "quantize" in node.op_type.lower():
                return f"{self.called(node)} makes {name!r}; quantized weights are not imported"
            if not is_op(node, *FOLD):
                return f"{self.called(node)} makes {name!r}, and only {', '.join(FOLD)} are folded"
            name = next(n for n in node.input if n and n not in self._foldable)

    def value(self, name: str) -> Array:
        """A constant that constant() has folded. Initializers are decoded anew: memory is dear."""
        if name in self._folded:
            return self._folded[name]
        return decode(self.path, self.initializers[name])

    def spend(self, array_bytes: int, node: NodeProto) -> None:
        """Account for what a folded node makes. Raises WeightsError over the budget."""
        self._budget -= array_bytes
        if self._budget < 0:
            raise WeightsError(f"{self.path}: {self.called(node)} makes more than the file holds")

    def option(self, node: NodeProto, name: str, position: int) -> list[int] | None:
        """Integers that older operator sets keep in an attribute and newer in an input."""
        if len(node.input) > position and node.input[position]:
            return [int(n) for n in self.constant(node.input[position]).reshape(-1)]
        given: list[int] | None = attributes(node).get(name)
        return given

    def leaves(self, name: str) -> tuple[set[float], set[str]]:
        """What a tensor's elements are taken from: the smallest and largest of its constants, and
        the tensors that are none. ({0.0}, set()) is a tensor of zeros, whatever its shape.
        """
        values: set[float] = set()
        sources: set[str] = set()
        waiting, seen = [name], {name}
        while waiting:
            tensor = waiting.pop()
            node = self.maker.get(tensor)
            if node is not None and is_op(node, "ConstantOfShape"):
                fill = attributes(node).get("value")
                values |= {0.0} if fill is None else set(decode(self.path, fill).flat)
            elif self.is_constant(tensor):
                array = self.constant(tensor)
                values |= {float(array.min()), float(array.max())} if array.size else set()
            elif node is not None and is_op(node, *MOVES_ALL, *MOVES_FIRST):
                data = node.input if is_op(node, *MOVES_ALL) else node.input[:1]
                waiting += [n for n in data if n not in seen]
                seen.update(data)
            else:
                sources.add(tensor)
        return values, sources

    def from_shapes(self, name: str) -> bool:
        """Whether a tensor depends on the shapes of other tensors, not on what they hold."""
        shapes, waiting, seen = False, [name], {name}
        while waiting:
            tensor = waiting.pop()
            node = self.maker.get(tensor)
            if node is not None and is_op(node, "Shape"):
                shapes = True
            elif self.is_constant(tensor):
                continue
            elif node is not None and is_op(node, *MOVES_ALL, *MOVES_FIRST):
                waiting += [n for n in node.input if n and n not in seen]
                seen.update(node.input)
            else:
                return False
        return shapes


# ---- folding: one function an operator, Graph and node → the output's array


def _constant(graph: Graph, node: NodeProto) -> Array:
    given = attributes(node)
    if "value" in given:
        return decode(graph.path, given["value"])
    for name, dtype in (("float", np.float32), ("int", np.int64)):
        for key in (f"value_{name}", f"value_{name}s"):
            if key in given:
                return np.array(given[key], dtype)
    raise ValueError("a Constant that is neither a tensor nor numbers")


def _cast(graph: Graph, node: NodeProto) -> Array:
    to = attributes(node)["to"]
    if to not in CAST:
        raise ValueError(f"a Cast to type {to} of constants is not folded")
    array = graph.value(node.input[0])
    graph.spend(array.size * np.dtype(CAST[to]).itemsize, node)
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(CAST[to])


def _transpose(graph: Graph, node: NodeProto) -> Array:
    return np.transpose(graph.value(node.input[0]), attributes(node).get("perm"))


def _concat(graph: Graph, node: NodeProto) -> Array:
    parts = [graph.value(name) for name in node.input]
    graph.spend(sum(part.nbytes for part in parts), node)
    return np.concatenate(parts, axis=attributes(node)["axis"])


def _reshape(graph: Graph, node: NodeProto) -> Array:
    array = graph.value(node.input[0])
    shape = graph.option(node, "shape", 1) or []
    if not attributes(node).get("allowzero"):
        shape = [n or array.shape[k] for k, n in enumerate(shape)]
    graph.spend(array.nbytes, node)
    return array.reshape(shape)


def _squeeze(graph: Graph, node: NodeProto) -> Array:
    axes = graph.option(node, "axes", 1)
    return np.squeeze(graph.value(node.input[0]), None if axes is None else tuple(axes))


def _unsqueeze(graph: Graph, node: NodeProto) -> Array:
    return np.expand_dims(graph.value(node.input[0]), tuple(graph.option(node, "axes", 1) or ()))


def _slice(graph: Graph, node: NodeProto) -> Array:
    array = graph.value(node.input[0])
    window = [slice(None)] * array.ndim
    for axis, cut in slices(graph, node).items():
        window[axis] = cut
    return array[tuple(window)]


def slices(graph: Graph, node: NodeProto) -> dict[int, slice]:
    """Axis → what a Slice of constant bounds keeps of it, as Python writes it."""
    starts, ends = graph.option(node, "starts", 1) or [], graph.option(node, "ends", 2) or []
    axes = graph.option(node, "axes", 3) or list(range(len(starts)))
    steps = graph.option(node, "steps", 4) or [1] * len(starts)
    return {
        axis: slice(start, end, step)
        for axis, start, end, step in zip(axes, starts, ends, steps, strict=True)
    }


FOLD: Final[dict[str, Callable[[Graph, NodeProto], Array]]] = {
    "Constant": _constant,
    "Identity": lambda graph, node: graph.value(node.input[0]),
    "Cast": _cast,
    "Transpose": _transpose,
    "Concat": _concat,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Slice": _slice,
}
