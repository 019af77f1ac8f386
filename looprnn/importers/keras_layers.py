"""What the configuration of a Keras layer means, and its variables in our names.

Keras stacks gates along the last axis, LSTM i f c o and GRU z r h, and its kernels are [I, G·H]:
the transpose of ours. One bias [G·H] is bias_ih; the two rows of a GRU that resets after the
product, [2, 3·H], are bias_ih and bias_hh. CuDNNLSTM and CuDNNGRU of Keras 2 hold cuDNN's own
blocks, [H, I] row by row under the shape [I, H], and two biases side by side, [2·G·H].
"""

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from looprnn.errors import SpecError, WeightsError
from looprnn.importers.keras_file import Array, Saved, snake
from looprnn.spec import GATES, Activation, Layer
from looprnn.weights import reorder

ORDER: Final = {"rnn": "h", "lstm": "ifgo", "gru": "zrn"}  # Keras' c is our g, its h our n
CELLS: Final[dict[str, Literal["rnn", "lstm", "gru"]]] = {
    "SimpleRNN": "rnn", "SimpleRNNCell": "rnn",
    "LSTM": "lstm", "LSTMCell": "lstm", "CuDNNLSTM": "lstm",
    "GRU": "gru", "GRUCell": "gru", "CuDNNGRU": "gru",
}  # fmt: skip
SAME: Final = ("relu", "tanh", "sigmoid", "softsign", "softplus", "elu")


def field(config: object, name: str, kind: type, where: str, default: Any = None) -> Any:
    """config[name], of that type; `default`, where it is given, if it is absent."""
    value = config.get(name) if isinstance(config, Mapping) else None
    if value is None and default is not None:
        return default
    if type(value) is not kind:
        raise WeightsError(
            f"{where}: {name} should be of type {kind.__name__}, "
            f"the configuration says {repr(value)[:80]}"
        )
    return value


def own_kind(entry: object, where: str) -> str:
    """The class of a layer: "LSTM", or with its package if it is not Keras' own."""
    kind: str = field(entry, "class_name", str, where)
    module, registered = entry.get("module"), entry.get("registered_name")  # type: ignore[attr-defined]
    ours = module is None or str(module).split(".")[0] in ("keras", "tf_keras", "tensorflow")
    if ours and registered in (None, kind):
        return kind
    return str(registered) if ours or ">" in str(registered) else f"{module}.{kind}"


def activation(value: object, where: str, version: str) -> Activation:
    """Keras' name or layer → ours. Raises SpecError naming the layer and the activation."""
    config = value.get("config") if isinstance(value, Mapping) else None
    if isinstance(value, Mapping) and isinstance(config, Mapping):
        kind = own_kind(value, where)
        slope = config.get("negative_slope", config.get("alpha", 0.0))
        if kind == "LeakyReLU" and _is_number(slope):
            return Activation("leaky_relu", float(slope))
        if kind == "ELU" and _is_number(config.get("alpha")):
            return Activation("elu", float(config["alpha"]))
        plain = not (slope or config.get("max_value") is not None or config.get("threshold"))
        if kind == "ReLU" and plain:
            return Activation("relu")
        value = kind
    elif isinstance(value, Mapping):  # a function of the user's own
        value = str(value.get("registered_name") or config)
    elif value in SAME:
        return Activation(str(value))
    elif value in (None, "linear"):
        return Activation("affine", 1.0, 0.0)
    elif value == "leaky_relu":
        return Activation("leaky_relu", 0.2)
    elif value == "hard_sigmoid":
        if version.split(".")[0] not in ("2", "3"):
            raise WeightsError(
                f"{where}: hard_sigmoid is 0.2·x + 0.5 in Keras 2 and x/6 + 0.5 in Keras 3; "
                f"the file's keras_version is {version!r}"
            )
        return Activation("hard_sigmoid", 0.2 if version.startswith("2") else 1 / 6, 0.5)
    raise SpecError(
        f"{where}: activation {value!r} cannot be served; known: "
        f"{', '.join((*SAME, 'linear', 'leaky_relu', 'hard_sigmoid'))}"
    )


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


