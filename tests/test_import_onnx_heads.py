"""Heads and embeddings around a stack: imported where the graph computes the same, else told."""

import numpy as np
import pytest
from onnx import helper
from onnx_files import File, model, run_onnxruntime, save

from looprnn import importers, parity, reference

T, B, I, H, TOP = 7, 4, 3, 5, 6  # noqa: E741
N = helper.make_node
CONSTANTS = {
    "zero": np.array([0]),
    "one": np.array([1]),
    "row": np.array([0, -1]),
}


def request(spec, x, **more):
    return spec.defaults(B, T) | {"input": x.transpose(1, 0, 2)} | more


def drawn():
    return np.random.default_rng(5).standard_normal((T, B, I)).astype(np.float32)


def head_file(op, nodes, outputs, *, direction="forward", lengths="", **more):
    file = File(op=op, T=T, B=B, I=I, H=H, direction=direction, seed=8)
    rng = np.random.default_rng(9)
    width = H * len(file.arrays()["W"])
    linear = {
        "V": rng.standard_normal((width, TOP)).astype(np.float32),
        "Vt": rng.standard_normal((TOP, width)).astype(np.float32),
        "v": rng.standard_normal(TOP).astype(np.float32),
    }
    node = N(
        op, ["X", "W", "R", "B", lengths], ["Y", "Yh"], "low", hidden_size=H, direction=direction
    )
    inputs = {"X": [None, None, I]} | ({lengths: [None]} if lengths else {})
    return model([node, *nodes], file.arrays() | linear | CONSTANTS, inputs, outputs, **more)


