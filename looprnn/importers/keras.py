"""Keras .keras and .h5 → spec and weights: SimpleRNN, LSTM, GRU, Bidirectional, stacks of them.

A stack is what follows one another without a gap: recurrent layers with Dropout between them, an
Embedding or Masking directly before, a final Dense after. Whatever else surrounds it is named in a
note. Keras itself is not needed, and nothing in a file is run.
"""

import dataclasses
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from looprnn.errors import SpecError, WeightsError
from looprnn.importers import PLACEHOLDER, Imported
from looprnn.importers.keras_file import Array, Saved, opened
from looprnn.importers.keras_graph import Graph, Node, graph_of
from looprnn.importers.keras_layers import (
    arrays_of,
    cells_of,
    field,
    groups_of,
    halves_of,
    own_kind,
    variables,
)
from looprnn.layer import near
from looprnn.spec import Head, Layer, RNNSpec
from looprnn.weights import suffix

MERGE: Final[dict[str, Literal["concat", "sum", "mul", "average", "none"]]] = {
    "concat": "concat", "sum": "sum", "mul": "mul", "ave": "average", "None": "none",
}  # fmt: skip
HEADS: Final[dict[str, Literal["none", "sigmoid", "softmax"]]] = {
    "linear": "none", "None": "none", "sigmoid": "sigmoid", "softmax": "softmax",
}  # fmt: skip
Recurrences = dict[str, dict[str, Array]]  # direction → weight_ih, …


def read(path: Path, *, name: str, layer: str | None = None) -> Imported:
    """One stack of the model; `layer` is the name of any of its layers.

    Raises WeightsError: not a whole model, several stacks and none chosen, a weight that is
    missing, left over or misshapen, or a hostile file. Raises SpecError for what no spec expresses.
    """
    with opened(path) as saved:
        graph = graph_of(saved)
        return _Reader(saved, graph, _choose(saved, graph, layer)).imported(name)


def _choose(saved: Saved, graph: Graph, layer: str | None) -> list[Node]:
    stacks = graph.stacks()
    if not stacks:
        held = ", ".join(map(str, graph.nodes.values()))
        raise WeightsError(
            f"{saved.origin}: no recurrent layer, only {held or 'nothing'}. One inside a model "
            "of its own is not seen: model.get_layer(…).save('inner.keras') saves that"
        )
    chosen = [s for s in stacks if layer is None or layer in [node.name for node in s]]
    if len(chosen) == 1:
        return chosen[0]
    listed = "".join(f"\n  --layer {s[0].name}: {', '.join(map(str, s))}" for s in stacks)
    names = tuple(node.name for stack in stacks for node in stack)
    held = "several stacks" if layer is None else f"no layer {layer!r}{near(layer, names)}"
    raise WeightsError(f"{saved.origin}: {held}\nChoose one of them:{listed}")