@dataclass(frozen=True, slots=True)
class Cell:
    """One recurrence, from its configuration alone."""

    where: str  # "lstm_1", for messages
    name: str  # in the configuration
    cell: Literal["rnn", "lstm", "gru"]
    hidden: int
    activations: tuple[Activation, ...]
    bias: bool
    reset: Literal["after", "before"]
    cudnn: bool

    @property
    def shape(self) -> tuple[object, ...]:
        """What both directions of a layer must share."""
        return self.cell, self.hidden, self.bias, self.reset, self.cudnn

    def layer(self, **options: Any) -> Layer:
        return Layer(
            cell=self.cell,
            hidden_size=self.hidden,
            activations=self.activations,
            bias=self.bias,
            reset=self.reset,
            **options,
        )


def cell_of(entry: object, where: str, version: str) -> Cell:
    kind = own_kind(entry, where)
    if kind not in CELLS:
        raise SpecError(f"{where}: its cell is {kind}; known: {', '.join(CELLS)}")
    config = field(entry, "config", dict, where)
    cell, cudnn = CELLS[kind], kind.startswith("CuDNN")
    said = {} if cudnn else config
    f = activation(said.get("recurrent_activation", "sigmoid"), where, version)
    g = activation(said.get("activation", "tanh"), where, version)
    # Keras 2 knew GRU without reset_after first: a file that does not say means False.
    after = cell != "gru" or cudnn or field(config, "reset_after", bool, where, False)
    return Cell(
        where=where,
        name=str(config.get("name", "")),
        cell=cell,
        hidden=field(config, "units", int, where),
        activations={"rnn": (g,), "gru": (f, g), "lstm": (f, g, g)}[cell],
        bias=cudnn or field(config, "use_bias", bool, where, True),
        reset="after" if after else "before",
        cudnn=cudnn,
    )


def cells_of(
    kind: str, config: Mapping[str, Any], where: str, role: str, version: str
) -> tuple[list[Cell], dict[str, str]]:
    """The cells of a layer, and each one's group in a .keras → its name in an .h5."""
    if kind != "RNN":
        return [cell_of({"class_name": kind, "config": config}, where, version)], {role: "*"}
    entry = field(config, "cell", dict, where)
    if own_kind(entry, where) != "StackedRNNCells":
        return [cell_of(entry, where, version)], {role: "*"}
    listed = field(field(entry, "config", dict, where), "cells", list, where)
    if not listed:
        raise WeightsError(f"{where}: it stacks no cells")
    cells = [cell_of(each, f"{where}, cell {k}", version) for k, each in enumerate(listed)]
    kinds = [snake(each["class_name"]) for each in listed]
    counted = [f"{c}_{n}" if (n := kinds[:k].count(c)) else c for k, c in enumerate(kinds)]
    return cells, {f"{role}/cells/{c}": cell.name for c, cell in zip(counted, cells, strict=True)}


def halves_of(
    config: Mapping[str, Any], name: str, version: str
) -> tuple[list[Cell], dict[str, str]]:
    """The forward and the backward cell of a Bidirectional, and their groups as in cells_of."""
    forward = field(config, "layer", dict, name)
    backward = field(config, "backward_layer", dict, name, forward)  # Keras 2: the same again
    cells: list[Cell] = []
    roles: dict[str, str] = {}
    for half, entry in (("forward", forward), ("backward", backward)):
        where, inner = f"{name}'s {half} layer", field(entry, "config", dict, name)
        own, found = cells_of(own_kind(entry, where), inner, where, f"{half}_layer/cell", version)
        if len(own) != 1:
            raise SpecError(f"{where} stacks {len(own)} cells: directions join at every layer here")
        if half == "forward" and inner.get("go_backwards"):
            raise SpecError(f"{where} has go_backwards: its output stands reversed in time")
        cells += own
        roles |= dict.fromkeys(found, f"{half}_*")
    if cells[0].shape != cells[1].shape:
        raise SpecError(f"{name}: its two layers differ: {cells[0].shape} and {cells[1].shape}")
    return cells, roles


