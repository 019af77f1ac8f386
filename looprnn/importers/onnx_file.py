"""The bytes of a .onnx file, read without trusting them.

External data is read here alone, never by onnx: its path must stay inside the file's folder,
without a symlink, and hold the bytes that the tensor claims. Nothing is allocated for a claim that
the file does not back.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Final

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto

from looprnn.errors import WeightsError
from looprnn.importers import BYTES_MAX

Array = NDArray[Any]
FILE_MAX: Final = 2**31 - 1  # protobuf's own limit
RANK_MAX: Final = 32
RECURRENT: Final = ("RNN", "LSTM", "GRU")
KNOWN: Final = {
    "direction": str, "hidden_size": int, "activations": list, "activation_alpha": list,
    "activation_beta": list, "clip": float, "layout": int, "input_forget": int,
    "linear_before_reset": int, "output_sequence": int,
}  # fmt: skip
# The fewest inputs that the operators this importer looks into can have.
INPUTS_MIN: Final = {
    "RNN": 3, "LSTM": 3, "GRU": 3, "MatMul": 2, "Gemm": 2, "Gather": 2, "Add": 2, "Mul": 2,
    "Div": 2, "Identity": 1, "Cast": 1, "Dropout": 1, "Transpose": 1, "Reshape": 1, "Flatten": 1,
    "Slice": 1, "Squeeze": 1, "Unsqueeze": 1, "Expand": 1, "Tile": 1, "Split": 1, "Concat": 1,
    "Sigmoid": 1, "Softmax": 1,
}  # fmt: skip
# ONNX's type → NumPy's in raw_data and files, and the field that holds it otherwise.
STORED: Final[dict[int, tuple[str, str]]] = {
    TensorProto.FLOAT: ("<f4", "float_data"),
    TensorProto.DOUBLE: ("<f8", "double_data"),
    TensorProto.FLOAT16: ("<f2", "int32_data"),  # its bits
    TensorProto.BFLOAT16: ("<u2", "int32_data"),  # its bits
    TensorProto.INT32: ("<i4", "int32_data"),
    TensorProto.INT64: ("<i8", "int64_data"),
    TensorProto.BOOL: ("?", "int32_data"),
}
BITS: Final = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
FIELD: Final = {
    AttributeProto.FLOAT: "f", AttributeProto.INT: "i", AttributeProto.STRING: "s",
    AttributeProto.TENSOR: "t", AttributeProto.FLOATS: "floats", AttributeProto.INTS: "ints",
    AttributeProto.STRINGS: "strings",
}  # fmt: skip


def attributes(node: NodeProto) -> dict[str, Any]:
    """Name → number, text, list or TensorProto; subgraphs are left out."""
    found: dict[str, Any] = {}
    for attribute in node.attribute:
        if attribute.type in FIELD:
            value = getattr(attribute, FIELD[attribute.type])
            if attribute.type == AttributeProto.STRING:
                value = value.decode("utf-8", "replace")
            elif attribute.type == AttributeProto.STRINGS:
                value = [text.decode("utf-8", "replace") for text in value]
            elif attribute.type != AttributeProto.TENSOR and not isinstance(value, int | float):
                value = list(value)
            found[attribute.name] = value
    return found


def is_op(node: NodeProto, *ops: str) -> bool:
    """One of ONNX's own operators, not another domain's of the same name."""
    return node.op_type in ops and node.domain in ("", "ai.onnx")


def check_node(path: Path, node: NodeProto) -> None:
    """Raises WeightsError for a node that lacks inputs or an output, or whose attributes are not
    ONNX's.
    """
    called = f"{path}: {node.op_type} {node.name or list(node.output)!r}"
    texts = (node.op_type, node.name, node.domain, *node.input, *node.output)
    if not all(isinstance(text, str) for text in texts):  # protobuf gives bytes for bad UTF-8
        raise WeightsError(f"{called} has a name that is not UTF-8")
    if not is_op(node, *INPUTS_MIN):
        return
    if len(node.input) < INPUTS_MIN[node.op_type]:
        raise WeightsError(f"{called} has {len(node.input)} inputs")
    recurrent = is_op(node, *RECURRENT)
    if not any(node.output if recurrent else node.output[:1]):
        raise WeightsError(f"{called} has no output")
    given = attributes(node) if recurrent else {}
    for attribute in node.attribute if recurrent else ():
        if attribute.name not in KNOWN:
            raise WeightsError(f"{called} has the unknown attribute {attribute.name!r}")
        if not isinstance(given.get(attribute.name), KNOWN[attribute.name]):
            raise WeightsError(
                f"{called}: {attribute.name} must be {KNOWN[attribute.name].__name__}"
            )


def inner(model: ModelProto) -> Iterator[tuple[str, NodeProto]]:
    """Recurrent nodes that are not at the top: where they are, and the node."""
    waiting: list[tuple[str, GraphProto]] = []

    def enter(node: NodeProto, within: str) -> None:
        for attribute in node.attribute:
            graphs = [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
            waiting.extend((within or f"{node.op_type} {node.name!r}", graph) for graph in graphs)

    for node in model.graph.node:
        enter(node, "")
    for function in model.functions:
        for node in function.node:
            enter(node, f"function {function.name!r}")
            if is_op(node, *RECURRENT):
                yield f"function {function.name!r}", node
    while waiting:
        within, graph = waiting.pop()
        for node in graph.node:
            enter(node, within)
            if is_op(node, *RECURRENT):
                yield within, node


def parse(path: Path) -> ModelProto:
    """The model without its external data. Raises WeightsError: too large, empty, or no ONNX."""
    size = path.stat().st_size
    if not 0 < size <= FILE_MAX:
        raise WeightsError(
            f"{path}: {size} bytes; a .onnx file has between 1 and {FILE_MAX}, and keeps the rest "
            "in external data"
        )
    model = ModelProto()
    try:
        model.ParseFromString(path.read_bytes())  # a mapped file would be copied all the same
    except (DecodeError, RecursionError) as error:
        raise WeightsError(f"{path}: not a readable .onnx file: {error}") from error
    if not model.graph.node or not model.opset_import:
        raise WeightsError(f"{path}: no graph of nodes and operator set in it: cut, or not ONNX")
    return model


def claim(path: Path, tensor: TensorProto) -> int:
    """The bytes it claims, held against what a file may hold, before anything is read."""
    if len(tensor.dims) > RANK_MAX or any(dim < 0 for dim in tensor.dims):
        raise WeightsError(f"{path}: {tensor.name!r} has the shape {list(tensor.dims)[:9]}")
    count = math.prod(tensor.dims)
    size = count * np.dtype(STORED.get(tensor.data_type, ("u1", ""))[0]).itemsize
    if size > BYTES_MAX:
        raise WeightsError(
            f"{path}: {tensor.name!r} claims {list(tensor.dims)}, {size} bytes; at most {BYTES_MAX}"
        )
    if tensor.data_location == TensorProto.EXTERNAL:
        external(path, tensor, size)
    elif count > tensor.ByteSize():
        raise WeightsError(
            f"{path}: {tensor.name!r} claims {list(tensor.dims)}, but there are no such bytes in it"
        )
    return int(size)


def external(path: Path, tensor: TensorProto, size: int) -> tuple[Path, int]:
    """The file and offset of external data. Raises WeightsError for all that leaves the folder."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    refused = f"{path}: {tensor.name!r} keeps its data in {location!r}, "
    if not isinstance(location, str):  # protobuf gives bytes for bad UTF-8
        raise WeightsError(f"{refused}which is not UTF-8")
    parts = PurePosixPath(location).parts
    windows = PureWindowsPath(location)
    if not parts or "\0" in location or parts[0] == "/" or windows.drive or windows.root:
        raise WeightsError(f"{refused}which is no path inside the file's folder")
    if ".." in parts or ".." in windows.parts:
        raise WeightsError(f"{refused}which leaves the file's folder")
    place = path.parent
    for part in parts:
        place = place / part
        if place.is_symlink():
            raise WeightsError(f"{refused}where {part!r} is a symlink")
    if not place.is_file():
        raise WeightsError(f"{refused}which is not there: put it beside the .onnx file")
    try:
        offset, length = int(entries.get("offset", "0")), int(entries.get("length", str(size)))
    except ValueError:
        raise WeightsError(f"{refused}with an offset or length that is no number") from None
    if length != size:
        raise WeightsError(f"{refused}{length} bytes, but {list(tensor.dims)} takes {size}")
    held = place.stat().st_size
    if offset < 0 or offset + size > held:
        raise WeightsError(f"{refused}{size} bytes from {offset} on; it holds {held}")
    return place, offset


