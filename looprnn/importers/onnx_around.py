"""What stands before and after a stack of recurrent nodes: an embedding and a linear head are
imported, the rest is told in sentences.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from looprnn.importers.onnx_file import attributes, is_op
from looprnn.importers.onnx_flow import Flow, whole
from looprnn.importers.onnx_graph import Graph
from looprnn.spec import Head

QUIET: Final = ("Identity", "Cast", "Transpose", "Dropout")  # keep every element, and the rank
NAMED_MAX: Final = 5
Arrays = dict[str, NDArray[Any]]


class Surroundings:
    """Of the nodes of one stack, in a graph whose flows are known."""

    def __init__(self, graph: Graph, found: Mapping[str, Flow], stack: list[NodeProto]) -> None:
        self.graph, self.found, self.stack = graph, found, stack
        self.keys = {graph.key(node) for node in stack}
        self._taken: list[NodeProto] = []  # the nodes of the head
        self._embedding: NodeProto | None = None
        self._head, self._head_arrays = self._find_head()

    def merge(self, k: int) -> str:
        """How the directions of layer k join: as the next layer or the head reads them; the last
        layer's without a head as whatever reads it does, if all agree.
        """
        if k + 1 < len(self.stack):
            return self.found[self.stack[k + 1].input[0]].merge
        node = self.stack[k]
        seen = {
            flow.merge
            for name, flow in self.found.items()
            if flow.output == "Y" and whole(self.graph, node, flow) and self._ends(name)
        }
        return seen.pop() if len(seen) == 1 else "concat"

    def _ends(self, name: str) -> bool:
        """Something other than a flow reads it."""
        readers = self.graph.readers.get(name, [])
        return name in self.graph.outputs or any(not self._is_flow(node) for node in readers)

    def _is_flow(self, node: NodeProto) -> bool:
        return any(name in self.found for name in node.output)

    # ---- head

    def head(self) -> tuple[Head | None, Arrays]:
        return self._head, self._head_arrays

    def _find_head(self) -> tuple[Head | None, Arrays]:
        candidates = []
        for node in self.graph.nodes:
            flow = self.found.get(node.input[0]) if is_op(node, "MatMul", "Gemm") else None
            if flow is not None and (on := self._on(node, flow)) and self._linear(node):
                candidates.append((node, on, flow))
        if len(candidates) != 1:
            return None, {}
        node, on, flow = candidates[0]
        weight, bias = self._linear(node) or (np.zeros(0), None)
        self._taken = [node]
        if bias is None and (reader := self._only_reader(node, "Add")):
            names = [n for n in reader.input if n != node.output[0]]
            if len(names) == 1 and self.graph.is_constant(names[0]):
                added = self.graph.constant(names[0])
                if added.shape[-1:] == weight.shape[:1] and added.size == len(weight):
                    bias = added.reshape(-1)
                    self._taken.append(reader)
        activation: Any = "none"
        if reader := self._only_reader(self._taken[-1], "Sigmoid", "Softmax"):
            rank = len(flow.axes)
            axis = attributes(reader).get("axis", -1 if self.graph.opset >= 13 else 1)
            if reader.op_type == "Sigmoid" or axis in (-1, rank - 1):
                activation = reader.op_type.lower()
                self._taken.append(reader)
        arrays = {"head.weight": weight} | ({} if bias is None else {"head.bias": bias})
        head = Head(size=len(weight), on=on, activation=activation, bias=bias is not None)
        return head, arrays

    def _on(self, node: NodeProto, flow: Flow) -> Any:
        """ "output" or "last", if a head can read this flow as it is; else nothing."""
        last = self.stack[-1]
        if not whole(self.graph, last, flow) or flow.axes[-1] != "H":
            return ""
        if flow.output == "Y":
            return "output" if node.op_type == "MatMul" else ""
        if flow.axes != "BH" or flow.merge != "concat":
            return ""
        given = attributes(last)
        if flow.output == "last":  # y[-1] is h_n only forward, and where no row is shorter
            full = given.get("direction", "forward") == "forward" and not any(last.input[4:5])
            return "last" if full else ""
        return "last" if flow.output == "Y_h" else ""

    def _linear(self, node: NodeProto) -> tuple[NDArray[Any], NDArray[Any] | None] | None:
        """weight [size, F] and bias [size] of a MatMul or Gemm with constants."""
        if not all(self.graph.is_constant(name) for name in node.input[1:] if name):
            return None
        weight = self.graph.constant(node.input[1])
        given = attributes(node)
        if weight.ndim != 2 or given.get("transA") or given.get("alpha", 1.0) != 1.0:
            return None
        weight = weight if given.get("transB") else weight.T
        if len(node.input) < 3 or not node.input[2]:
            return weight, None
        bias = self.graph.constant(node.input[2])
        if given.get("beta", 1.0) != 1.0 or bias.size != len(weight):
            return None
        return weight, bias.reshape(-1)

    def _only_reader(self, node: NodeProto, *ops: str) -> NodeProto | None:
        name = node.output[0]
        readers = self.graph.readers.get(name, [])
        if len(readers) == 1 and is_op(readers[0], *ops) and name not in self.graph.outputs:
            return readers[0]
        return None

    # ---- before

    def _source(self) -> str:
        """The tensor that X of the first layer is, but for the order of its axes."""
        return self._through(self.stack[0].input[0])

    def _through(self, name: str) -> str:
        while (node := self.graph.maker.get(name)) is not None and is_op(node, *QUIET):
            name = node.input[0]
        return name

    def embedding(self) -> tuple[int | None, Arrays]:
        """The vocabulary and its table, where X is looked up by an input of the graph."""
        node = self.graph.maker.get(self._source())
        if node is None or not is_op(node, "Gather") or attributes(node).get("axis", 0) != 0:
            return None, {}
        table, ids = node.input[0], self._through(node.input[1])
        if not self.graph.is_constant(table) or ids not in self.graph.inputs:
            return None, {}
        array = self.graph.constant(table)
        if array.ndim != 2 or not np.issubdtype(array.dtype, np.floating):
            return None, {}
        self._embedding = node
        return len(array), {"embedding.weight": array}

    # ---- sentences

    def notes(self) -> list[str]:
        """What is not imported: before, after."""
        notes = []
        source = self._source()
        node = self.graph.maker.get(source)
        if node is not None and node is not self._embedding:
            notes.append(
                f"Before {self.graph.called(self.stack[0])} comes {self.graph.called(node)}: not "
                "imported. What it makes is the input of the variant."
            )
        if after := self._after():
            notes.append(
                f"After it come {', '.join(after)}: not imported. The variant ends before."
            )
        return notes

    def _after(self) -> list[str]:
        taken = {self.graph.key(node) for node in self._taken} | self.keys
        ends = self.graph.readers.get(self._taken[-1].output[0], []) if self._taken else []
        return _some(
            self.graph.called(node)
            for node in self.graph.nodes
            if self.graph.key(node) not in taken
            and not is_op(node, "Shape")
            and (
                any(node is end for end in ends)
                or (self._mine(node.input) and not self._continues(node))
            )
        )

    def _mine(self, names: Iterable[str]) -> bool:
        return any(
            row[0] in self.keys
            for name in names
            if name in self.found
            for row in self.found[name].rows
        )

    def _continues(self, node: NodeProto) -> bool:
        """What it makes is still a flow of this stack."""
        return self._mine(node.output)


def _some(names: Iterable[str]) -> list[str]:
    listed = list(names)
    more = len(listed) - NAMED_MAX
    return [*listed[:NAMED_MAX], *([f"{more} more"] if more > 0 else [])]
