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
import importlib
import json
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from looprnn import weights
from looprnn.errors import LoopRNNError, WeightsError
from looprnn.importers import BYTES_MAX, PLACEHOLDER, Imported, checked
from looprnn.spec import Activation, Layer, RNNSpec

PARAMETER: Final = re.compile(
    r"(?P<prefix>(?:.*\.)?)"
    r"(?P<part>(?:weight|bias)_(?:ih|hh)|weight_hr(?=_l))"
    r"(?:_l(?P<k>0|[1-9][0-9]{0,5})(?P<reverse>_reverse)?)?"
)
CELLS: Final = {1: "rnn", 3: "gru", 4: "lstm"}
WRAPPERS: Final = ("state_dict", "model_state_dict", "model")  # where checkpoints keep theirs
INDEX_MAX: Final = 8 << 20  # bytes of a header or of data.pkl: 50,000 tensors
DIMENSIONS_MAX: Final = 8
CHUNK: Final = 1 << 18  # elements widened at a time
# safetensors' dtype → how its bytes are read; BF16 is the upper half of a float32.
STORED_AS: Final = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
BYTES: Final = {"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4,
                "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8, "C64": 8}  # fmt: skip
TORCH_TYPES: Final = ("float64", "float32", "float16", "bfloat16")
PLAIN: Final = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
TANH_NOTE: Final = (
    "an nn.RNN's nonlinearity is not in the file: tanh is assumed. "
    'Trained with relu? Write activations = ["relu"] into the TOML.'
)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor that is still in its file; read() allocates it, float32."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], NDArray[np.float32]]


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
    torch = _torch("module")
    kinds = (torch.nn.modules.rnn.RNNBase, torch.nn.modules.rnn.RNNCellBase)
    if not isinstance(module, kinds):
        inside = [n for n, m in getattr(module, "named_modules", list)() if isinstance(m, kinds)]
        hint = f" Inside it: {listed(inside)}; pass one of them." if inside else ""
        raise WeightsError(
            f"{type(module).__name__} is no nn.RNN, nn.LSTM, nn.GRU or Cell of them.{hint}"
        )
    origin = type(module).__name__
    tensors = {n: _in_memory(torch, origin, n, t) for n, t in module.state_dict().items()}
    kind = str(getattr(module, "nonlinearity", ""))
    found = imported(tensors, origin, name=name, layer=".", nonlinearity=kind or None)
    dropout = float(getattr(module, "dropout", 0.0))
    notes = [f"dropout = {dropout:g} acts in training only: left out"] if dropout else []
    if type(module).forward not in {getattr(torch.nn, k).forward for k in PLAIN}:
        notes.append(f"{origin} has a forward of its own: only its weights were taken")
    return checked(Imported(found.spec, found.weights, (*found.notes, *notes)), origin)


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


def listed(names: Iterable[str], tensors: Mapping[str, Tensor] | None = None) -> str:
    """The first eight names, each with its shape if `tensors` are given."""
    every = list(names)
    some = [
        n[:80] + (f" {list(tensors[n].shape)}" if tensors and n in tensors else "")
        for n in every[:8]
    ]
    more = [f"{len(every) - 8} more"] if len(every) > 8 else []
    return ", ".join(some + more) or "nothing"


# .safetensors: 8 bytes N; N bytes of JSON, name → dtype, shape, data_offsets; the data.


def in_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file whose header is consistent; nothing but the header is read."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8 or length > INDEX_MAX:
            raise WeightsError(
                f"{path}: not a .safetensors file: its header claims {length:,} bytes of {size:,}; "
                f"at most {INDEX_MAX:,} are read"
            )
        text = file.read(length)
    try:
        entries = json.loads(text.decode(), object_pairs_hook=_distinct)
        if not isinstance(entries, dict):
            raise ValueError("no table of tensors")
        entries.pop("__metadata__", None)
        ranges = {n: _entry(n, e) for n, e in entries.items()}
    except (ValueError, TypeError, RecursionError) as error:
        raise WeightsError(f"{path}: not a readable .safetensors header: {error}") from error
    end = 0
    for name, (begin, stop) in sorted(ranges.items(), key=lambda item: item[1]):
        if begin != end:
            raise WeightsError(f"{path}: {name[:80]} begins at byte {begin:,}, wanted {end:,}")
        end = stop
    if end != size - 8 - length:
        raise WeightsError(
            f"{path}: its header claims {end:,} bytes of data, there are {size - 8 - length:,}"
        )
    return {
        name: Tensor(
            tuple(entries[name]["shape"]),
            entries[name]["dtype"],
            _reader(path, name, entries[name], 8 + length + begin),
        )
        for name, (begin, _) in ranges.items()
    }


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name[:80]!r} appears twice")
        found[name] = value
    return found


