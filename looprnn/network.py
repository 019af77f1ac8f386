"""spec + weights → TensorRT INetworkDefinition; the only file that opens an ILoop.

B batch, T time, I input, H hidden, G gates, D directions. One Loop runs all directions: each has
its own iterator over its own hoisted projection, its own recurrences and its own outputs.

    input [B,T,I] ──▶ x·Wᵀ + b [B,T,G·H] ──iterator──▶ ┌ Loop, T times ────────┐
    h_0   [B,D,H] ──▶ [B,H] ──────────recurrence─────▶ │ h·Rᵀ, gates, cell     │──▶ output [B,T,D·H]
    c_0   [B,D,H] ──▶ [B,H] ──────────recurrence─────▶ └───────────────────────┘──▶ h_n, c_n [B,D,H]

`trt` is the module: tensorrt or tensorrt_rtx. Their network API is the same; what differs is in
engines/tensorrt.py.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from looprnn.errors import EngineError
from looprnn.spec import RNNSpec
from looprnn.weights import SUFFIX, Weights

Tensor = Any  # trt.ITensor


@dataclass
class Net:
    """A network under construction: names every layer, and refuses the None TensorRT answers to a
    wrong one.
    """

    trt: Any
    network: Any
    kept: list[NDArray[Any]] = field(default_factory=list)  # trt.Weights does not copy

    def named(self, layer: Any, name: str) -> Tensor:
        if layer is None:
            raise EngineError(f"TensorRT refused the layer {name!r}: its log says why (--verbose)")
        layer.name = name
        tensor = layer.get_output(0)
        tensor.name = f"{name}:0"
        return tensor

    def constant(self, name: str, array: NDArray[Any]) -> Tensor:
        array = np.array(array, order="C")  # ascontiguousarray would make a 0-d array 1-d
        self.kept.append(array)
        return self.named(self.network.add_constant(array.shape, self.trt.Weights(array)), name)

    def matmul(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        none = self.trt.MatrixOperation.NONE
        return self.named(self.network.add_matrix_multiply(a, none, b, none), name)

    def elementwise(self, name: str, op: str, a: Tensor, b: Tensor) -> Tensor:
        op = getattr(self.trt.ElementWiseOperation, op)
        return self.named(self.network.add_elementwise(a, b, op), name)

    def activation(self, name: str, kind: str, x: Tensor) -> Tensor:
        kind = getattr(self.trt.ActivationType, kind.upper())
        return self.named(self.network.add_activation(x, kind), name)

    def take(self, name: str, x: Tensor, index: int, axis: int) -> Tensor:
        """x without `axis`, at `index`."""
        at = self.constant(f"{name}/index", np.array(index, np.int32))
        return self.named(self.network.add_gather(x, at, axis), name)


@dataclass(frozen=True)
class Recurrence:
    """What one direction brings into the Loop."""

    xw: Tensor  # [B, G·H] at each step: x·Wᵀ + b_ih + b_hh
    r_t: Tensor  # [H, G·H]
    states: dict[str, Any]  # "h", "c" → IRecurrenceLayer of [B, H]
    size: Tensor  # [2]: the shape [B, H], known only at run time


def rnn_step(net: Net, where: str, rec: Recurrence, activation: str) -> dict[str, Tensor]:
    """h = act(xw + h @ R.T)                               # [B, H]"""
    hr = net.matmul(f"{where}/h_r", rec.states["h"].get_output(0), rec.r_t)
    return {
        "h": net.activation(
            f"{where}/h", activation, net.elementwise(f"{where}/sum", "SUM", rec.xw, hr)
        )
    }


def lstm_step(net: Net, where: str, rec: Recurrence, gates: str) -> dict[str, Tensor]:
    """i, f, g, o = split(xw + h @ R.T, 4)                 # each [B, H]
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)              # [B, H]
    h = sigmoid(o) * tanh(c)                               # [B, H]"""
    hr = net.matmul(f"{where}/h_r", rec.states["h"].get_output(0), rec.r_t)
    gate = split(net, where, net.elementwise(f"{where}/sum", "SUM", rec.xw, hr), rec.size, gates)
    i, f, o = (net.activation(f"{where}/sigmoid_{g}", "sigmoid", gate[g]) for g in "ifo")
    g = net.activation(f"{where}/tanh_g", "tanh", gate["g"])
    kept = net.elementwise(f"{where}/forget", "PROD", f, rec.states["c"].get_output(0))
    added = net.elementwise(f"{where}/add", "PROD", i, g)
    c = net.elementwise(f"{where}/c", "SUM", kept, added)
    h = net.elementwise(f"{where}/h", "PROD", o, net.activation(f"{where}/tanh_c", "tanh", c))
    return {"h": h, "c": c}