def decode(path: Path, tensor: TensorProto) -> Array:
    """The array of a tensor; bfloat16 as float32, every other type as it is."""
    if tensor.data_type not in STORED:
        kinds = {number: kind for kind, number in TensorProto.DataType.items()}
        kind = kinds.get(tensor.data_type, f"of type {tensor.data_type}")
        raise WeightsError(
            f"{path}: {tensor.name!r} is {kind}; wanted FLOAT, FLOAT16, BFLOAT16 or DOUBLE"
        )
    dtype, field = STORED[tensor.data_type]
    count = math.prod(tensor.dims)
    if tensor.data_location == TensorProto.EXTERNAL:
        place, offset = external(path, tensor, count * np.dtype(dtype).itemsize)
        with os.fdopen(os.open(place, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            array = np.fromfile(file, dtype, count, offset=offset)
    elif tensor.HasField("raw_data"):
        raw = tensor.raw_data
        if len(raw) != count * np.dtype(dtype).itemsize:
            raise WeightsError(
                f"{path}: {tensor.name!r} is {list(tensor.dims)} and holds {len(raw)} bytes"
            )
        array = np.frombuffer(raw, dtype)
    else:
        values = getattr(tensor, field)
        if len(values) != count:
            raise WeightsError(
                f"{path}: {tensor.name!r} is {list(tensor.dims)} and holds {len(values)} values"
            )
        bits = tensor.data_type in BITS
        array = np.array(values, np.int32 if bits else dtype)
        array = array.astype("<u2").view(dtype) if bits else array
    if tensor.data_type == TensorProto.BFLOAT16:
        array = (array.astype("<u4") << 16).view("<f4")
    try:
        return array.reshape(tuple(tensor.dims))
    except ValueError as error:
        raise WeightsError(f"{path}: {tensor.name!r}: {error}") from None


def float32(path: Path, array: Array, what: str, notes: list[str]) -> NDArray[np.float32]:
    """Halves are widened, doubles rounded with a note. Raises WeightsError for whole numbers."""
    if not np.issubdtype(array.dtype, np.floating):
        raise WeightsError(f"{path}: {what} is {array.dtype}, wanted a floating type")
    if array.dtype == np.float64:
        notes.append(f"{what} is float64 in the file; it was rounded to float32.")
    with np.errstate(over="ignore"):  # an Inf that this makes is refused by name
        return array.astype(np.float32, copy=False)
