"""Which Keras layer reads from which: stacks of recurrent layers, and what stands around them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from looprnn.errors import WeightsError
from looprnn.importers.keras_file import OBJECTS_MAX, Saved, snake
from looprnn.importers.keras_layers import field, own_kind

RECURRENT: Final = {"SimpleRNN", "LSTM", "GRU", "CuDNNLSTM", "CuDNNGRU", "RNN", "Bidirectional"}
# Nothing happens to their input when a model is served.
TRANSPARENT: Final = {
    "Masking", "Dropout", "SpatialDropout1D", "GaussianDropout", "GaussianNoise", "AlphaDropout",
    "ActivityRegularization", "Identity",
}  # fmt: skip
MASK_PASSES: Final = TRANSPARENT | {
    "Activation", "Add", "BatchNormalization", "Concatenate", "Dense", "LayerNormalization",
    "LeakyReLU", "ReLU", "Softmax", "TimeDistributed",
}  # fmt: skip
Ref = tuple[str, int]  # a layer's name and which of its outputs


@dataclass(frozen=True, slots=True)
class Node:
    """One layer of the model, at its only call."""

    name: str
    kind: str  # its class; with its package if it is not Keras' own
    config: Mapping[str, Any]
    counted: str  # its place in a .keras: "lstm_1"
    inputs: tuple[Ref, ...]
    extra: tuple[Ref, ...] = ()  # inputs beyond: an initial state
    mask: bool = False  # it is handed a mask
    calls: int = 1

    @property
    def recurrent(self) -> bool:
        return self.kind in RECURRENT

    @property
    def inner(self) -> Mapping[str, Any]:
        """Where return_sequences and its like stand: a Bidirectional's are its forward layer's."""
        if self.kind != "Bidirectional":
            return self.config
        layer = field(self.config, "layer", dict, self.name)
        found: Mapping[str, Any] = field(layer, "config", dict, self.name)
        return found

    def flag(self, name: str) -> bool:
        value: bool = field(self.inner, name, bool, self.name, False)
        return value

    @property
    def sequences(self) -> bool:
        return self.flag("return_sequences")

    def __str__(self) -> str:
        return f"{self.name} ({self.kind})"


@dataclass(frozen=True, slots=True)
class Graph:
    nodes: Mapping[str, Node]

    def back(self, ref: Ref | None) -> tuple[Ref | None, list[Node]]:
        """The output that `ref` is, seen through what is transparent, and what was seen through."""
        seen: dict[str, Node] = {}
        while ref is not None:
            node = self.nodes[ref[0]]
            if node.kind not in TRANSPARENT:
                return ref, list(seen.values())
            if node.name in seen:
                raise WeightsError(f"{node.name} reads from itself: the graph is a circle")
            seen[node.name] = node
            ref = node.inputs[0] if node.inputs else None
        return None, list(seen.values())

    def source(self, node: Node) -> Ref | None:
        return self.back(node.inputs[0] if node.inputs else None)[0]

    def before(self, node: Node) -> tuple[Node | None, Node | None]:
        """The recurrent layer directly before `node`, and the Add between them if it is a residual
        connection around that layer.
        """
        ref, through = self.back(node.inputs[0] if node.inputs else None)
        if any(other.kind == "Masking" for other in through):  # a mask of its own
            return None, None
        add = self.nodes[ref[0]] if ref else None
        if add is not None and add.kind == "Add":
            around = self.wrapped(add)
            return (around, add) if around else (None, None)
        return (self._full(ref), None) if ref else (None, None)

    def wrapped(self, add: Node) -> Node | None:
        """The recurrent layer R, if add is x + R(x)."""
        if len(add.inputs) != 2 or add.kind != "Add" or add.calls != 1:
            return None
        ends = [self.back(ref)[0] for ref in add.inputs]
        for one, other in (ends, ends[::-1]):
            around = self._full(one) if one else None
            plain = around and around.kind != "RNN" and not around.flag("go_backwards")
            if around and plain and self.source(around) == other:
                return around
        return None

    def _full(self, ref: Ref) -> Node | None:
        """The recurrent layer whose whole, single output this is."""
        node = self.nodes[ref[0]]
        joined = node.kind != "Bidirectional" or node.config.get("merge_mode", "concat") is not None
        whole = node.recurrent and ref[1] == 0 and node.calls == 1
        return node if whole and joined and node.sequences else None

    def users(self, node: Node) -> list[Node]:
        """Who reads from `node`, seen through what is transparent."""
        return [
            other
            for other in self.nodes.values()
            if other.kind not in TRANSPARENT
            and any((end := self.back(ref)[0]) and end[0] == node.name for ref in other.inputs)
        ]

    def stacks(self) -> list[list[Node]]:
        """Recurrent layers that directly follow one another, in the order of the file."""
        follows: dict[str, list[Node]] = {}
        first = []
        for node in self.nodes.values():
            if node.recurrent:
                behind, _ = self.before(node)
                if behind is not None and node.calls == 1:
                    follows.setdefault(behind.name, []).append(node)
                else:
                    first.append(node)
        found = []
        while first:
            stack = [first.pop(0)]
            while len(following := follows.pop(stack[-1].name, [])) == 1:
                stack += following
            first += following  # several read from it: each begins a stack of its own
            found.append(stack)
        if follows:
            raise WeightsError(f"{', '.join(follows)}: the graph is a circle")
        return found

    def masked(self, node: Node) -> Node | None:
        """The Masking or Embedding whose mask reaches `node`."""
        seen = {node.name}
        at: Node | None = node
        while at is not None and at.inputs and at.inputs[0][0] not in seen:
            at = self.nodes[at.inputs[0][0]]
            seen.add(at.name)
            if at.kind == "Masking" or (at.kind == "Embedding" and at.config.get("mask_zero")):
                return at
            if at.kind not in MASK_PASSES and not (at.recurrent and at.sequences):
                return None
        return None


def graph_of(saved: Saved) -> Graph:
    """Sequential and Functional models. Raises WeightsError for a subclassed one, whose graph is
    code.
    """
    kind = own_kind(saved.config, saved.origin)
    config = saved.config.get("config")
    listed = config.get("layers") if isinstance(config, Mapping) else config  # Keras 2.0: a list
    if kind not in ("Sequential", "Functional", "Model") or not isinstance(listed, list):
        raise WeightsError(
            f"{saved.origin}: the model is a {kind}, a class of its own: the order of its layers "
            "is code, which is not run. Save its layers in a keras.Sequential and import that"
        )
    if len(listed) > OBJECTS_MAX:
        raise WeightsError(f"{saved.origin}: {len(listed)} layers, more than {OBJECTS_MAX}")
    counts: dict[str, int] = {}
    nodes: dict[str, Node] = {}
    last: tuple[Ref, ...] = ()
    for entry in listed:
        where = f"{saved.origin}: layer {len(nodes)}"
        kind_of = own_kind(entry, where)
        config = field(entry, "config", dict, where)
        name = field(config, "name", str, where, entry.get("name"))
        if name in nodes:
            raise WeightsError(f"{saved.origin}: two layers are named {name!r}")
        place = snake(entry["class_name"])
        counts[place] = counts.get(place, -1) + 1
        counted = f"{place}_{counts[place]}" if counts[place] else place
        if kind == "Sequential":
            nodes[name] = Node(name, kind_of, config, counted, last)
            last = ((name, 0),)
        else:
            nodes[name] = _called(name, kind_of, config, counted, entry.get("inbound_nodes"), where)
    for node in nodes.values():
        if unknown := [ref[0] for ref in (*node.inputs, *node.extra) if ref[0] not in nodes]:
            raise WeightsError(
                f"{saved.origin}: {node.name} reads from {unknown[0]!r}, not a layer"
            )
    return Graph(nodes)


def _called(
    name: str, kind: str, config: Mapping[str, Any], counted: str, calls: object, where: str
) -> Node:
    if not isinstance(calls, list):
        raise WeightsError(f"{where}: {name}: inbound_nodes should be a list, got {calls!r:.80}")
    call = calls[0] if calls else []
    if isinstance(call, Mapping):  # Keras 3: what the layer was called with
        given, named = tensors(call.get("args")), call.get("kwargs")
    else:  # Keras 2: a list of [layer, call, output, named arguments]
        given = tensors(call)
        head = call[0] if isinstance(call, list) and call else None
        named = head[3] if isinstance(head, list) and len(head) > 3 else {}
    named = named if isinstance(named, Mapping) else {}
    states = tensors(named.get("initial_state"))
    split = 1 if kind in RECURRENT else len(given)
    return Node(
        name, kind, config, counted, tuple(given[:split]), tuple([*given[split:], *states]),
        bool(tensors(named.get("mask"))), len(calls),
    )  # fmt: skip


def tensors(value: object) -> list[Ref]:
    """Every output of a layer that is named anywhere in `value`, in order."""
    if isinstance(value, Mapping):
        if value.get("class_name") != "__keras_tensor__":
            return []
        config = value.get("config")
        value = config.get("keras_history") if isinstance(config, Mapping) else None
    if not isinstance(value, list):
        return []
    if len(value) >= 3 and isinstance(value[0], str) and type(value[2]) is int:
        return [(value[0], value[2])]
    return [ref for item in value for ref in tensors(item)]
