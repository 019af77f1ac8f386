"""Where the outputs of recurrent nodes go: which feed which, how directions are joined, what reads
them last.

A tensor that only rearranges outputs of recurrent nodes is a Flow. Its axes are known by letter, so
that a Transpose that turns batch into time, or a Reshape that mixes rows, is never taken for a
stack.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from onnx import NodeProto

from looprnn.errors import WeightsError
from looprnn.importers.onnx_file import RECURRENT, attributes, is_op
from looprnn.importers.onnx_graph import BAD_NODE, Graph, slices

DIRECTIONS: Final = {"forward": 1, "reverse": 1, "bidirectional": 2}
OUTPUTS: Final = ("Y", "Y_h", "Y_c")
Row = tuple[str, int]  # the key of a recurrent node, and which of its directions


@dataclass(frozen=True)
class Flow:
    """A tensor made of outputs of recurrent nodes.

    output   "Y"; "Y_h" or "Y_c", the states; "last", Y at its last step
    axes     letters: T time, B batch, D one entry a row of `rows`, H features
    rows     the directions it holds, in order: along D, or side by side along H without a D
    hidden   the size of one row's features, 0 if the node does not say it
    merge    how rows without a D have joined: concat, sum, mul or average
    """

    output: str
    axes: str
    rows: tuple[Row, ...]
    hidden: int
    merge: str = "concat"

    def pick(self, rows: tuple[Row, ...], *, drop: bool = False) -> "Flow | None":
        """These rows alone; without the D axis where `drop`, which must leave one row."""
        if not rows or (drop and len(rows) != 1):
            return None
        return dataclasses.replace(
            self, rows=rows, axes=self.axes.replace("D", "") if drop else self.axes
        )


def rows_of(graph: Graph, node: NodeProto) -> tuple[Row, ...]:
    count = DIRECTIONS.get(attributes(node).get("direction", "forward"), 1)
    return tuple((graph.key(node), k) for k in range(count))


def whole(graph: Graph, node: NodeProto, flow: Flow) -> bool:
    """The flow is all that this node puts out at a step (or all of a state), and nothing else."""
    return "D" not in flow.axes and flow.rows == rows_of(graph, node)


def flows(graph: Graph) -> dict[str, Flow]:
    """Tensor → Flow, for every tensor that is one. One pass: the nodes are in order."""
    found: dict[str, Flow] = {}
    for node in graph.nodes:
        if is_op(node, *RECURRENT):
            given = attributes(node)
            y, state = ("BTDH", "BDH") if given.get("layout", 0) == 1 else ("TDBH", "DBH")
            for output, name in zip(OUTPUTS, node.output, strict=False):
                axes = y if output == "Y" else state
                found[name] = Flow(output, axes, rows_of(graph, node), given.get("hidden_size", 0))
        elif is_op(node, *STEP) and any(name in found for name in node.input):
            try:
                made = STEP[node.op_type](graph, node, [found.get(name) for name in node.input])
            except BAD_NODE as error:
                raise WeightsError(f"{graph.path}: {graph.called(node)}: {error}") from error
            for name, flow in zip(node.output, made, strict=False):
                if flow is not None:
                    found[name] = flow
    found.pop("", None)
    return found


# ---- one function an operator: the flows of its inputs → those of its outputs, None for no flow

Flows = list[Flow | None]
Step = Callable[[Graph, NodeProto, Flows], Flows]


def _of_data(step: Callable[[Graph, NodeProto, Flow], Flow | None]) -> Step:
    """For operators whose first input is the data and whose others are constants."""

    def stepped(graph: Graph, node: NodeProto, into: Flows) -> Flows:
        if into[0] is None or not all(graph.is_constant(name) for name in node.input[1:] if name):
            return []
        return [step(graph, node, into[0])]

    return stepped


def _dropout(graph: Graph, node: NodeProto, flow: Flow) -> Flow | None:
    training = len(node.input) > 2 and node.input[2] and graph.constant(node.input[2]).any()
    return None if training else flow


def _transpose(graph: Graph, node: NodeProto, flow: Flow) -> Flow | None:
    perm = attributes(node).get("perm", range(len(flow.axes))[::-1])
    if sorted(perm) != list(range(len(flow.axes))):
        return None
    return dataclasses.replace(flow, axes="".join(flow.axes[k] for k in perm))


def _squeeze(graph: Graph, node: NodeProto, flow: Flow) -> Flow | None:
    axes = graph.option(node, "axes", 1)
    if axes is None or [_letter(flow, axis) for axis in axes] != ["D"]:
        return None
    return flow.pick(flow.rows, drop=True)


def _letter(flow: Flow, axis: int) -> str:
    return flow.axes[axis] if -len(flow.axes) <= axis < len(flow.axes) else ""


def _slice(graph: Graph, node: NodeProto, flow: Flow) -> Flow | None:
    for axis, cut in slices(graph, node).items():
        if _letter(flow, axis) != "D":
            return None
        flow = dataclasses.replace(flow, rows=flow.rows[cut])
    return flow if flow.rows else None


def _gather(graph: Graph, node: NodeProto, flow: Flow) -> Flow | None:
    index = graph.constant(node.input[1])
    letter = _letter(flow, attributes(node).get("axis", 0))
    if index.ndim:
        return None
    if letter == "T" and index == -1 and flow.output == "Y":
        return dataclasses.replace(flow, output="last", axes=flow.axes.replace("T", ""))
    if letter == "D" and -len(flow.rows) <= index < len(flow.rows):
        return flow.pick((flow.rows[int(index)],), drop=True)
    return None


def _split(graph: Graph, node: NodeProto, into: Flows) -> Flows:
    flow = into[0]
    if flow is None or _letter(flow, attributes(node).get("axis", 0)) != "D":
        return []
    sizes = None
    if len(node.input) < 2 or graph.is_constant(node.input[1]):
        sizes = graph.option(node, "split", 1) or [1] * len(node.output)
    if sizes is None or sum(sizes) != len(flow.rows) or min(sizes) < 1:
        return []
    ends = [sum(sizes[: k + 1]) for k in range(len(sizes))]
    return [flow.pick(flow.rows[end - n : end]) for end, n in zip(ends, sizes, strict=True)]


def _reshape(graph: Graph, node: NodeProto, flow: Flow) -> Flow | None:
    """Drops a D of one row, or joins D and H where they are neighbours. Other axes must be 0 or -1
    where they stand, so that no element changes its place.
    """
    shape = graph.option(node, "shape", 1) or []
    if attributes(node).get("allowzero") or "D" not in flow.axes:
        return None
    if "DH" not in flow.axes and len(flow.rows) != 1:
        return None
    axes = flow.axes.replace("D", "")
    if len(shape) != len(axes) or shape.count(-1) > 1:
        return None
    for k, size in enumerate(shape):
        if size == 0 and axes[k] != flow.axes[k]:
            return None
        if size > 0 and (axes[k] != "H" or size != flow.hidden * len(flow.rows)):
            return None  # T and B have no size that a stack could rely on
    return dataclasses.replace(flow, axes=axes)


def _concat(graph: Graph, node: NodeProto, into: Flows) -> Flows:
    parts = [flow for flow in into if flow is not None]
    if len(parts) != len(into) or len({(f.output, f.axes, f.merge) for f in parts}) != 1:
        return []
    letter = _letter(parts[0], attributes(node).get("axis", 1))
    if letter != "D" and not (letter == "H" and "D" not in parts[0].axes):
        return []
    if parts[0].merge != "concat":
        return []
    rows = tuple(row for flow in parts for row in flow.rows)
    return [dataclasses.replace(parts[0], rows=rows)]


def _merge(merge: str) -> Step:
    def merged(graph: Graph, node: NodeProto, into: Flows) -> Flows:
        if len(into) != 2:
            return []
        left, right = into
        if left is None or right is None:
            return [_average(graph, node, left or right)]
        if (left.output, left.axes) != (right.output, right.axes) or "D" in left.axes:
            return []
        if len(left.rows) != 1 or len(right.rows) != 1:
            return []
        rows = tuple(sorted(left.rows + right.rows))  # both orders are the same sum
        return [dataclasses.replace(left, rows=rows, merge=merge)]

    return merged


def _average(graph: Graph, node: NodeProto, flow: Flow | None) -> Flow | None:
    """A sum of two halves, halved."""
    other = [name for name in node.input if graph.is_constant(name)]
    if flow is None or flow.merge != "sum" or len(other) != 1:
        return None
    half = {"Mul": 0.5, "Div": 2.0}.get(node.op_type)
    constant: Any = graph.constant(other[0])
    if constant.size != 1 or float(constant.reshape(-1)[0]) != half:
        return None
    return dataclasses.replace(flow, merge="average")


def _divide(graph: Graph, node: NodeProto, into: Flows) -> Flows:
    return [_average(graph, node, into[0])]


STEP: Final[dict[str, Step]] = {
    "Identity": _of_data(lambda graph, node, flow: flow),
    "Cast": _of_data(lambda graph, node, flow: flow),
    "Dropout": _of_data(_dropout),
    "Transpose": _of_data(_transpose),
    "Squeeze": _of_data(_squeeze),
    "Slice": _of_data(_slice),
    "Gather": _of_data(_gather),
    "Reshape": _of_data(_reshape),
    "Split": _split,
    "Concat": _concat,
    "Add": _merge("sum"),
    "Mul": _merge("mul"),
    "Div": _divide,
}
