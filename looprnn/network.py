"""spec + weights → TensorRT INetworkDefinition; the only file that opens an ILoop.

B batch, T time, I input, H hidden, P what a step puts out, G gates, D directions, S all states side
by side. Each layer is one Loop that runs all its directions: each has its own iterator over its own
hoisted projection, its own recurrences and its own outputs.

    x   [B,T,I] ──▶ x·Wᵀ + b [B,T,G·H] ──iterator──▶ ┌ Loop, T times ───────┐
    h_0 [B,S] ──▶ [B,P] ────────────────recurrence─▶ │ h·Rᵀ, gates (cells)  │──▶ y [B,T,D·P]
    c_0 [B,S] ──▶ [B,H] ────────────────recurrence─▶ └──────────────────────┘──▶ h_n, c_n

`trt` is the module: tensorrt or tensorrt_rtx. Their network API is the same; what differs is in
engines/tensorrt.py.
"""

from dataclasses import dataclass
from typing import Any

from looprnn.cells import Recurrence, Tensor, linear, merge, project, recurrences, step
from looprnn.network_ops import Net
from looprnn.spec import Layer, RNNSpec
from looprnn.weights import Weights


def define(trt: Any, network: Any, spec: RNNSpec, weights: Weights) -> list[Any]:
    """Fill an empty, strongly typed network. Keep the returned arrays alive until it is built.

    Raises EngineError, naming the layer, if TensorRT refuses one.
    """
    net = Net(trt, network, spec.precision)
    inputs = {name: _input(net, spec, name) for name in spec.input_names}
    shape = net.named(network.add_shape(inputs["input"]), "input_shape")
    time = Time(net, net.take("steps", shape, 1, axis=0), inputs.get("lengths"), spec.padding)
    x = inputs["input"]
    if spec.vocabulary:
        x = net.named(
            network.add_gather(net.weight("embedding", weights["embedding.weight"]), x, 0), "embed"
        )
    flat = {s: net.reshape(f"{s}_0_flat", inputs[f"{s}_0"], (0, -1)) for s in spec.states}  # [B, S]
    ends: dict[str, list[Tensor]] = {s: [] for s in spec.states}
    outputs: list[Tensor] = []

    for k, layer in enumerate(spec.layers):
        start = {
            direction: {
                s: net.columns(
                    f"l{k}/{direction}/{s}_0", flat[s], *spec.state_slots(s)[k, direction]
                )
                for s in layer.states
            }
            for direction in layer.directions
        }
        outputs, last = _layer(net, time, f"l{k}", layer, recurrences(layer, k, weights), x, start)
        for s, tensors in last.items():
            ends[s] += tensors
        x = outputs[0]

    answers = dict(zip(("output", "output_reverse"), outputs, strict=False))
    for s in spec.states:
        joined = net.concatenate(f"{s}_n_flat", ends[s], 1)  # [B, S]
        answers[f"{s}_n"] = net.reshape(f"{s}_n_dims", joined, (0, *spec.state_dims(s)))
    if spec.head:
        directions = len(spec.layers[-1].directions)
        last_h = net.concatenate("head/last", ends["h"][-directions:], 1)
        answers["head"] = _head(net, time, spec, weights, x if spec.head.on == "output" else last_h)
    for name in spec.output_names:
        answer = net.as_float(f"{name}_float", answers[name])
        answer.name = name
        network.mark_output(answer)
    return net.kept


@dataclass(frozen=True)
class Time:
    """The loops' common notion of time: T, and with lengths which steps of each row are valid."""

    net: Net
    steps: Tensor  # 0-d INT64
    lengths: Tensor | None  # [B] INT32
    padding: str

    @property
    def mask(self) -> Tensor | None:
        """[B, T, 1] BOOL: t < lengths; built once."""
        if self.lengths is None:
            return None
        return self.net.once("mask", lambda: self.net.mask(self.steps, self.lengths))

    def blanked(self, name: str, y: Tensor) -> Tensor:
        """y [B, T, P] with 0 past each row's length."""
        if self.mask is None:
            return y
        return self.net.select(name, self.mask, y, self.net.zero(name, y))


