"""Evaluates a finished TensorRT INetworkDefinition in NumPy, loops included.

TensorRT needs a GPU to run a network, but none to tell what it holds: every layer reads back with
its attributes and inputs. `run` follows these, and shares nothing with the code that built the
network. It is an adversary: what TensorRT would refuse, and what is not modelled, raises
InterpreterError with the layer's name. Each tensor it computes must have the type, the rank and the
dimensions that TensorRT says it has. Layers are in interpreter_layers.py; loops, below, follow
TensorRT's documentation of ILoop and its boundary layers:

- Data leaves a loop through its loop outputs alone; the one edge back is a recurrence's input 1.
- COUNT: a 0-d integer, known before the loop starts, says how many times the body runs.
- Iterator: in iteration i it is entry i of the input's `axis`, and that axis is gone; in reverse it
  is entry M-1-i, where M is the trip count, not the length of the axis. A loop that concatenates
  must run once for every entry: the builder takes the two lengths for one, or refuses them.
- Recurrence: its first value is input 0, from outside; from then on it is what input 1 was one
  iteration before. Both have the same dimensions: nothing is stretched.
- LAST_VALUE: the input is a recurrence of this loop. What comes out is what it would be in the
  iteration after the last: the last input 1, or input 0 when the body never ran.
- CONCATENATE, REVERSE: the values of all iterations, first or last one first, on a new axis whose
  length is input 1, a 0-d integer from outside. Any length but the trip count is refused: so does
  the builder when it knows both, and what else the entries would hold is not documented.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any

import numpy as np
from interpreter_layers import LAYERS
from interpreter_values import NUMPY, InterpreterError, Value, integers, require, store

BOUNDARIES = {
    "TRIP_LIMIT": "ITripLimitLayer",
    "ITERATOR": "IIteratorLayer",
    "RECURRENCE": "IRecurrenceLayer",
    "LOOP_OUTPUT": "ILoopOutputLayer",
}


def run(trt: Any, network: Any, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every network output by name, for one set of inputs of concrete shapes.

    `trt` is the module the network came from: tensorrt or tensorrt_rtx. Inputs must have exactly
    the network's types (BF16: float32 arrays of values that bfloat16 holds); so have the outputs.
    """
    with np.errstate(all="ignore"):  # inf and NaN are answers like any other
        return {name: value.array for name, value in _Evaluation(trt, network).run(inputs).items()}


@dataclass(eq=False)
class _Node:
    """One layer; `scope` is the loop whose every iteration evaluates it anew, or None."""

    layer: Any
    kind: str
    inputs: list[Any]  # ITensor, or None for an input not set
    loop: Any = None  # the ILoop, of boundary layers
    scope: Any = None

    def __str__(self) -> str:
        return f"{self.layer.name} ({self.kind})"


@dataclass(eq=False)
class _Loop:
    """The boundary layers of one ILoop, by kind; told apart by object, for names can repeat."""

    loop: Any
    boundaries: dict[str, list[_Node]] = field(
        default_factory=lambda: {kind: [] for kind in BOUNDARIES}
    )


