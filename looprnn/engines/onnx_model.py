"""spec + weights → an ONNX model.

A layer becomes ONNX's own RNN, LSTM or GRU where they can express it (onnx.ai, operators RNN-14,
LSTM-14, GRU-14), else a Scan whose body is the step of cells.py. Inside the model time comes first;
it transposes on both sides.
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from looprnn.cells import Recurrence, linear, merge, project, recurrences, step
from looprnn.engines.onnx_ops import ACTIVATIONS, Graph, value
from looprnn.spec import Layer, RNNSpec
from looprnn.weights import Weights, reorder

OPSET = 17
IR_VERSION = 8
OPERATOR = {"rnn": "RNN", "lstm": "LSTM", "gru": "GRU"}
GATE_ORDER = {"rnn": "h", "lstm": "iofg", "gru": "zrn"}  # ONNX calls g c, and n h
KIND = {np.float32: TensorProto.FLOAT, np.int32: TensorProto.INT32}

State = dict[str, str]


def native(layer: Layer, padding: str) -> bool:
    """Whether ONNX's own operator computes this layer, as ONNX Runtime runs it."""
    # Its `clip` bounds the gates' inputs alone, as ours does; it knows nothing of the other three.
    beyond = layer.proj_size or layer.layer_norm or layer.cell_clip
    return not beyond and padding == "zero"


def how(spec: RNNSpec) -> str:
    """What the model is built from, for the engine's card: "LSTM", "LSTM + Scan"."""
    found = {OPERATOR[x.cell] if native(x, spec.padding) else "Scan" for x in spec.layers}
    return " + ".join(sorted(found))


