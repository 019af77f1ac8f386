"""spec + weights → an ONNX model with ONNX's own RNN and LSTM operators.

Equations and layouts: onnx.ai, operators RNN-14 and LSTM-14. Time comes first there, so the model
transposes on both sides; ONNX stacks LSTM gates as i o f c, and calls g c.
"""

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from looprnn.spec import RNNSpec
from looprnn.weights import SUFFIX, Weights, reorder

OPSET = 17
IR_VERSION = 8
GATE_ORDER = {"rnn": "h", "lstm": "iofg"}
OPERATOR = {"rnn": "RNN", "lstm": "LSTM"}
ACTIVATION = {"tanh": "Tanh", "relu": "Relu"}


def build_model(spec: RNNSpec, weights: Weights) -> onnx.ModelProto:
    """A checked model with looprnn's names and shapes. Inputs h_0 and c_0 are [B, D, H]."""
    node = helper.make_node
    initial = [f"{state}_0_time_major" for state in spec.states]
    final = [f"{state}_n_time_major" for state in spec.states]
    attributes: dict[str, Any] = {"hidden_size": spec.hidden_size, "direction": spec.direction}
    if spec.cell == "rnn":
        attributes["activations"] = [ACTIVATION[spec.activation]] * len(spec.directions)
    nodes = [
        node("Transpose", ["input"], ["x"], perm=[1, 0, 2]),  # [T, B, I]
        *(
            node("Transpose", [f"{s}_0"], [name], perm=[1, 0, 2])  # [D, B, H]
            for s, name in zip(spec.states, initial, strict=True)
        ),
        node(
            OPERATOR[spec.cell],
            ["x", "W", "R", "B", "", *initial],
            ["y", *final],
            "loop",
            **attributes,
        ),
        node("Transpose", ["y"], ["y_batch_major"], perm=[2, 0, 1, 3]),  # [B, T, D, H]
        node("Reshape", ["y_batch_major", "output_shape"], ["output"]),  # [B, T, D·H]
        *(
            node("Transpose", [name], [f"{s}_n"], perm=[1, 0, 2])  # [B, D, H]
            for s, name in zip(spec.states, final, strict=True)
        ),
    ]
    sizes = spec.shapes(1, 1)
    graph = helper.make_graph(
        nodes,
        spec.name,
        [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, _dims(n, sizes))
            for n in spec.input_names
        ],
        [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, _dims(n, sizes))
            for n in spec.output_names
        ],
        [
            *(
                numpy_helper.from_array(array, name)
                for name, array in _stacked(spec, weights).items()
            ),
            numpy_helper.from_array(np.array([0, 0, spec.output_size], np.int64), "output_shape"),
        ],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="looprnn",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _dims(name: str, sizes: dict[str, tuple[int, int, int]]) -> list[str | int]:
    _, middle, last = sizes[name]
    return ["batch", "time" if name in ("input", "output") else middle, last]


def _stacked(spec: RNNSpec, weights: Weights) -> dict[str, NDArray[np.float32]]:
    """W [D, G·H, I], R [D, G·H, H], B [D, 2·G·H], gates in ONNX's order."""

    def of(name: str) -> list[NDArray[np.float32]]:
        return [
            reorder(weights[f"{name}_{SUFFIX[d]}"], src=spec.gates, dst=GATE_ORDER[spec.cell])
            for d in spec.directions
        ]

    return {
        "W": np.stack(of("weight_ih")),
        "R": np.stack(of("weight_hh")),
        "B": np.concatenate([np.stack(of("bias_ih")), np.stack(of("bias_hh"))], axis=1),
    }