class _Evaluation:
    def __init__(self, trt: Any, network: Any) -> None:
        self.trt, self.network = trt, network
        self.makers: dict[str, _Node] = {}  # tensor name → the layer it comes from
        self.loops: list[_Loop] = []
        self.values: dict[str, Value] = {}  # tensor name → value; names are unique
        self.declared: dict[str, tuple[tuple[int, ...], str]] = {}
        for index in range(network.num_layers):
            self._read(network.get_layer(index))
        self.order = self._ordered()
        for node in self.order:
            node.scope = self._scope(node)

    def _read(self, layer: Any) -> None:
        kind = layer.type.name  # before its class changes: IActivationLayer.type is another thing
        tensors = [layer.get_input(i) for i in range(layer.num_inputs)]
        node = _Node(layer, kind, tensors)
        require(layer.num_outputs or kind == "TRIP_LIMIT", f"{node} is not modelled")
        for i in range(layer.num_outputs):
            self.makers[layer.get_output(i).name] = node
        if kind in BOUNDARIES:
            layer.__class__ = getattr(self.trt, BOUNDARIES[kind])
            node.loop = next((known for known in self.loops if known.loop is layer.loop), None)
            if node.loop is None:
                node.loop = _Loop(layer.loop)
                self.loops.append(node.loop)
            node.loop.boundaries[kind].append(node)
        elif kind in LAYERS:
            layer.__class__ = getattr(self.trt, LAYERS[kind][0])

    def _needs(self, node: _Node) -> list[_Node]:
        """What must be evaluated before `node`; a loop output needs all of its loop's inputs."""
        tensors = node.inputs[:1] if node.kind == "RECURRENCE" else node.inputs
        if node.kind == "LOOP_OUTPUT":
            boundaries = [n for nodes in node.loop.boundaries.values() for n in nodes]
            tensors = [tensor for n in boundaries for tensor in n.inputs]
        return [self.makers[t.name] for t in tensors if t is not None and t.name in self.makers]

    def _ordered(self) -> list[_Node]:
        """The layers that the network's outputs need, each after those that it needs itself."""
        outputs = [self.network.get_output(i) for i in range(self.network.num_outputs)]
        require(outputs, "the network has no output")
        wanted = [self.makers[t.name] for t in outputs if t.name in self.makers]
        graph: dict[_Node, list[_Node]] = {}
        while wanted:
            node = wanted.pop()
            if node not in graph:
                graph[node] = self._needs(node)
                wanted += graph[node]
        try:
            return list(TopologicalSorter(graph).static_order())
        except CycleError as error:
            cycle = " ← ".join(map(str, error.args[1]))
            raise InterpreterError(f"a cycle that no recurrence cuts: {cycle}") from error

    def _scope_of(self, tensor: Any) -> Any:
        maker = self.makers.get(tensor.name)
        return maker.scope if maker and maker.kind != "LOOP_OUTPUT" else None

    def _scope(self, node: _Node) -> Any:
        tensors = node.inputs[:1] if node.loop else node.inputs
        scopes = {self._scope_of(t) for t in tensors if t is not None} - {None}
        if node.kind in ("ITERATOR", "RECURRENCE"):
            require(not scopes, f"{node} starts inside a loop: nested loops are not modelled")
            return node.loop
        if node.kind == "LOOP_OUTPUT":
            require(scopes <= {node.loop}, f"{node} takes its input from another loop")
            return None
        require(len(scopes) <= 1, f"{node} mixes values of two loops")
        return scopes.pop() if scopes else None

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, Value]:
        self._accept(inputs)
        for node in self.order:
            if node.kind == "LOOP_OUTPUT":
                if node.layer.get_output(0).name not in self.values:
                    self._run_loop(node.loop)
            elif node.scope is None:
                self._compute(node, self.values)
        outputs = [self.network.get_output(i) for i in range(self.network.num_outputs)]
        for tensor in outputs:
            require(tensor.name in self.values, f"network output {tensor.name} is inside a loop")
        return {tensor.name: self.values[tensor.name] for tensor in outputs}

    def _accept(self, inputs: Mapping[str, np.ndarray]) -> None:
        tensors = [self.network.get_input(i) for i in range(self.network.num_inputs)]
        names, named = {t.name for t in tensors}, {}
        require(set(inputs) == names, f"got inputs {sorted(inputs)}, wanted {sorted(names)}")
        for tensor in tensors:
            type_, array = tensor.dtype.name, np.asarray(inputs[tensor.name])
            require(type_ in NUMPY, f"input {tensor.name}: {type_} is not modelled")
            require(
                array.dtype == NUMPY[type_],
                f"input {tensor.name}: got {array.dtype}, wanted {type_}",
            )
            value = store(array, type_)
            require(
                np.array_equal(value.array, array, equal_nan=True),
                f"input {tensor.name} holds values that {type_} does not",
            )
            self._check(f"input {tensor.name}", tensor, value)
            for axis, length in enumerate(array.shape):
                if name := tensor.get_dimension_name(axis):
                    require(
                        named.setdefault(name, length) == length,
                        f"dimension {name} is {named[name]}, but {length} in {tensor.name}",
                    )
            self.values[tensor.name] = value

    def _check(self, what: object, tensor: Any, value: Value) -> Value:
        """TensorRT's word on the tensor: it validates a layer when its output's shape is read."""
        if tensor.name not in self.declared:
            try:
                self.declared[tensor.name] = tuple(tensor.shape), tensor.dtype.name
            except (RuntimeError, ValueError) as error:
                raise InterpreterError(f"{what}: TensorRT finds it invalid: {error}") from error
        (dims, type_), shape = self.declared[tensor.name], value.array.shape
        require(
            value.type == type_
            and len(shape) == len(dims)
            and all(d in (-1, n) for d, n in zip(dims, shape, strict=True)),
            f"{what}: computed {value}, but TensorRT says {type_} {list(dims)}",
        )
        return value

    def _fetch(self, node: _Node, index: int, values: Mapping[str, Value]) -> Value:
        tensor = node.inputs[index] if index < len(node.inputs) else None
        require(tensor is not None, f"{node} has no input {index}")
        found = values.get(tensor.name, self.values.get(tensor.name))
        require(found is not None, f"{node}: {tensor.name} has no value here")
        return found

    def _compute(self, node: _Node, values: dict[str, Value]) -> None:
        require(node.kind in LAYERS and node.layer.num_outputs == 1, f"{node} is not modelled")
        arguments = [
            None if tensor is None else self._fetch(node, i, values)
            for i, tensor in enumerate(node.inputs)
        ]
        tensor = node.layer.get_output(0)
        try:
            value = LAYERS[node.kind][1](self.trt, node.layer, arguments)
        except (InterpreterError, ValueError, IndexError, KeyError) as error:
            raise InterpreterError(f"{node}: {error}") from error
        values[tensor.name] = self._check(node, tensor, value)

    def _trip_count(self, loop: _Loop) -> int:
        limits = loop.boundaries["TRIP_LIMIT"]
        require(
            len(limits) == 1 and limits[0].layer.kind == self.trt.TripLimit.COUNT,
            f"loop {loop.loop.name}: only one trip limit of kind COUNT is modelled, "
            f"got {[limit.layer.kind.name for limit in limits]}",
        )
        return self._outside_integer(limits[0], 0, "trip count")

    def _outside_integer(self, node: _Node, index: int, what: str) -> int:
        number = integers(self._fetch(node, index, {}), f"{node}: {what}", 0)
        require(number >= 0, f"{node}: {what} is {number}")
        return number

    def _run_loop(self, loop: _Loop) -> None:
        trips = self._trip_count(loop)
        body = [node for node in self.order if node.scope is loop]
        recurrences, outputs = loop.boundaries["RECURRENCE"], loop.boundaries["LOOP_OUTPUT"]
        for node in recurrences:
            require(len(node.inputs) == 2, f"{node} needs 2 inputs, has {len(node.inputs)}")
        state = {node: self._fetch(node, 0, {}) for node in recurrences}
        history: dict[_Node, list[Value]] = {node: [] for node in outputs}
        for iteration in range(trips):
            values: dict[str, Value] = {}
            for node in recurrences:
                tensor = node.layer.get_output(0)
                values[tensor.name] = self._check(node, tensor, state[node])
            for node in body:
                if node.kind == "ITERATOR":
                    self._iterate(node, iteration, trips, values)
                elif node.kind != "RECURRENCE":
                    self._compute(node, values)
            for node in outputs:
                history[node].append(self._fetch(node, 0, values))
            state = {node: self._next(node, old, values) for node, old in state.items()}
        for node in outputs:
            tensor = node.layer.get_output(0)
            value = self._leave(node, history[node], state, trips)
            self.values[tensor.name] = self._check(node, tensor, value)

    def _iterate(self, node: _Node, iteration: int, trips: int, values: dict[str, Value]) -> None:
        over, axis, tensor = self._fetch(node, 0, {}), node.layer.axis, node.layer.get_output(0)
        kinds = {out.layer.kind for out in node.loop.boundaries["LOOP_OUTPUT"]}
        entry, end = (
            trips - 1 - iteration if node.layer.reverse else iteration,
            over.array.shape[axis],
        )
        require(entry < end, f"{node}: entry {entry} is outside axis {axis} of {over}")
        require(
            trips == end or kinds == {self.trt.LoopOutput.LAST_VALUE},
            f"{node}: {trips} trips over axis {axis} of {over} in a loop that concatenates",
        )
        value = Value(np.take(over.array, entry, axis), over.type)
        values[tensor.name] = self._check(node, tensor, value)

    def _next(self, node: _Node, old: Value, values: dict[str, Value]) -> Value:
        new = self._fetch(node, 1, values)
        require(
            (new.type, new.array.shape) == (old.type, old.array.shape),
            f"{node}: input 0 is {old}, but input 1 is {new}",
        )
        return new

    def _leave(self, node: _Node, history: list[Value], state: dict, trips: int) -> Value:
        kind = node.layer.kind.name
        if kind == "LAST_VALUE":
            maker = self.makers.get(node.inputs[0].name)
            require(maker in state, f"{node}: LAST_VALUE takes a recurrence of its own loop")
            require(len(node.inputs) == 1, f"{node}: LAST_VALUE takes 1 input")
            return state[maker]
        require(len(node.inputs) == 2, f"{node}: {kind} needs its length as input 1")
        length = self._outside_integer(node, 1, "length")
        require(length == trips, f"{node}: length {length} is not the trip count {trips}")
        require(trips, f"{node}: {kind} of no iteration is not modelled")
        arrays = [value.array for value in (history if kind == "CONCATENATE" else history[::-1])]
        return Value(np.stack(arrays, node.layer.axis), history[0].type)
