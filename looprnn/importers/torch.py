"""PyTorch: .safetensors; state_dicts in .pt, .pth and .bin, whose pickle never runs; live modules.

A recurrent module is known by its parameters' names and shapes. D directions, P = proj_size or H:
    weight_ih_l{k}[_reverse]   [G·H, I]; above the first layer [G·H, D·P]
    weight_hh_l{k}[_reverse]   [G·H, P]
    bias_ih_…, bias_hh_…       [G·H], where the module has bias
    weight_hr_l{k}[_reverse]   [P, H], where an LSTM has proj_size
G is 1 for nn.RNN, 3 for nn.GRU (reset after the product), 4 for nn.LSTM; a Cell's names end before
_l{k}. An nn.RNN's nonlinearity is no parameter: see the note that comes with it. Reading
.safetensors needs no PyTorch: its header is checked here, and bfloat16 widened, which NumPy lacks.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from looprnn import weights
from looprnn.errors import LoopRNNError, WeightsError
from looprnn.importers import BYTES_MAX, PLACEHOLDER, Imported, checked
from looprnn.importers.torch_file import (
    STORED_AS,
    TORCH_TYPES,
    Tensor,
    import_torch,
    in_memory,
    in_pickle,
    in_safetensors,
    listed,
)
from looprnn.spec import Activation, Layer, RNNSpec

PARAMETER: Final = re.compile(
    r"(?P<prefix>(?:.*\.)?)"
    r"(?P<part>(?:weight|bias)_(?:ih|hh)|weight_hr(?=_l))"
    r"(?:_l(?P<k>0|[1-9][0-9]{0,5})(?P<reverse>_reverse)?)?"
)
CELLS: Final = {1: "rnn", 3: "gru", 4: "lstm"}
PLAIN: Final = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
TANH_NOTE: Final = (
    "an nn.RNN's nonlinearity is not in the file: tanh is assumed. "
    'Trained with relu? Write activations = ["relu"] into the TOML.'
)


@dataclass(frozen=True, slots=True)
class Module:
    """What may be one PyTorch module: the tensors directly under one prefix ("encoder.rnn.", or
    ""), by their full names; and every tensor of the file.
    """

    prefix: str
    tensors: Mapping[str, Tensor]
    is_cell: bool
    every: Mapping[str, Tensor]

    @property
    def choice(self) -> str:
        """What --layer takes; "." is the top."""
        return self.prefix.removesuffix(".") or "."

    def full_name(self, canonical: str) -> str:
        """weight_ih_l0 → encoder.rnn.weight_ih_l0; a Cell's: encoder.rnn.weight_ih."""
        return self.prefix + (canonical.removesuffix("_l0") if self.is_cell else canonical)

    def layers(self, origin: str) -> tuple[int, tuple[Layer, ...]]:
        """Input size and layers, as the names and the first layer's shapes tell them."""
        found = [m for m in map(PARAMETER.fullmatch, self.tensors) if m]
        numbers = {int(m["k"] or 0) for m in found}
        if gaps := set(range(len(numbers))) - numbers:
            raise self.lack(origin, [self.full_name(f"weight_ih_l{min(gaps)}")])
        into, state = self.matrix(origin, "weight_ih_l0"), self.matrix(origin, "weight_hh_l0")
        projected = not self.is_cell and self.full_name("weight_hr_l0") in self.tensors
        hidden = self.matrix(origin, "weight_hr_l0")[1] if projected else state[1]
        gates = into[0] // hidden if hidden and into[0] % hidden == 0 else 0
        cells = {4: "lstm"} if projected else CELLS
        if gates not in cells:
            wanted = " or ".join(f"{g} ({cell})" for g, cell in cells.items())
            raise WeightsError(
                f"{origin}: {self.full_name('weight_ih_l0')} is {list(into)}, the hidden size "
                f"{hidden}; wanted {wanted} rows for each of it"
            )
        both = any(m["reverse"] for m in found)
        layer = Layer(
            cell=CELLS[gates],  # type: ignore[arg-type]
            hidden_size=hidden,
            direction="bidirectional" if both else "forward",
            bias=any(m["part"].startswith("bias") for m in found),
            proj_size=state[1] if projected else None,
        )
        return into[1], (layer,) * len(numbers)

    def matrix(self, origin: str, canonical: str) -> tuple[int, int]:
        """The shape of one of the first layer's matrices."""
        name = self.full_name(canonical)
        if name not in self.tensors:
            raise self.lack(origin, [name])
        if len(shape := self.tensors[name].shape) != 2:
            raise WeightsError(f"{origin}: {name} is {list(shape)}, wanted a matrix")
        return shape[0], shape[1]

    def lack(self, origin: str, names: Iterable[str]) -> WeightsError:
        """The error that says what is missing, what is there, and why that may be."""
        inside = [n for n in self.every if n.startswith(self.prefix)]
        ends = ("_g", "_v", "_raw", "_orig")
        changed = any(n.endswith(ends) or "parametrizations." in n for n in inside)
        hint = ". Undo weight_norm or prune before saving" if changed else ""
        return WeightsError(f"{origin}: needs {listed(names)}; found {listed(inside)}{hint}")

    def described(self) -> str:
        """ "LSTM, input 7, hidden 5, 2 layers, bidirectional", or what is wrong with it."""
        try:
            inputs, layers = self.layers("not readable")
        except LoopRNNError as error:
            return str(error)
        first = layers[0]
        kind = first.cell.upper() + ("Cell" if self.is_cell else "")
        words = [kind, f"input {inputs}", f"hidden {first.hidden_size}"]
        words += [f"projected to {first.proj_size}"] if first.proj_size else []
        words += [f"{len(layers)} layer{'s' if len(layers) > 1 else ''}", first.direction]
        return ", ".join(words + ([] if first.bias else ["without bias"]))


