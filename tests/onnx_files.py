"""Small .onnx files with one recurrent node, and what ONNX Runtime's CPU kernel answers to them."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from looprnn import importers, reference
from looprnn.parity import difference

GATES = {"RNN": 1, "LSTM": 4, "GRU": 3}
ENDS = {"forward": 1, "reverse": 1, "bidirectional": 2}
FLOAT, INT32 = TensorProto.FLOAT, TensorProto.INT32


@dataclass(frozen=True, kw_only=True)
class File:
    """One node; its weights are drawn from the seed. `initial`: "input", "absent", or a number."""

    op: str
    T: int = 7
    B: int = 4
    I: int = 3  # noqa: E741
    H: int = 5
    direction: str = "forward"
    lengths: tuple[int, ...] | None = None
    bias: bool = True
    peepholes: bool = False
    initial: str | float = "input"
    scale: float = 0.8
    seed: int = 0
    attributes: dict[str, Any] = field(default_factory=dict)

    def arrays(self) -> dict[str, np.ndarray]:
        """W [D, G·H, I], R [D, G·H, H], B [D, 2·G·H], P [D, 3·H]."""
        rng = np.random.default_rng(self.seed)
        d, rows = ENDS[self.direction], GATES[self.op] * self.H
        shapes = {
            "W": (d, rows, self.I), "R": (d, rows, self.H),
            "B": (d, 2 * rows), "P": (d, 3 * self.H),
        }  # fmt: skip
        drawn = {n: rng.standard_normal(s) * self.scale for n, s in shapes.items()}
        kept = ["W", "R", *(["B"] if self.bias else []), *(["P"] if self.peepholes else [])]
        return {name: drawn[name].astype(np.float32) for name in kept}

    def feed(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(self.seed + 1)
        d = ENDS[self.direction]
        size = (d, self.B, self.H)
        found = {"X": rng.standard_normal((self.T, self.B, self.I)).astype(np.float32)}
        if self.lengths is not None:
            found["lengths"] = np.array(self.lengths, np.int32)
        if self.initial == "input":
            found["h_0"] = rng.uniform(-0.9, 0.9, size).astype(np.float32)
            if self.op == "LSTM":
                found["c_0"] = rng.uniform(-2.0, 2.0, size).astype(np.float32)
        return found

    def states(self) -> tuple[str, ...]:
        return ("h", "c") if self.op == "LSTM" else ("h",)

    def constants(self) -> dict[str, np.ndarray]:
        if not isinstance(self.initial, float):
            return self.arrays()
        full = np.full((ENDS[self.direction], self.B, self.H), self.initial, np.float32)
        return self.arrays() | {f"{s}_0": -full if s == "c" else full for s in self.states()}

    def node(self, **attributes: Any) -> Any:
        have = self.constants() | self.feed()
        places = ["X", "W", "R", "B", "lengths", "h_0"]
        places += ["c_0", "P"] if self.op == "LSTM" else []
        return helper.make_node(
            self.op,
            [name if name in have else "" for name in places],
            ["Y", "Y_h", "Y_c"][: 1 + len(self.states())],
            "node",
            hidden_size=self.H,
            direction=self.direction,
            **{**self.attributes, **attributes},
        )

    def model(self, **attributes: Any) -> Any:
        node = self.node(**attributes)
        return model(
            [node],
            self.constants(),
            {n: list(a.shape) for n, a in self.feed().items()},
            node.output,
        )


def model(nodes, constants, inputs, outputs, *, opset=17):
    """inputs: name → shape, or its number of axes; lengths and ids are int32."""
    whole = ("lengths", "ids")
    graph = helper.make_graph(
        nodes,
        "graph",
        [
            helper.make_tensor_value_info(n, INT32 if n in whole else FLOAT, s)
            for n, s in inputs.items()
        ],
        [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def save(made: Any, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def run_onnxruntime(made: Any, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        made.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feed), strict=True))


def differences(file: File, folder: Path, *, layout: int = 0) -> dict[str, float]:
    """Output → the largest difference of the imported spec's reference from ONNX Runtime, which
    writes zeros to the states of an empty row; those rows are left to a test of their own.
    """
    path = save(file.model(**({"layout": 1} if layout else {})), folder)
    imported = importers.read(path, name="t")
    spec, feed = imported.spec, file.feed()
    got = run_onnxruntime(file.model(), feed)  # it refuses layout 1: its twin answers
    inputs = spec.defaults(file.B, file.T) | {"input": feed["X"].transpose(1, 0, 2)}
    inputs |= {s: feed[s].transpose(1, 0, 2) for s in ("h_0", "c_0") if s in feed}
    inputs |= {"lengths": feed["lengths"]} if "lengths" in feed else {}
    want = reference.run(spec, imported.weights, inputs)
    y = got["Y"].transpose(2, 0, 1, 3)  # [B, T, D, H]
    found = {"output": difference(y.reshape(file.B, file.T, -1), want["output"])}
    rows = np.array(file.lengths or [1] * file.B) > 0
    for state in file.states():
        end = got[f"Y_{state}"].transpose(1, 0, 2)
        found[f"{state}_n"] = difference(end[rows], want[f"{state}_n"][rows]) if rows.any() else 0.0
    return found


def with_(file: File, **changes: Any) -> File:
    return dataclasses.replace(file, **changes)