def build_model(spec: RNNSpec, weights: Weights) -> onnx.ModelProto:
    """A checked model with looprnn's names and shapes."""
    g = Graph()
    for name in spec.input_names:
        g.known(name, len(spec.shapes(1, 1)[name]))
    x = g.transpose("x", "input", *(1, 0, 2)[: g.rank("input")])  # [T, B, I]
    if spec.vocabulary:
        x = g.node("embed", "Gather", [g.constant("embedding", weights["embedding.weight"]), x], 3)
    flat = {s: g.reshape(f"{s}_0_flat", f"{s}_0", 0, -1) for s in spec.states}  # [B, S]
    time = Time(g, spec, x)
    ends: dict[str, list[str]] = {s: [] for s in spec.states}

    for k, layer in enumerate(spec.layers):
        start = {
            direction: {
                s: g.columns(
                    f"l{k}/{direction}/{s}_0",
                    flat[s],
                    *spec.state_slots(s)[k, direction],
                    _width(spec, s),
                )
                for s in layer.states
            }
            for direction in layer.directions
        }
        g.where = f"l{k}"
        build = _native if native(layer, spec.padding) else _scanned
        halves, last = build(g, time, layer, recurrences(layer, k, weights), x, start)
        outputs = merge(g, layer, halves)
        if layer.residual:
            outputs = [time.blanked("residual_valid", g.binary("residual", "add", outputs[0], x))]
        g.where = ""
        for s in layer.states:
            ends[s] += [last[direction][s] for direction in layer.directions]
        x = outputs[0]

    answers = dict(zip(("output", "output_reverse"), outputs, strict=False))
    answers = {name: g.transpose(f"{name}_batch_first", y, 1, 0, 2) for name, y in answers.items()}
    if spec.head:
        last_h = g.concatenate("head/last", ends["h"][-len(spec.layers[-1].directions) :], 1)
        answers["head"] = _head(g, time, spec, weights, x if spec.head.on == "output" else last_h)
    for s in spec.states:
        joined = g.concatenate(f"{s}_n_flat", ends[s], 1)
        answers[f"{s}_n"] = g.reshape(f"{s}_n_dims", joined, 0, *spec.state_dims(s))
    for name in spec.output_names:
        g.node(name, "Identity", [answers[name]])
    inputs, outputs_ = (
        [_declared(spec, n) for n in names] for names in (spec.input_names, spec.output_names)
    )
    model = helper.make_model(
        g.make(spec.name, inputs, outputs_),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="looprnn",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


class Time:
    """Which steps of each row are valid; without lengths, all."""

    def __init__(self, g: Graph, spec: RNNSpec, x: str) -> None:
        self.g, self.padding = g, spec.padding
        self.mask = self.some = self.lengths = None
        if spec.lengths:
            self.lengths = "lengths"
            steps = g.take("steps", g.node("shape", "Shape", [x], 1), 0, 0)
            first, stride = g.raw("first", np.array(0)), g.raw("stride", np.array(1))
            t = g.reshape("t", g.node("range", "Range", [first, steps, stride], 1), -1, 1, 1)
            until = g.node("lengths_int64", "Cast", ["lengths"], to=TensorProto.INT64)
            self.mask = g.node(
                "valid", "Less", [t, g.reshape("until", until, 1, -1, 1)], 3
            )  # [T, B, 1]
            none = g.raw("none", np.zeros((1, 1), np.int64))
            self.some = g.node(
                "some", "Less", [none, g.reshape("until_2d", until, -1, 1)]
            )  # [B, 1]

    def blanked(self, name: str, y: str) -> str:
        """y [T, B, P] with 0 past each row's length."""
        return y if self.mask is None else self.g.select(name, self.mask, y, self.g.zero(name))


def _native(
    g: Graph, time: Time, layer: Layer, recs: dict[str, Recurrence], x: str, start: dict[str, State]
) -> tuple[list[str], dict[str, State]]:
    """One RNN, LSTM or GRU node; x [T, B, I] → each direction's output [T, B, H] and last states
    [B, H].
    """
    directions, states = layer.directions, layer.states
    arrays = _stacked(layer, recs)
    initial = {
        s: g.concatenate(
            f"{s}_start", [g.unsqueeze(f"{d}/{s}_start", start[d][s], 0) for d in directions], 0
        )
        for s in states
    }
    given = {
        "X": x,
        "W": g.constant("W", arrays["W"]),
        "R": g.constant("R", arrays["R"]),
        "B": g.constant("B", arrays["B"]) if "B" in arrays else "",
        "sequence_lens": time.lengths or "",
        **{f"initial_{s}": initial[s] for s in states},
        "P": g.constant("P", arrays["P"]) if "P" in arrays else "",
    }
    outputs = [g.path(n) for n in ("y", *(f"{s}_end" for s in states))]
    inputs = [*given.values()][: None if "P" in arrays else -1]
    g.nodes.append(
        helper.make_node(
            OPERATOR[layer.cell], inputs, outputs, g.path("loop"), **_attributes(layer)
        )
    )
    g.known(outputs[0], 4)
    halves: list[str] = []
    last: dict[str, State] = {}
    for k, direction in enumerate(directions):
        halves.append(g.take(f"{direction}/y", outputs[0], k, 1))
        last[direction] = {}
        for s, name in zip(states, outputs[1:], strict=True):
            end = g.take(f"{direction}/{s}_last", g.known(name, 3), k, 0)
            if time.some is not None:
                # ONNX Runtime answers zeros for a row of length 0; its state is still what it was.
                end = g.select(f"{direction}/{s}_kept", time.some, end, start[direction][s])
            last[direction][s] = end
    return halves, last


def _attributes(layer: Layer) -> dict[str, Any]:
    found: dict[str, Any] = {"hidden_size": layer.hidden_size, "direction": layer.direction}
    acts = [a for d in layer.directions for a in layer.activations_of(d)]
    found["activations"] = [ACTIVATIONS[a.kind][0] for a in acts]
    for key in ("alpha", "beta"):
        values = [float(getattr(a, key)) for a in acts if key in ACTIVATIONS[a.kind][1]]
        if values:
            found[f"activation_{key}"] = values
    if layer.cell == "gru":
        found["linear_before_reset"] = int(layer.reset == "after")
    if layer.coupled:
        found["input_forget"] = 1
    if layer.clip:
        found["clip"] = float(layer.clip)
    return found


def _stacked(layer: Layer, recs: dict[str, Recurrence]) -> dict[str, NDArray[np.float32]]:
    """W [D, G·H, I], R [D, G·H, H], B [D, 2·G·H], P [D, 3·H], gates in ONNX's order; its peepholes
    are i o f.
    """

    def of(name: str) -> NDArray[np.float32]:
        order = GATE_ORDER[layer.cell]
        return np.stack(
            [reorder(rec.arrays[name], src=layer.gates, dst=order) for rec in recs.values()]
        )

    skip = np.tile(np.eye(layer.hidden_size, dtype=np.float32), (len(layer.gates), 1))
    found = {
        "W": np.stack([skip] * len(recs)) if layer.skip_input else of("weight_ih"),
        "R": of("weight_hh"),
    }
    if layer.bias:
        found["B"] = np.concatenate([of("bias_ih"), of("bias_hh")], axis=1)
    if layer.peepholes:
        found["P"] = np.stack(
            [reorder(rec.arrays["weight_p"], src="ifo", dst="iof") for rec in recs.values()]
        )
    return found


def _scanned(
    g: Graph, time: Time, layer: Layer, recs: dict[str, Recurrence], x: str, start: dict[str, State]
) -> tuple[list[str], dict[str, State]]:
    """One Scan a direction; x [T, B, I] → each direction's output [T, B, P] and last states [B,
    P].
    """
    halves: list[str] = []
    last: dict[str, State] = {}
    outside = g.where
    for direction, rec in recs.items():
        g.where = f"{outside}/{direction}"
        backward = int(direction == "reverse")
        repeats = time.padding == "repeat" and not backward
        scanned = [project(g, rec, x), *([time.mask] if time.mask else [])]
        outputs = [g.path(n) for n in (*(f"{s}_last" for s in layer.states), "y")]
        node = helper.make_node(
            "Scan",
            [*start[direction].values(), *scanned],
            outputs,
            g.path("scan"),
            body=_body(g.where, layer, rec, time.mask is not None, repeats),
            num_scan_inputs=len(scanned),
            scan_input_directions=[backward] * len(scanned),
            scan_output_directions=[backward],
        )
        g.nodes.append(node)
        y = g.known(outputs[-1], 3)
        if repeats and time.some is not None:
            # A row of length 0 has no last output to repeat.
            y = g.select("y_some", g.unsqueeze("some_3d", time.some, 0), y, g.zero("y_some"))
        halves.append(y)
        last[direction] = dict(zip(layer.states, (g.known(n, 2) for n in outputs), strict=False))
    g.where = outside
    return halves, last


def _body(
    where: str, layer: Layer, rec: Recurrence, masked: bool, repeats: bool
) -> onnx.GraphProto:
    """h [B, P] (, c [B, H]), xw [B, G·H] (, valid [B, 1]) → the next states, and y [B, P]."""
    g = Graph()
    g.where = f"{where}/body"
    before = {s: g.known(g.path(f"{s}_before"), 2) for s in layer.states}
    xw, valid = g.known(g.path("xw"), 2), g.path("valid")
    new = step(g, rec, xw, before)
    y = new["h"]
    if masked:
        new = {s: g.select(f"{s}_kept", valid, t, before[s]) for s, t in new.items()}
        y = new["h"] if repeats else g.select("y_valid", valid, y, g.zero("y_valid"))
    outputs = [g.node(f"{s}_after", "Identity", [new[s]]) for s in layer.states]
    outputs.append(g.node("y", "Identity", [y]))
    floats = [*before.values(), xw]
    inputs = [value(n, TensorProto.FLOAT, [None, None]) for n in floats]
    inputs += [value(valid, TensorProto.BOOL, [None, 1])] if masked else []
    return g.make(
        g.path("step"), inputs, [value(n, TensorProto.FLOAT, [None, None]) for n in outputs]
    )


def _head(g: Graph, time: Time, spec: RNNSpec, weights: Weights, y: str) -> str:
    """y [T, B, F] or [B, F] → activation(y @ W.T + b), batch first"""
    head = spec.head
    assert head is not None
    g.where = "head"
    z: str = linear(g, head, weights, y)
    if head.on == "output":
        z = time.blanked("valid", z) if spec.padding == "zero" else z
        z = g.transpose("batch_first", z, 1, 0, 2)
    g.where = ""
    return z


def _width(spec: RNNSpec, state: str) -> int:
    return sum(size for _, size in spec.state_slots(state).values())


def _declared(spec: RNNSpec, name: str) -> onnx.ValueInfoProto:
    timed = name in ("input", "output", "output_reverse") or (
        name == "head" and spec.head is not None and spec.head.on == "output"
    )
    dynamic = ["batch", "time"] if timed else ["batch"]
    return value(name, KIND[spec.dtype(name)], [*dynamic, *spec.shapes(1, 1)[name][len(dynamic) :]])