HEADS = {
    "every_step_softmax": ("GRU", "forward", [
        N("Squeeze", ["Y", "one"], ["y"]), N("Transpose", ["y"], ["yb"], perm=[1, 0, 2]),
        N("MatMul", ["yb", "V"], ["z"]), N("Add", ["v", "z"], ["zb"]),
        N("Softmax", ["zb"], ["head"], axis=2),
    ]),
    "last_state_gemm": ("LSTM", "forward", [
        N("Squeeze", ["Yh", "zero"], ["h"]), N("Gemm", ["h", "Vt", "v"], ["z"], transB=1),
        N("Sigmoid", ["z"], ["head"]),
    ]),
    "last_step_matmul": ("RNN", "forward", [
        N("Squeeze", ["Y", "one"], ["y"]), N("Constant", [], ["end"], value_int=-1),
        N("Gather", ["y", "end"], ["l"], axis=0), N("MatMul", ["l", "V"], ["head"]),
    ]),
    "both_last_states": ("GRU", "bidirectional", [
        N("Transpose", ["Yh"], ["hb"], perm=[1, 0, 2]), N("Reshape", ["hb", "row"], ["h"]),
        N("Gemm", ["h", "V", "v"], ["head"]),
    ]),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_imported(name, tmp_path):
    op, direction, nodes = HEADS[name]
    made = head_file(op, nodes, ["head"], direction=direction)
    imported = importers.read(save(made, tmp_path), name="t")
    assert (imported.spec.head is not None, imported.notes) == (True, ())
    x = drawn()
    want = reference.run(imported.spec, imported.weights, request(imported.spec, x))["head"]
    assert parity.agrees(parity.difference(run_onnxruntime(made, {"X": x})["head"], want))


NO_HEADS = {
    "last_step_of_a_reverse_layer": ("reverse", "", HEADS["last_step_matmul"][2]),
    "last_step_where_rows_are_shorter": ("forward", "lengths", HEADS["last_step_matmul"][2]),
    "first_step": ("forward", "", [
        N("Squeeze", ["Y", "one"], ["y"]), N("Constant", [], ["start"], value_int=0),
        N("Gather", ["y", "start"], ["l"], axis=0), N("MatMul", ["l", "V"], ["head"]),
    ]),
    "gemm_with_alpha": ("forward", "", [
        N("Squeeze", ["Yh", "zero"], ["h"]), N("Gemm", ["h", "V", "v"], ["head"], alpha=2.0),
    ]),
    "gemm_with_beta": ("forward", "", [
        N("Squeeze", ["Yh", "zero"], ["h"]), N("Gemm", ["h", "V", "v"], ["head"], beta=2.0),
    ]),
    "two_heads": ("forward", "", [
        N("Squeeze", ["Y", "one"], ["y"]), N("MatMul", ["y", "V"], ["head"]),
        N("MatMul", ["y", "V"], ["other"]),
    ]),
    "sum_of_the_last_states": ("bidirectional", "", [
        N("Split", ["Yh"], ["f", "r"], axis=0), N("Squeeze", ["f", "zero"], ["f0"]),
        N("Squeeze", ["r", "zero"], ["r0"]), N("Add", ["f0", "r0"], ["s"]),
        N("MatMul", ["s", "V"], ["head"]),
    ]),
    "softmax_over_time": ("forward", "", [
        N("Squeeze", ["Y", "one"], ["y"]), N("Softmax", ["y"], ["p"], axis=0),
        N("MatMul", ["p", "V"], ["head"]),
    ]),
    "a_table_looked_up_by_the_input": ("forward", "", [
        N("Squeeze", ["Y", "one"], ["y"]), N("MatMul", ["y", "X"], ["head"]),
    ]),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_HEADS)
def test_what_is_no_head_is_told(name, tmp_path):
    direction, lengths, nodes = NO_HEADS[name]
    path = save(head_file("RNN", nodes, ["head"], direction=direction, lengths=lengths), tmp_path)
    imported = importers.read(path, name="t")
    assert imported.spec.head is None
    assert imported.notes[-1].startswith("After it come ")


def test_what_follows_a_head_is_told(tmp_path):
    nodes = [*HEADS["last_step_matmul"][2], N("Relu", ["head"], ["end_of_all"], "relu")]
    imported = importers.read(save(head_file("RNN", nodes, ["end_of_all"]), tmp_path), name="t")
    assert imported.spec.head.activation == "none"
    assert imported.notes == ("After it come Relu 'relu': not imported. The variant ends before.",)


def test_an_embedding_is_imported(tmp_path):
    file = File(op="GRU", I=I, H=H)
    table = np.random.default_rng(1).standard_normal((9, I)).astype(np.float32)
    nodes = [
        N("Gather", ["table", "ids"], ["e"]), N("Transpose", ["e"], ["X"], perm=[1, 0, 2]),
        N("GRU", ["X", "W", "R", "B"], ["Y"], "low", hidden_size=H),
    ]  # fmt: skip
    made = model(nodes, file.arrays() | {"table": table}, {"ids": [None, None]}, ["Y"])
    imported = importers.read(save(made, tmp_path), name="t")
    assert (imported.spec.vocabulary, imported.spec.input_size, imported.notes) == (9, I, ())
    ids = np.random.default_rng(2).integers(0, 9, (B, T)).astype(np.int32)
    want = reference.run(
        imported.spec, imported.weights, imported.spec.defaults(B, T) | {"input": ids}
    )
    got = run_onnxruntime(made, {"ids": ids})["Y"][:, 0].transpose(1, 0, 2)
    assert parity.agrees(parity.difference(got, want["output"]))


@pytest.mark.parametrize(
    ("opset", "axis", "activation"), [(17, 0, "none"), (17, 1, "none"), (17, -1, "softmax"),
                                      (12, None, "none"), (13, None, "softmax")],
)  # fmt: skip
def test_a_softmax_over_another_axis_is_no_head_s(opset, axis, activation, tmp_path):
    axes = {} if axis is None else {"axis": axis}
    nodes = [
        N("Squeeze", ["Y", "one"], ["y"]), N("MatMul", ["y", "V"], ["z"]),
        N("Softmax", ["z"], ["p"], "p", **axes),
    ]  # fmt: skip
    imported = importers.read(save(head_file("RNN", nodes, ["p"], opset=opset), tmp_path), name="t")
    assert imported.spec.head.activation == activation
    assert ("After it come Softmax 'p'" in " ".join(imported.notes)) == (activation == "none")


def test_a_head_past_the_lengths_is_told(tmp_path):
    nodes = [N("Squeeze", ["Y", "one"], ["y"]), N("MatMul", ["y", "V"], ["head"])]
    path = save(head_file("RNN", nodes, ["head"], lengths="lengths"), tmp_path)
    imported = importers.read(path, name="t")
    assert (imported.spec.lengths, imported.spec.head.on) == (True, "output")
    assert imported.notes[0].startswith("Past a row's length the variant's head is zero")


def test_logits_that_are_an_output_stay_one(tmp_path):
    nodes = [
        N("Squeeze", ["Y", "one"], ["y"]),
        N("MatMul", ["y", "V"], ["z"]),
        N("Sigmoid", ["z"], ["p"], "p"),
    ]
    imported = importers.read(save(head_file("RNN", nodes, ["z", "p"]), tmp_path), name="t")
    assert imported.spec.head.activation == "none"
    assert imported.notes == ("After it come Sigmoid 'p': not imported. The variant ends before.",)