def read(path: Path, *, name: str, layer: str | None = None) -> Imported:
    """The recurrent module under the prefix `layer` ("." is the top), or the only one there is.

    Raises WeightsError: several modules and none chosen, a tensor missing, left over or misshapen,
    a file that is damaged, too large, or holds more than tensors. Raises SpecError for sizes that
    no spec has.
    """
    tensors = in_safetensors(path) if path.suffix.lower() == ".safetensors" else in_pickle(path)
    return imported(tensors, str(path), name=name, layer=layer)


def from_torch(module: Any, *, name: str) -> Imported:
    """A live nn.RNN, nn.LSTM, nn.GRU or one of their Cells, as it computes in eval mode.

    Raises WeightsError for any other module, naming the recurrent ones inside it.
    """
    torch = import_torch("module")
    kinds = (torch.nn.modules.rnn.RNNBase, torch.nn.modules.rnn.RNNCellBase)
    if not isinstance(module, kinds):
        inside = [n for n, m in getattr(module, "named_modules", list)() if isinstance(m, kinds)]
        hint = f" Inside it: {listed(inside)}; pass one of them." if inside else ""
        raise WeightsError(
            f"{type(module).__name__} is no nn.RNN, nn.LSTM, nn.GRU or Cell of them.{hint}"
        )
    origin = type(module).__name__
    tensors = {n: in_memory(torch, origin, n, t) for n, t in module.state_dict().items()}
    kind = str(getattr(module, "nonlinearity", ""))
    found = imported(tensors, origin, name=name, layer=".", nonlinearity=kind or None)
    dropout = float(getattr(module, "dropout", 0.0))
    notes = [f"dropout = {dropout:g} acts in training only: left out"] if dropout else []
    if type(module).forward not in {getattr(torch.nn, k).forward for k in PLAIN}:
        notes.append(f"{origin} has a forward of its own: only its weights were taken")
    own = {n: np.array(a) for n, a in found.weights.items()}  # the module goes on training
    return checked(Imported(found.spec, own, (*found.notes, *notes)), origin)


