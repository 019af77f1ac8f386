"""What the GPU does for one shape of request, as data: launches over named buffers.

A session turns it into a CUDA graph; a test runs the same kernels on a CPU.
"""

import ctypes
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

# Letter → C's type and ctypes' of a struct's field: pointers to float, int and Weight, numbers, and
# how the copy engine finds a matrix.
TYPES: Final = {
    "f": ("float*", ctypes.c_void_p),
    "i": ("int*", ctypes.c_void_p),
    "w": ("const Weight*", ctypes.c_void_p),
    "W": ("Weight*", ctypes.c_void_p),
    "L": ("long long", ctypes.c_longlong),
    "U": ("unsigned long long", ctypes.c_ulonglong),
    "I": ("int", ctypes.c_int),
    "T": ("TensorMap", ctypes.c_ulonglong * 16),
}
# The one argument of each kernel of ours, its fields in order; the C text is made from this.
STRUCTS: Final[dict[str, dict[str, str]]] = {
    "Matmul": {"a": "f", "w": "w", "bias": "f", "c": "f", "a_row": "L", "a_z": "L", "w_row": "L",
               "w_z": "L", "c_row": "L", "c_z": "L", "M": "I", "N": "I", "K": "I"},
    "Round": {"x": "f", "y": "W", "rows": "I", "I": "I", "K": "I"},
    "Norm": {"x": "f", "scale": "f", "bias": "f", "N": "I"},
    "Step": {"xw": "f", "hr": "f", "h": "f", "c": "f", "y": "f", "lengths": "i", "bias_n": "f",
             "peepholes": "f", "norm_hr": "f", "norm_c": "f", "shift_c": "f", "full": "f",
             "projected": "f", "z": "f", "xw_row": "L", "h_row": "L", "c_row": "L", "y_row": "L",
             "s": "I", "T": "I", "B": "I", "H": "I", "P": "I", "backward": "I", "repeats": "I"},
    "Embed": {"ids": "i", "table": "f", "y": "f", "failed": "i", "vocabulary": "I", "I": "I"},
    "Join": {"a": "f", "b": "f", "x": "f", "y": "f", "lengths": "i", "a_row": "L",
             "T": "I", "P": "I", "join": "I"},
    "Head": {"y": "f", "lengths": "i", "T": "I", "N": "I", "kind": "I"},
    "Slots": {"table": "f", "h": "f", "c": "f", "h_0": "f", "c_0": "f", "begin": "i", "end": "i",
              "lengths": "i", "failed": "i", "H": "I", "C": "I"},
    # As separate arguments, in this order: of project.cu, and of the persistent kernels (see
    # fused_persistent.py); each kernel takes as many of them as it declares.
    "Project": {"x": "T", "w": "T", "bias": "f", "y": "f", "M": "I", "N": "I", "K": "I"},
    "Persistent": {"r": "w", "xg": "f", "bias_n": "f", "lengths": "i", "h_0": "f", "c_0": "f",
                   "output": "f", "h_n": "f", "c_n": "f", "scratch": "f", "error": "i",
                   "batch": "I", "time": "I", "state_stride": "L", "timeout": "U", "ready": "i",
                   "times": "I", "blocks": "I", "x": "T", "w": "T", "bias": "f", "K": "I",
                   "direction": "I"},
}  # fmt: skip


def declaration(name: str) -> str:
    """The struct of that name in C."""
    fields = "".join(f" {TYPES[kind][0]} {key};" for key, kind in STRUCTS[name].items())
    return f"struct {name} {{{fields} }};\n"


def structure(name: str) -> type[ctypes.Structure]:
    """The same struct for ctypes."""
    fields = [(key, TYPES[kind][1]) for key, kind in STRUCTS[name].items()]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


STRUCTURES: Final = {name: structure(name) for name in STRUCTS}


@dataclass(frozen=True, slots=True)
class At:
    """A place in a buffer, in bytes from its begin."""

    buffer: str
    offset: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Boxes:
    """An array that the copy engine reads in boxes of this shape; width of an element in bytes."""

    at: At
    shape: tuple[int, ...]
    width: int
    box: tuple[int, ...]


Value = At | Boxes | int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """One kernel of one unit (see fused_source.py), its struct's fields by name; those left out
    are 0.

    `spread` kernels take the fields as separate arguments. block in threads, shared in bytes. An
    `early` one begins before the launch before it ends, and waits for that by itself.
    """

    unit: str
    kernel: str
    struct: str
    grid: tuple[int, int, int]
    block: int
    fields: Mapping[str, Value]
    shared: int = 0
    cluster: int = 1
    cooperative: bool = False
    early: bool = False

    @property
    def spread(self) -> bool:
        return self.struct in ("Persistent", "Project")

    def argument(
        self, addresses: Mapping[str, int], tensor_map: Callable[[int, Boxes], Any] | None = None
    ) -> ctypes.Structure:
        """The struct, with the buffers at these addresses; tensor_map encodes boxes."""
        found: dict[str, Any] = {}
        for key, value in self.fields.items():
            if isinstance(value, Boxes):
                assert tensor_map is not None, "the copy engine is Hopper's"
                found[key] = tensor_map(addresses[value.at.buffer] + value.at.offset, value)
            elif value is not None:
                found[key] = (
                    addresses[value.buffer] + value.offset if isinstance(value, At) else value
                )
        return STRUCTURES[self.struct](**found)


@dataclass(frozen=True, slots=True)
class Loop:
    """The launches of one step, again for each step: the field s, where one has it, counts."""

    body: tuple[Launch, ...]
    steps: int


Operation = Launch | Loop


@dataclass(slots=True)
class Program:
    """Operations in order, and the bytes of the buffers that are neither weights nor tensors of
    the spec.

    hopper: for compute capability 9.0, whose own instructions some kernels are made of.
    """

    hopper: bool
    operations: list[Operation] = field(default_factory=list)
    scratch: dict[str, int] = field(default_factory=dict)

    def take(self, name: str, size: int) -> At:
        """A scratch buffer of so many bytes; one of that name that is there already grows."""
        self.scratch[name] = max(size, self.scratch.get(name, 0))
        return At(name)

    @property
    def launches(self) -> Iterator[Launch]:
        """Each launch once, those of loops too."""
        for operation in self.operations:
            if isinstance(operation, Loop):
                yield from operation.body
            elif isinstance(operation, Launch):
                yield operation

    @property
    def length(self) -> int:
        """How many launches it takes in all, those of loops at each step."""
        return sum(len(op.body) * op.steps if isinstance(op, Loop) else 1 for op in self.operations)