def split(net: Net, where: str, x: Tensor, size: Tensor, gates: str) -> dict[str, Tensor]:
    """[B, G·H] → one [B, H] a gate, by name."""
    hidden = x.shape[1] // len(gates)
    block = {}
    for k, gate in enumerate(gates):
        layer = net.network.add_slice(x, (0, k * hidden), (1, hidden), (1, 1))
        layer.set_input(2, size)
        block[gate] = net.named(layer, f"{where}/gate_{gate}")
    return block


def define(trt: Any, network: Any, spec: RNNSpec, weights: Weights) -> list[NDArray[Any]]:
    """Fill an empty, strongly typed network. Keep the returned arrays alive until it is built.

    Raises EngineError, naming the layer, if TensorRT refuses one.
    """
    net = Net(trt, network)
    inputs = {name: _input(net, spec, name) for name in spec.input_names}
    loop = network.add_loop()
    loop.name = "time_loop"
    shape = net.named(network.add_shape(inputs["input"]), "input_shape")
    steps = net.take("steps", shape, 1, axis=0)  # T, 0-d INT64
    loop.add_trip_limit(steps, trt.TripLimit.COUNT).name = "time_loop/steps"

    ends: dict[str, list[Tensor]] = {name: [] for name in spec.output_names}
    for k, direction in enumerate(spec.directions):
        rec = enter(net, loop, spec, weights, inputs, k, direction)
        new = (
            lstm_step(net, direction, rec, spec.gates)
            if spec.cell == "lstm"
            else rnn_step(net, direction, rec, spec.activation)
        )
        for state, layer in rec.states.items():
            layer.set_input(1, new[state])
            last = loop.add_loop_output(layer.get_output(0), trt.LoopOutput.LAST_VALUE)
            end = net.named(last, f"{direction}/{state}_last")  # [B, H]
            ends[f"{state}_n"].append(_insert_direction(net, end, f"{direction}/{state}_n"))
        # Backward runs from the last step to the first: REVERSE puts that into order of time.
        kind = trt.LoopOutput.REVERSE if direction == "reverse" else trt.LoopOutput.CONCATENATE
        every = loop.add_loop_output(new["h"], kind, 1)
        every.set_input(1, steps)
        ends["output"].append(net.named(every, f"{direction}/output"))  # [B, T, H]

    for name, parts in ends.items():
        joined = parts[0]
        if len(parts) > 1:
            layer = network.add_concatenation(parts)
            layer.axis = 2 if name == "output" else 1
            joined = net.named(layer, f"join/{name}")
        joined.name = name
        network.mark_output(joined)
    return net.kept


def _input(net: Net, spec: RNNSpec, name: str) -> Tensor:
    _, middle, last = spec.shapes(1, 1)[name]
    shape = (-1, -1 if name == "input" else middle, last)
    tensor = net.network.add_input(name, net.trt.float32, shape)
    tensor.set_dimension_name(0, "batch")  # all inputs share their B
    return tensor


def enter(
    net: Net,
    loop: Any,
    spec: RNNSpec,
    weights: Weights,
    inputs: dict[str, Tensor],
    k: int,
    direction: str,
) -> Recurrence:
    """The projection x·Wᵀ + b of all steps [B, T, G·H], its iterator, and the recurrences of one
    direction.
    """
    suffix = SUFFIX[direction]
    w_t = net.constant(
        f"{direction}/W", weights[f"weight_ih_{suffix}"].T[np.newaxis]
    )  # [1, I, G·H]
    r_t = net.constant(f"{direction}/R", weights[f"weight_hh_{suffix}"].T)  # [H, G·H]
    bias = weights[f"bias_ih_{suffix}"] + weights[f"bias_hh_{suffix}"]
    b = net.constant(f"{direction}/b", bias[np.newaxis, np.newaxis])  # [1, 1, G·H]
    xw = net.elementwise(
        f"{direction}/x_w_b", "SUM", net.matmul(f"{direction}/x_w", inputs["input"], w_t), b
    )
    iterator = loop.add_iterator(xw, 1, direction == "reverse")
    states = {}
    for state in spec.states:
        initial = net.take(f"{direction}/{state}_0", inputs[f"{state}_0"], k, axis=1)  # [B, H]
        states[state] = loop.add_recurrence(initial)
        net.named(states[state], f"{direction}/{state}_before")
    size = net.named(net.network.add_shape(states["h"].get_input(0)), f"{direction}/state_shape")
    return Recurrence(net.named(iterator, f"{direction}/step"), r_t, states, size)


def _insert_direction(net: Net, x: Tensor, name: str) -> Tensor:
    """[B, H] → [B, 1, H]"""
    layer = net.network.add_shuffle(x)
    layer.reshape_dims = (0, 1, x.shape[1])  # 0 copies B
    return net.named(layer, name)