def imported(
    tensors: Mapping[str, Tensor],
    origin: str,
    *,
    name: str,
    layer: str | None,
    nonlinearity: str | None = None,
) -> Imported:
    """Choose a module, tell its spec from names and shapes, and only then read its tensors."""
    module = chosen(modules_in(tensors), tensors, origin, layer)
    inputs, layers = module.layers(origin)
    notes = []
    if layers[0].cell == "rnn" and nonlinearity is None:
        notes.append(TANH_NOTE)
    elif layers[0].cell == "rnn" and nonlinearity != "tanh":
        acts = (Activation(str(nonlinearity)),)
        layers = tuple(
            dataclasses.replace(layer, activations=acts, activations_reverse=()) for layer in layers
        )
    spec = RNNSpec(name=name, input_size=inputs, layers=layers, weights=PLACEHOLDER)
    wanted = weights.shapes(spec)
    _check(module, wanted, origin)
    if left := [n for n in tensors if n not in module.tensors]:
        notes.append(f"left out, not part of {module.choice}: {listed(left, tensors)}")
    arrays = {n: module.tensors[module.full_name(n)].read() for n in wanted}
    if any(module.tensors[module.full_name(n)].dtype in ("F64", "float64") for n in wanted):
        notes.append("float64 weights were rounded to float32")
    return Imported(spec, arrays, tuple(notes))


def modules_in(tensors: Mapping[str, Tensor]) -> dict[str, Module]:
    """--layer's choice → the module; a prefix with any recurrent parameter directly under it is
    one.
    """
    under: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        under.setdefault(name[: name.rfind(".") + 1], {})[name] = tensor
    modules = []
    for prefix, own in under.items():
        if parameters := [m for m in map(PARAMETER.fullmatch, own) if m]:
            is_cell = not any(m["k"] for m in parameters)
            modules.append(Module(prefix, own, is_cell, tensors))
    return {module.choice: module for module in modules}


def chosen(
    modules: Mapping[str, Module], tensors: Mapping[str, Tensor], origin: str, layer: str | None
) -> Module:
    """The module that `layer` names, or the only one."""
    if not modules:
        raise WeightsError(
            f"{origin}: no recurrent layer in it, wanted names such as weight_ih_l0; "
            f"found {listed(tensors)}"
        )
    lines = [f"--layer {choice}   {module.described()}" for choice, module in modules.items()]
    lines = lines[:20] + ([f"and {len(lines) - 20} more"] if len(lines) > 20 else [])
    table = "".join(f"\n  {line}" for line in lines)
    if layer is None and len(modules) > 1:
        raise WeightsError(f"{origin}: {len(modules)} recurrent layers; choose one:{table}")
    if layer is None:
        return next(iter(modules.values()))
    if (key := layer.removesuffix(".") or ".") not in modules:
        raise WeightsError(f"{origin}: no recurrent layer {layer!r}; there are:{table}")
    return modules[key]


def _check(module: Module, wanted: Mapping[str, tuple[int, ...]], origin: str) -> None:
    """Exactly the tensors wanted, of the right shape and a floating type, and no more than
    BYTES_MAX.
    """
    shapes = {module.full_name(n): shape for n, shape in wanted.items()}
    if missing := [n for n in shapes if n not in module.tensors]:
        raise module.lack(origin, missing)
    inside = [n for n in module.every if module.prefix and n.startswith(module.prefix)]
    if extra := [n for n in (*module.tensors, *inside) if n not in shapes]:
        raise WeightsError(
            f"{origin}: {listed(dict.fromkeys(extra), module.every)} not understood: "
            f"PyTorch's {module.described()} has no such parameter, so this is another layer"
        )
    for n, shape in shapes.items():
        if module.tensors[n].shape != shape:
            raise WeightsError(
                f"{origin}: {n} is {list(module.tensors[n].shape)}, wanted {list(shape)}"
            )
        if module.tensors[n].dtype not in (*STORED_AS, *TORCH_TYPES):
            raise WeightsError(
                f"{origin}: {n} is {module.tensors[n].dtype}; "
                "wanted float64, float32, float16 or bfloat16: save it before it is quantized"
            )
    if (claimed := 4 * sum(math.prod(shape) for shape in shapes.values())) > BYTES_MAX:
        raise WeightsError(
            f"{origin}: {module.choice} claims {claimed:,} bytes, at most {BYTES_MAX:,} are read"
        )
