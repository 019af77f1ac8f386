"""One RNN, LSTM or GRU node → a Layer and its arrays by canonical names."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto

from looprnn.errors import SpecError, WeightsError
from looprnn.importers.onnx_file import attributes, float32
from looprnn.importers.onnx_flow import DIRECTIONS
from looprnn.importers.onnx_graph import Graph
from looprnn.spec import ROLES, Activation, Layer
from looprnn.weights import reorder, suffix

GATES: Final = {"RNN": "h", "LSTM": "iofg", "GRU": "zrn"}  # g is ONNX's c, n its h
PEEPHOLES: Final = "iof"
# ONNX's name in lower case (ONNX Runtime's LSTM takes any) → ours, and which of alpha, beta.
ACTIVATION: Final = {
    "relu": ("relu", ""), "tanh": ("tanh", ""), "sigmoid": ("sigmoid", ""),
    "softsign": ("softsign", ""), "softplus": ("softplus", ""), "elu": ("elu", "a"),
    "leakyrelu": ("leaky_relu", "a"), "thresholdedrelu": ("thresholded_relu", "a"),
    "hardsigmoid": ("hard_sigmoid", "ab"), "scaledtanh": ("scaled_tanh", "ab"),
    "affine": ("affine", "ab"),
}  # fmt: skip
X, W, R, B, LENGTHS, H_0, C_0, P = range(8)


def direction(node: NodeProto) -> Any:
    return attributes(node).get("direction", "forward")


def layer_of(graph: Graph, node: NodeProto, merge: Any, notes: list[str]) -> Layer:
    given = attributes(node)
    cell: Any = node.op_type.lower()
    hidden = _shape(graph, node, R)[2]
    if given.get("hidden_size", hidden) != hidden:
        raise SpecError(f"hidden_size is {given['hidden_size']}, but R is for {hidden}")
    if given.get("layout", 0) not in (0, 1):
        raise SpecError(f"layout must be 0 or 1, got {given['layout']!r}")
    forward, reverse = _activations(graph, node, cell, notes)
    options: dict[str, Any] = {}
    if cell == "gru":
        options["reset"] = "after" if given.get("linear_before_reset", 0) else "before"
    if cell == "lstm":
        options["coupled"] = bool(given.get("input_forget", 0))
        options["peepholes"] = has(node, P)
    return Layer(
        cell=cell,
        hidden_size=hidden,
        direction=direction(node),
        activations=forward,
        activations_reverse=reverse,
        merge=merge,
        bias=has(node, B),
        clip=short(given["clip"]) if "clip" in given else None,
        **options,
    )


def _activations(
    graph: Graph, node: NodeProto, cell: str, notes: list[str]
) -> tuple[tuple[Activation, ...], tuple[Activation, ...]]:
    """Those of the forward and of the reverse direction; empty for the usual ones."""
    given = attributes(node)
    names = given.get("activations") or []
    roles, count = len(ROLES[cell]), DIRECTIONS.get(direction(node), 1)
    if names and len(names) != roles * count:
        raise SpecError(f"{roles * count} activations are wanted, got {', '.join(names)}")
    left = {
        "a": list(given.get("activation_alpha", [])),
        "b": list(given.get("activation_beta", [])),
    }
    made = []
    for name in names:
        if name.lower() not in ACTIVATION:
            raise SpecError(f"the activation {name!r} is not known")
        kind, takes = ACTIVATION[name.lower()]
        values = {k: short(left[k].pop(0)) for k in takes if left[k]}
        if kind == "thresholded_relu" and not values:
            notes.append(
                f"{graph.called(node)} gives its ThresholdedRelu no alpha: taken as 1.0, the "
                "operator's default; ONNX Runtime takes 0."
            )
        made.append(Activation(kind, values.get("a"), values.get("b")))
    if names and (left["a"] or left["b"]):
        notes.append(
            f"{graph.called(node)} gives more activation_alpha or activation_beta than its "
            "activations take; the last ones are left out, as ONNX Runtime does."
        )
    return tuple(made[:roles]), tuple(made[roles:])


def short(value: float) -> float:
    """The shortest number with the same float32: 0.3, not 0.30000001192092896."""
    return float(str(np.float32(value)))


def has(node: NodeProto, position: int) -> bool:
    return len(node.input) > position and bool(node.input[position])


def _constant(graph: Graph, node: NodeProto, position: int) -> NDArray[Any]:
    what = "XWRB"[position] if position <= B else "P"
    if not has(node, position):
        raise WeightsError(f"{graph.path}: {graph.called(node)} has no {what}")
    try:
        return graph.constant(node.input[position])
    except WeightsError as error:
        raise WeightsError(f"{error} ({what} of {graph.called(node)})") from error


def _shape(graph: Graph, node: NodeProto, position: int) -> tuple[int, ...]:
    shape = _constant(graph, node, position).shape
    if len(shape) != 3:
        name = node.input[position]
        raise WeightsError(f"{graph.path}: {name!r} is {list(shape)}, wanted [D, G·H, size]")
    return shape


def weights_of(
    graph: Graph, node: NodeProto, layer: Layer, k: int, notes: list[str]
) -> dict[str, NDArray[Any]]:
    """W [D, G·H, I], R [D, G·H, H], B [D, 2·G·H], P [D, 3·H] → canonical names and order."""
    gates, hidden, count = GATES[node.op_type], layer.hidden_size, len(layer.directions)
    rows = len(gates) * hidden
    wanted: dict[int, tuple[int, ...]] = {W: (count, rows, -1), R: (count, rows, hidden)}
    wanted |= {B: (count, 2 * rows)} if layer.bias else {}
    wanted |= {P: (count, 3 * hidden)} if layer.peepholes else {}
    arrays: dict[str, NDArray[Any]] = {}
    for position, shape in wanted.items():
        name = node.input[position]
        array = _constant(graph, node, position)
        if len(array.shape) != len(shape) or any(
            want not in (-1, got) for got, want in zip(array.shape, shape, strict=True)
        ):
            sizes = str(list(shape)).replace("-1", "input size")
            raise WeightsError(
                f"{graph.path}: {name!r} is {list(array.shape)}, {graph.called(node)} needs {sizes}"
            )
        array = float32(graph.path, array, repr(name), notes)
        for d, direction in enumerate(layer.directions):
            end = suffix(k, direction)
            if position == P:
                arrays[f"weight_p_{end}"] = reorder(array[d], src=PEEPHOLES, dst="ifo")
                continue
            halves = np.split(array[d], 2) if position == B else [array[d]]
            names = {W: ["weight_ih"], R: ["weight_hh"], B: ["bias_ih", "bias_hh"]}[position]
            for what, half in zip(names, halves, strict=True):
                arrays[f"{what}_{end}"] = reorder(half, src=gates, dst=layer.gates)
    return arrays
