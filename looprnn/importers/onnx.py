"""RNN, LSTM and GRU nodes of a .onnx file → a spec and its weights.

Equations and layouts: onnx.ai, operators RNN-22, LSTM-22 and GRU-22, and ONNX Runtime's CPU
kernels, which these facts were measured on:
    clip             bounds the input of every gate's activation (LSTM's c is not clipped)
    input_forget     f = 1 - i; the rows of f in W, R, B and P are not used
    activations      alpha and beta go, in order, to the activations that take one
    sequence_lens 0  h_n and c_n of an empty row are zeros there; looprnn answers h_0 and c_0
Nodes whose X is another's whole output are stacked. `layer` names a node, by its name or one of its
outputs, and the stack that begins with it is imported.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from onnx import NodeProto

from looprnn.errors import SpecError, WeightsError
from looprnn.importers import PLACEHOLDER, Imported
from looprnn.importers.onnx_around import Surroundings
from looprnn.importers.onnx_file import RECURRENT, attributes, float32, is_op
from looprnn.importers.onnx_flow import Flow, flows, whole
from looprnn.importers.onnx_graph import Graph
from looprnn.importers.onnx_node import C_0, H_0, LENGTHS, R, W, X, has, layer_of, short, weights_of
from looprnn.spec import RNNSpec
from looprnn.weights import suffix


def read(path: Path, *, name: str, layer: str | None = None) -> Imported:
    """The one stack of recurrent nodes of a file, or the stack that begins with the node `layer`.

    Raises WeightsError: no such node or several stacks (it lists them), a tensor that is no
    constant, a wrong shape, a hostile file. Raises SpecError for what no spec can express.
    """
    graph = Graph(path)
    found = flows(graph)
    stack = _chosen(graph, _stacks(graph, found), layer)
    around = Surroundings(graph, found, stack)
    notes: list[str] = []
    arrays: dict[str, NDArray[Any]] = {}
    layers = []
    for k, node in enumerate(stack):
        try:
            layers.append(layer_of(graph, node, around.merge(k), notes))
        except SpecError as error:
            raise SpecError(f"{path}: {graph.called(node)}: {error}") from error
        arrays |= weights_of(graph, node, layers[-1], k, notes)
    inputs = int(arrays["weight_ih_" + suffix(0, layers[0].directions[0])].shape[1])
    head, head_arrays = around.head()
    vocabulary, table = around.embedding()
    initial: dict[str, Any] = {
        f"{state}_0": _initial(graph, stack, state, notes) for state in ("h", "c")
    }
    spec = RNNSpec(
        name=name,
        input_size=inputs,
        layers=tuple(layers),
        **initial,
        vocabulary=vocabulary,
        head=head,
        lengths=_lengths(graph, stack[0]) != "",
        weights=PLACEHOLDER,
    )
    for what, array in (head_arrays | table).items():
        arrays[what] = float32(path, array, what, notes)
    if head and head.on == "output" and spec.lengths:
        notes.append(
            "Past a row's length the variant's head is zero; the file's there is the head of zeros."
        )
    notes += [*_lengths_notes(graph, stack[0]), *around.notes()]
    return Imported(spec, arrays, tuple(notes))


# ---- which nodes


def _stacks(graph: Graph, found: Mapping[str, Flow]) -> list[list[NodeProto]]:
    """The recurrent nodes, each stack from its first layer to its last."""
    nodes = [n for n in graph.nodes if is_op(n, *RECURRENT) and any(n.output) and len(n.input)]
    by_key = {graph.key(node): node for node in nodes}
    readers: dict[str, list[NodeProto]] = {}
    for node in nodes:
        flow = found.get(node.input[X])
        axes = "BTH" if attributes(node).get("layout", 0) == 1 else "TBH"
        if flow is not None and (flow.output, flow.axes) == ("Y", axes):
            below = by_key[flow.rows[0][0]]
            if whole(graph, below, flow) and _lengths(graph, below) == _lengths(graph, node):
                readers.setdefault(graph.key(below), []).append(node)
    above = {below: nodes[0] for below, nodes in readers.items() if len(nodes) == 1}
    stacked = {graph.key(node) for node in above.values()}
    stacks = []
    for node in nodes:
        if graph.key(node) not in stacked:
            stacks.append([node])
            while graph.key(stacks[-1][-1]) in above:
                stacks[-1].append(above[graph.key(stacks[-1][-1])])
    return stacks


def _chosen(graph: Graph, stacks: list[list[NodeProto]], layer: str | None) -> list[NodeProto]:
    inner = graph.inner()
    hidden = ", ".join(inner[:5]) + "; nodes inside If, Loop, Scan and functions are not imported"
    if layer is not None:
        found = [
            stack[k:]
            for stack in stacks
            for k, node in enumerate(stack)
            if layer in (node.name, *node.output)
        ]
        if len(found) == 1:
            return found[0]
        what = "several nodes are" if found else "no RNN, LSTM or GRU node is"
        listed = _listed(graph, stacks) + (f"\ninside: {hidden}" if inner else "")
        raise WeightsError(f"{graph.path}: {what} called {layer!r}; there is\n{listed}")
    if not stacks:
        alike = [graph.called(n) for n in graph.nodes if "LSTM" in n.op_type or "GRU" in n.op_type]
        raise WeightsError(
            f"{graph.path}: no RNN, LSTM or GRU node at its top"
            + (f". There is {hidden}" if inner else "")
            + (f". There is {', '.join(alike[:5])}: not ONNX's own, not imported" if alike else "")
        )
    if len(stacks) > 1:
        raise WeightsError(
            f"{graph.path}: {len(stacks)} recurrent layers or stacks; choose one:\n"
            + _listed(graph, stacks)
        )
    return stacks[0]


def _listed(graph: Graph, stacks: list[list[NodeProto]]) -> str:
    return "\n".join(
        f"  --layer {graph.label(stack[0])}   "
        + ", then ".join(_described(graph, node) for node in stack)
        for stack in stacks
    )


def _described(graph: Graph, node: NodeProto) -> str:
    """LSTM 'encoder' 3 → 5 bidirectional."""
    sizes = ["?", "?"]
    for k, (position, axis) in enumerate(((W, 2), (R, 2))):
        if len(node.input) > position and graph.is_constant(node.input[position]):
            shape = graph.constant(node.input[position]).shape
            sizes[k] = str(shape[axis]) if len(shape) == 3 else "?"
    return (
        f"{graph.called(node)} {' → '.join(sizes)} {attributes(node).get('direction', 'forward')}"
    )


# ---- lengths and initial states


def _lengths(graph: Graph, node: NodeProto) -> str:
    """The tensor of the lengths; "" without any, or where they are every row's full length."""
    if not has(node, LENGTHS):
        return ""
    name = node.input[LENGTHS]
    while (maker := graph.maker.get(name)) is not None and is_op(maker, "Identity", "Cast"):
        name = maker.input[0]
    return "" if graph.from_shapes(name) else name