def _layer(
    net: Net,
    time: Time,
    where: str,
    layer: Layer,
    recs: dict[str, Recurrence],
    x: Tensor,
    start: dict[str, dict[str, Tensor]],
) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
    """x [B, T, I] → its outputs [B, T, …], and the last states [B, P] of each direction by
    state.
    """
    loop = net.network.add_loop()
    loop.name = f"{where}/loop"
    limit = loop.add_trip_limit(time.steps, net.trt.TripLimit.COUNT)
    limit.name = f"{where}/loop/steps"
    halves, ends = [], {s: [] for s in layer.states}  # type: ignore[var-annotated]
    for direction, rec in recs.items():
        net.where = f"{where}/{direction}"
        y, last = _direction(net, time, loop, direction, rec, x, start[direction])
        halves.append(y)
        for s, tensor in last.items():
            ends[s].append(tensor)
    net.where = where
    outputs = merge(net, layer, halves)
    if layer.residual:
        outputs = [time.blanked("residual_valid", net.binary("residual", "add", outputs[0], x))]
    net.where = ""
    return outputs, ends


def _direction(
    net: Net,
    time: Time,
    loop: Any,
    direction: str,
    rec: Recurrence,
    x: Tensor,
    start: dict[str, Tensor],
) -> tuple[Tensor, dict[str, Tensor]]:
    trt, reverse = net.trt, direction == "reverse"
    xw = net.named(loop.add_iterator(project(net, rec, x), 1, reverse), "step")  # [B, G·H]
    valid = None
    if time.mask is not None:
        valid = net.named(loop.add_iterator(time.mask, 1, reverse), "valid")  # [B, 1]
    layers = {
        s: loop.add_recurrence(net.as_state(f"{s}_start", s, tensor)) for s, tensor in start.items()
    }
    before = {s: net.named(layer, f"{s}_before") for s, layer in layers.items()}
    new = {s: net.as_state(f"{s}_new", s, t) for s, t in step(net, rec, xw, before).items()}
    y = new["h"]
    if valid is not None:
        # Past its length a row's states stand still, and it puts out 0, or repeats its last h.
        kept = {s: net.select(f"{s}_kept", valid, t, before[s]) for s, t in new.items()}
        repeats = time.padding == "repeat" and not reverse
        y = kept["h"] if repeats else net.select("y", valid, y, net.zero("y", y))
        new = kept
    ends = {}
    for s, layer in layers.items():
        layer.set_input(1, new[s])
        last = loop.add_loop_output(layer.get_output(0), trt.LoopOutput.LAST_VALUE)
        ends[s] = net.named(last, f"{s}_last")  # [B, P]
    # Backward runs from the last step to the first: REVERSE puts that into order of time.
    kind = trt.LoopOutput.REVERSE if reverse else trt.LoopOutput.CONCATENATE
    every = loop.add_loop_output(y, kind, 1)
    every.set_input(1, time.steps)
    output = net.named(every, "output")  # [B, T, P]
    if valid is not None and time.padding == "repeat" and not reverse:
        # A row of length 0 has no last output to repeat.
        some = net.once("some", lambda: net.some(time.lengths))
        output = net.select("output_some", some, output, net.zero("output_some", output))
    return output, ends


def _head(net: Net, time: Time, spec: RNNSpec, weights: Weights, y: Tensor) -> Tensor:
    """y [B, T, F] or [B, F] → activation(y @ W.T + b)"""
    head = spec.head
    assert head is not None
    net.where = "head"
    z = linear(net, head, weights, y)
    z = time.blanked("valid", z) if head.on == "output" and spec.padding == "zero" else z
    net.where = ""
    return z


def _input(net: Net, spec: RNNSpec, name: str) -> Tensor:
    kind = net.trt.int32 if spec.dtype(name).__name__ == "int32" else net.trt.float32
    dynamic = 2 if name == "input" else 1
    shape = (*[-1] * dynamic, *spec.shapes(1, 1)[name][dynamic:])
    tensor = net.network.add_input(name, kind, shape)
    tensor.set_dimension_name(0, "batch")  # all inputs share their B
    return tensor