def _entry(name: str, entry: Any) -> tuple[int, int]:
    """A tensor's range in the data. Raises ValueError unless dtype, shape and range agree."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise ValueError(f"{name[:80]!r} lacks dtype, shape or data_offsets")
    dtype, shape, (begin, end) = str(entry["dtype"]), entry["shape"], entry["data_offsets"]
    if not isinstance(shape, list) or len(shape) > DIMENSIONS_MAX:
        raise ValueError(f"{name[:80]!r}: its shape is no list of at most {DIMENSIONS_MAX} sizes")
    if not all(type(n) is int and 0 <= n < 1 << 48 for n in (begin, end, *shape)):
        raise ValueError(f"{name[:80]!r} has sizes or offsets that cannot be")
    claimed = math.prod(shape) * BYTES[dtype] if dtype in BYTES else end - begin
    if claimed != end - begin or begin > end:
        raise ValueError(
            f"{name[:80]!r} is {dtype} {shape}, {claimed:,} bytes, but has {end - begin:,}"
        )
    return begin, end


def _reader(
    path: Path, name: str, entry: Mapping[str, Any], at: int
) -> Callable[[], NDArray[np.float32]]:
    """Reads one tensor, a piece at a time, so that nothing but the result is large."""

    def read_it() -> NDArray[np.float32]:
        stored = np.dtype(STORED_AS[entry["dtype"]])
        result = np.empty(math.prod(entry["shape"]), np.float32)
        with path.open("rb") as file:
            file.seek(at)
            for begin in range(0, result.size, CHUNK):
                part = result[begin : begin + CHUNK]
                piece = np.frombuffer(file.read(part.size * stored.itemsize), stored)
                if piece.size != part.size:
                    raise WeightsError(f"{path}: {name} ends early; the file was cut meanwhile")
                if entry["dtype"] == "BF16":
                    part.view(np.uint32)[:] = piece.astype(np.uint32) << np.uint32(16)
                else:
                    with np.errstate(over="ignore"):  # Inf, which the check of all weights names
                        part[:] = piece
        return result.reshape(entry["shape"])

    return read_it


# .pt, .pth, .bin: a zip of data.pkl and a record a storage; before PyTorch 1.6, pickles in a row.


def in_pickle(path: Path) -> dict[str, Tensor]:
    """Every tensor of a state_dict, mapped rather than loaded where the file allows it."""
    mapped = _check_zip(path)
    torch = _torch(str(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols: the file is not ours
            loaded = torch.load(str(path), map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise WeightsError(_refusal(path, str(error))) from None
    except Exception as error:  # a damaged file ends in whatever its bytes lead to
        raise WeightsError(
            f"{path}: not a readable state_dict: {type(error).__name__}: {error!s:.200}. "
            "Save it again: torch.save(model.state_dict(), …)"
        ) from error
    found = _state_dict(torch, path, loaded)
    return {n: _in_memory(torch, str(path), n, t) for n, t in found.items()}


def _check_zip(path: Path) -> bool:
    """Whether the file is a zip that can be mapped: none of its records compressed. Raises
    WeightsError if it declares too much.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise WeightsError(f"{path}: a damaged zip: {error}") from error
    if any(record.filename.endswith("/constants.pkl") for record in records):
        raise WeightsError(
            f"{path}: a TorchScript archive, which is code. Save its tensors where you trust it: "
            "torch.save(torch.jit.load(…).state_dict(), …)"
        )
    declared = sum(record.file_size for record in records)
    index = max((r.file_size for r in records if r.filename.endswith(".pkl")), default=0)
    if declared > BYTES_MAX or index > INDEX_MAX:
        raise WeightsError(
            f"{path}: declares {declared:,} bytes, {index:,} of them names; at most {BYTES_MAX:,} "
            f"and {INDEX_MAX:,} are read. Save the recurrent layer's state_dict alone"
        )
    return all(record.compress_type == zipfile.ZIP_STORED for record in records)


def _refusal(path: Path, words: str) -> str:
    """Our sentence: PyTorch's own would tell the reader to run the pickle."""
    wanted = re.search(r"GLOBAL ([\w.]+)", words)
    return (
        f"{path}: holds {wanted[1] if wanted else 'something that is no tensor'}, not tensors "
        "alone. Reading it could run code, so nothing of it was run. Save what it holds as "
        "tensors: torch.save(model.state_dict(), …), or as .safetensors"
    )


def _state_dict(torch: Any, path: Path, loaded: Any) -> dict[str, Any]:
    """The tensors by name: of the one wrapper that has some, or of the top."""

    def tensors(table: Any) -> dict[str, Any]:
        items = table.items() if isinstance(table, Mapping) else ()
        return {n: t for n, t in items if isinstance(n, str) and isinstance(t, torch.Tensor)}

    if not isinstance(loaded, Mapping):
        raise WeightsError(f"{path}: holds a {type(loaded).__name__}, wanted a state_dict")
    inside = {key: found for key in WRAPPERS if (found := tensors(loaded.get(key)))}
    if len(inside) > 1:
        raise WeightsError(
            f"{path}: state_dicts under {' and '.join(inside)}; save the one that is meant alone"
        )
    found = next(iter(inside.values())) if inside else tensors(loaded)
    if not found:
        raise WeightsError(
            f"{path}: no state_dict, neither at the top nor under {', '.join(WRAPPERS)}; "
            f"its keys: {listed(map(str, loaded))}"
        )
    return found


def _in_memory(torch: Any, origin: str, name: str, tensor: Any) -> Tensor:
    """A torch tensor as a Tensor; float32 is not copied."""

    def read_it() -> NDArray[np.float32]:
        kept = tensor.detach()
        if kept.layout != torch.strided or kept.device.type == "meta":
            raise WeightsError(f"{origin}: {name} is no dense tensor")
        if kept.numel() * kept.element_size() > kept.untyped_storage().nbytes():
            raise WeightsError(
                f"{origin}: {name} is {list(kept.shape)}, more than the "
                f"{kept.untyped_storage().nbytes():,} bytes it has"
            )
        array: NDArray[np.float32] = kept.to("cpu", torch.float32).contiguous().numpy()
        return array

    return Tensor(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), read_it)


def _torch(origin: str) -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise WeightsError(
            f"{origin}: reading it needs PyTorch. Type: pip install torch, or save the weights as "
            ".safetensors"
        ) from error