def _lengths_notes(graph: Graph, node: NodeProto) -> list[str]:
    name = _lengths(graph, node)
    called = graph.called(node)
    if not name:
        if not has(node, LENGTHS):
            return []
        return [f"{called} takes its lengths from shapes alone: taken as every row's full length."]
    if graph.is_constant(name):
        values = [int(n) for n in graph.constant(name).reshape(-1)[:8]]
        return [f"{called} has the fixed lengths {values}: send them as lengths with each request."]
    if name not in graph.inputs:
        return [f"{graph.called(graph.maker[name])} makes the lengths of {called}: send them."]
    return []


def _initial(graph: Graph, stack: list[NodeProto], state: str, notes: list[str]) -> float:
    """h_0 or c_0 of the spec: the one number that every layer's constant state has, else 0."""
    send = f"send it as {state}_0 with each request."
    uniform: set[float] = set()
    for node in stack:
        position = {"h": H_0, "c": C_0}[state]
        if state == "c" and node.op_type != "LSTM":
            continue
        values, sources = {0.0}, set[str]()
        if has(node, position):
            values, sources = graph.leaves(node.input[position])
        what = f"initial {state} of {graph.called(node)}"
        if computed := sorted(sources - graph.inputs):
            makers = [graph.called(graph.maker[n]) for n in computed if n in graph.maker]
            notes.append(f"{', '.join(makers or computed)} makes the {what}: {send}")
        elif sources:
            pass  # an input of the graph: requests bring it there too
        elif len(values) == 1:
            uniform |= values
        else:
            notes.append(
                f"The {what} is a constant that is not one number. A spec keeps one number, so it "
                f"is not kept: {send}"
            )
    if len(uniform) > 1:
        notes.append(
            f"The layers begin with different {state}: {sorted(uniform)}. A spec keeps one number: "
            + send
        )
    return short(uniform.pop()) if len(uniform) == 1 else 0.0