def arrays_of(
    saved: Saved, cell: Cell, found: Mapping[str, Any], inputs: int | None
) -> dict[str, Array]:
    """The variables of a cell → weight_ih, weight_hh, bias_ih and bias_hh. `inputs` is what the
    layer reads at each step, None if the kernel is to say it.
    """
    H, rows = cell.hidden, len(GATES[cell.cell]) * cell.hidden
    shapes: dict[str, tuple[int | None, ...]] = {
        "kernel": (inputs, rows),
        "recurrent_kernel": (H, rows),
    }
    if cell.bias:
        two = cell.cell == "gru" and cell.reset == "after"
        shapes["bias"] = (2 * rows,) if cell.cudnn else (2, rows) if two else (rows,)
    read = variables(saved, cell.where, found, shapes)
    kernel, recurrent = read["kernel"], read["recurrent_kernel"]
    if cell.cudnn:
        blocks = np.split(kernel, rows // H, axis=1)
        kernel = np.concatenate([block.reshape(H, -1) for block in blocks])  # [G·H, I]
        recurrent = np.concatenate(np.split(recurrent, rows // H, axis=1))  # [G·H, H]
    else:
        kernel, recurrent = kernel.T, recurrent.T
    answer = {"weight_ih": kernel, "weight_hh": recurrent}
    if cell.bias:
        bias = read["bias"].reshape(-1, rows)
        answer["bias_ih"] = bias[0]
        answer["bias_hh"] = bias[1] if len(bias) == 2 else np.zeros_like(bias[0])
    order = {"src": ORDER[cell.cell], "dst": GATES[cell.cell]}
    return {name: reorder(array, **order) for name, array in answer.items()}


def variables(
    saved: Saved, where: str, found: Mapping[str, Any], shapes: Mapping[str, tuple[int | None, ...]]
) -> dict[str, Array]:
    """The named variables, each in its shape; none missing and none left over. A .keras calls them
    0, 1, 2 in the order of `shapes`.
    """
    stored = dict(
        zip(shapes, shapes if saved.legacy else map(str, range(len(shapes))), strict=True)
    )
    if missing := [name for name, key in stored.items() if key not in found]:
        raise WeightsError(
            f"{saved.origin}: {where}: no {', '.join(missing)}; "
            f"found {', '.join(found) or 'nothing'}"
        )
    if extra := sorted(set(found) - set(stored.values())):
        raise WeightsError(
            f"{saved.origin}: {where}: {', '.join(found[name].name for name in extra)} left over"
        )
    return {
        name: saved.read(found[key], shapes[name], f"{where}: {name}")
        for name, key in stored.items()
    }


def groups_of(
    saved: Saved, name: str, counted: str, roles: Mapping[str, str]
) -> list[Mapping[str, Any]]:
    """The variables of each role of one layer; role: its group in a .keras → a pattern of its name
    in an .h5, where groups stand in no order to rely on: a frozen half comes last.
    """
    found = saved.groups(name, counted)
    if not saved.legacy:
        if extra := [path for path in found if path not in roles]:
            raise WeightsError(f"{saved.origin}: {name}: weights in {', '.join(extra)} left over")
        return [found.get(role, {}) for role in roles]
    if len(found) != len(roles):
        raise WeightsError(
            f"{saved.origin}: {name}: {len(found)} groups of weights, wanted {len(roles)}; "
            f"found {', '.join(found) or 'none'}"
        )
    shared = (
        set.intersection(*(set(path.split("/")) for path in found)) if len(found) > 1 else set()
    )

    def place(path: str) -> int:
        own = set(path.split("/")) - shared
        hits = [k for k, like in enumerate(roles.values()) if fnmatch.filter(own, like)]
        return hits[0] if hits else len(roles)

    return [found[path] for path in sorted(found, key=place)]