class _Reader:
    """Reads one stack, front to back; the parts of the answer gather in its fields."""

    def __init__(self, saved: Saved, graph: Graph, stack: list[Node]) -> None:
        self.saved, self.graph, self.stack = saved, graph, stack
        self.layers: list[Layer] = []
        self.weights: dict[str, Array] = {}
        self.notes: list[str] = []
        self.flipped = False  # Keras' sequence stands reversed in time here
        masker = graph.masked(stack[0])
        self.lengths = masker is not None or stack[0].mask
        if late := [node for node in stack if node.mask and not self.lengths]:
            raise SpecError(f"{late[0]} alone is called with a mask: lengths are for all layers")
        if self.lengths:
            masked = f"{stack[0]} is called with a mask"
            if masker is not None and masker.kind == "Masking":
                value = masker.config.get("mask_value", 0.0)
                masked = f"{masker} skips steps whose every feature is {value}"
            elif masker is not None:
                masked = f"{masker} has mask_zero and skips the id 0"
            self.notes.append(
                f"{masked}: send `lengths` instead, with the padding on the right; "
                "no other mask can be served"
            )

    def imported(self, name: str) -> Imported:
        vocabulary, inputs = self._embedding()
        for node in self.stack:
            inputs = self._add(node, inputs)
        first = self.weights[f"weight_ih_{suffix(0, self.layers[0].directions[0])}"]
        head, after = self._head()
        self._note_surroundings(after)
        spec = RNNSpec(
            name=name,
            input_size=first.shape[1],
            layers=tuple(self.layers),
            vocabulary=vocabulary,
            head=head,
            lengths=self.lengths,
            padding=self._padding(head),
            weights=PLACEHOLDER,
        )
        return Imported(spec, self.weights, tuple(self.notes))

    def _embedding(self) -> tuple[int | None, int | None]:
        """(vocabulary, input size), if an Embedding stands directly before."""
        ref = self.graph.source(self.stack[0])
        node = self.graph.nodes[ref[0]] if ref else None
        if node is None or node.kind != "Embedding":
            return None, None
        shape = tuple(field(node.config, n, int, node.name) for n in ("input_dim", "output_dim"))
        (found,) = groups_of(self.saved, node.name, node.counted, {"": "*"})
        read = variables(self.saved, node.name, found, {"embeddings": shape})
        self.weights["embedding.weight"] = read["embeddings"]
        return shape

    def _add(self, node: Node, inputs: int | None) -> int:
        """Append the layers of one Keras layer; answers what the next one reads at each step."""
        if self.flipped and (self.lengths or node.kind == "Bidirectional"):
            raise SpecError(
                f"{node}: it reads a sequence that go_backwards left reversed in time, "
                f"{'under a mask that is not' if self.lengths else 'in both directions'}; "
                "that cannot be served"
            )
        made = self._both(node, inputs) if node.kind == "Bidirectional" else self._one(node, inputs)
        follow = self.stack[self.stack.index(node) + 1 :]
        add = self.graph.before(follow[0])[1] if follow else self._after(node)[1]
        for layer, recurrences in made:
            if add is not None:  # never around stacked cells
                layer = dataclasses.replace(layer, residual=True)
            for direction, arrays in recurrences.items():
                end = suffix(len(self.layers), direction)
                self.weights |= {f"{base}_{end}": array for base, array in arrays.items()}
            self.layers.append(layer)
        if node.flag("go_backwards") and node.sequences:
            self.flipped = not self.flipped
        self._note_layer(node)
        return self.layers[-1].output_size

    def _one(self, node: Node, inputs: int | None) -> list[tuple[Layer, Recurrences]]:
        """A layer in one direction; several, if its cells are stacked."""
        cells, roles = cells_of(node.kind, node.config, node.name, "cell", self.saved.version)
        direction: Literal["forward", "reverse"] = (
            "reverse" if node.flag("go_backwards") != self.flipped else "forward"
        )
        made: list[tuple[Layer, Recurrences]] = []
        for cell, found in zip(cells, self._groups(node, roles), strict=True):
            arrays = arrays_of(self.saved, cell, found, inputs)
            made.append((cell.layer(direction=direction), {direction: arrays}))
            inputs = cell.hidden
        return made

    def _both(self, node: Node, inputs: int | None) -> list[tuple[Layer, Recurrences]]:
        mode = node.config.get("merge_mode", "concat")
        merge = MERGE.get(str(mode))
        if merge is None:
            raise SpecError(f"{node}: merge_mode {mode!r}; known: {', '.join(MERGE)}")
        cells, roles = halves_of(node.config, node.name, self.saved.version)
        halves = [
            arrays_of(self.saved, cell, found, inputs)
            for cell, found in zip(cells, self._groups(node, roles), strict=True)
        ]
        layer = cells[0].layer(
            direction="bidirectional",
            activations_reverse=cells[1].activations,
            merge=merge,
        )
        return [(layer, {"forward": halves[0], "reverse": halves[1]})]

    def _groups(self, node: Node, roles: dict[str, str]) -> list[Any]:
        return groups_of(self.saved, node.name, node.counted, roles)

    def _after(self, node: Node) -> tuple[list[Node], Node | None]:
        """Who reads from `node`, and the Add that makes it residual, if nothing else does."""
        users = self.graph.users(node)
        if len(users) == 1 and self.graph.wrapped(users[0]) is node:
            return self.graph.users(users[0]), users[0]
        return users, None

    def _head(self) -> tuple[Head | None, list[Node]]:
        """The final Dense, and all that reads from the stack and is not imported."""
        last, layer = self.stack[-1], self.layers[-1]
        after, _ = self._after(last)
        if len(after) != 1 or after[0].calls != 1:
            return None, after
        dense = after[0]
        entry = dense.config.get("layer") if dense.kind == "TimeDistributed" else None
        kind = own_kind(entry, dense.name) if entry else dense.kind
        config = field(entry, "config", dict, dense.name) if entry else dense.config
        ending = self.graph.users(dense)
        activation = str(config.get("activation"))
        if HEADS.get(activation) == "none" and len(ending) == 1 and not self.graph.users(ending[0]):
            folded = {"Softmax": "softmax", "Activation": ending[0].config.get("activation")}
            if ending[0].kind in folded and ending[0].config.get("axis", -1) == -1:
                activation, ending = str(folded[ending[0].kind]), []
        on = self._place(dense, last)
        if kind != "Dense" or ending or activation not in HEADS or on is None:
            return None, after
        size: int = field(config, "units", int, dense.name)
        bias: bool = field(config, "use_bias", bool, dense.name, True)
        several = layer.direction == "bidirectional" and on == "last" and layer.merge != "concat"
        shapes = {"kernel": (layer.output_size, size), "bias": (size,)}
        (found,) = self._groups(dense, {"layer" if entry else "": "*"})
        read = variables(
            self.saved, dense.name, found, shapes if bias else {"kernel": shapes["kernel"]}
        )
        weight = read["kernel"].T
        if several:  # W (a + b) = [W W] [a b]; h_n holds both directions side by side
            weight = np.tile(weight, 2) / (2 if layer.merge == "average" else 1)
        self.weights["head.weight"] = weight
        if bias:
            self.weights["head.bias"] = read["bias"]
        return Head(size=size, on=on, activation=HEADS[activation], bias=bias), []

    def _place(self, dense: Node, last: Node) -> Literal["output", "last"] | None:
        """What of the last layer a Dense reads."""
        ref, layer = self.graph.source(dense), self.layers[-1]
        if ref is None or layer.merge == "none":
            return None
        if ref[1] == 0 and last.sequences:
            return "output"
        state = ref[1] == 1 and layer.direction != "bidirectional" and last.kind != "RNN"
        linear = layer.direction != "bidirectional" or layer.merge != "mul"
        return "last" if (state or ref[1] == 0) and linear else None

    def _padding(self, head: Head | None) -> Literal["zero", "repeat"]:
        """What Keras writes past a row's end; a Bidirectional that answers sequences always 0."""
        last = self.stack[-1]
        if not self.lengths:
            return "zero"
        zero = last.sequences if last.kind == "Bidirectional" else last.flag("zero_output_for_mask")
        if zero and not last.sequences:
            self.notes.append(
                f"{last}: with zero_output_for_mask Keras answers 0 for a row that is shorter than "
                "the longest; h_n here is its last valid state"
            )
        if not last.sequences:
            return "zero"  # it answers one state a row: nothing of Keras's stands past the end
        if any(layer.residual for layer in self.layers):
            self.notes.append("past a row's end Keras answers the residual's sum; here it is 0")
            return "zero"
        if zero and head is not None and head.on == "output":
            self.notes.append("past a row's end Keras answers the head of 0; here it is 0 itself")
        return "zero" if zero else "repeat"

    def _note_layer(self, node: Node) -> None:
        if node.flag("stateful"):
            self.notes.append(
                f"{node} is stateful: it goes on from its last batch. Send h_n and c_n back as "
                "h_0 and c_0, or serve it as a sequence"
            )
        if node.extra:
            givers = ", ".join(dict.fromkeys(self.graph.nodes[ref[0]].name for ref in node.extra))
            self.notes.append(
                f"{node} takes its initial state from {givers}: send it as h_0 and c_0"
            )
        if node.calls > 1:
            self.notes.append(
                f"{node} is called {node.calls} times: one of them is imported, alone"
            )

    def _note_surroundings(self, after: list[Node]) -> None:
        first, last, graph = self.stack[0], self.stack[-1], self.graph
        if self.flipped:
            self.notes.append(
                f"{last}: Keras leaves its output reversed in time (go_backwards); here every "
                "output is in the order of time"
            )
        ref = graph.source(first)
        known = ("InputLayer", "Embedding")
        if ref is not None and graph.nodes[ref[0]].kind not in known:
            self.notes.append(
                f"{first} reads from {graph.nodes[ref[0]]}, which is not imported: "
                "send its answer as input"
            )
        for k, node in enumerate(self.stack[:-1]):
            follow = self.stack[k + 1]
            others = [u for u in graph.users(node) if u not in (follow, graph.before(follow)[1])]
            if others:
                self.notes.append(f"not imported, beside {node}: {', '.join(map(str, others))}")
        if after:
            self.notes.append(f"not imported, after {last}: {', '.join(map(str, after))}")
        elif not last.sequences and not any(name.startswith("head.") for name in self.weights):
            self.notes.append(f"{last} answers its last step alone: that is h_n of the last layer")
        if code := [str(node) for node in graph.nodes.values() if node.kind.endswith("Lambda")]:
            self.notes.append(f"{', '.join(code)}: holds code, which was not run")
