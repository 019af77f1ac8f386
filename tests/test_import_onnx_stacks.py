"""Which nodes are one stack, and what before and after it is imported: decided by dataflow."""

import numpy as np
import pytest
from onnx import helper, numpy_helper
from onnx_files import File, model, run_onnxruntime, save

from looprnn import importers, parity, reference
from looprnn.errors import WeightsError

T, B, I, H, TOP = 7, 4, 3, 5, 6  # noqa: E741
N = helper.make_node
INTS = {
    "zero": [0], "one": [1], "two": [2], "minus": [-1], "flat": [0, 0, -1], "sized": [0, -1, 2 * H],
    "mixed": [-1, 0, 2 * H], "narrow": [0, -1, H], "static": [T, B, 2 * H],
}  # fmt: skip
CONSTANTS = {name: np.array(value, np.int64) for name, value in INTS.items()} | {
    "first": np.array(0, np.int64),
    "half": np.array(0.5, np.float32),
    "true": np.array(True),
}
ROWS = N("Transpose", ["Y"], ["t"], perm=[0, 2, 1, 3])  # [T, B, D, H]
FLAT = N("Reshape", ["t", "flat"], ["x"])
HALVES = [
    N("Slice", ["Y", "zero", "one", "one"], ["f"], "cut_f"),
    N("Slice", ["Y", "one", "two", "one"], ["r"], "cut_r"),
    N("Squeeze", ["f", "one"], ["forward"], "squeeze_f"),
    N("Squeeze", ["r", "one"], ["reverse"], "squeeze_r"),
]
# How exporters lead Y [T, D, B, H] of one layer to X [T, B, D·H] of the next, and the merge it is.
JOINS = {
    "pytorch": (
        [ROWS, FLAT],
        "concat",
    ),
    "sized_reshape": (
        [ROWS, N("Reshape", ["t", "sized"], ["x"])],
        "concat",
    ),
    "keras_halves": ([*HALVES, N("Concat", ["forward", "reverse"], ["x"], axis=2)], "concat"),
    "through_batch_first": (
        [
            *HALVES,
            N("Transpose", ["forward"], ["fb"], perm=[1, 0, 2]),
            N("Transpose", ["reverse"], ["rb"], perm=[1, 0, 2]),
            N("Concat", ["fb", "rb"], ["joined"], axis=-1),
            N("Identity", ["joined"], ["same"]),
            N("Dropout", ["same"], ["kept"]),
            N("Transpose", ["kept"], ["x"], perm=[1, 0, 2]),
        ],
        "concat",
    ),
    "split": (
        [
            N("Split", ["Y"], ["f", "r"], axis=1),
            *HALVES[2:],
            N("Concat", ["forward", "reverse"], ["x"], axis=2),
        ],
        "concat",
    ),
    "gather": (
        [
            N("Constant", [], ["last"], value_int=-1),
            N("Gather", ["Y", "first"], ["forward"], axis=1),
            N("Gather", ["Y", "last"], ["reverse"], axis=1),
            N("Concat", ["forward", "reverse"], ["x"], axis=2),
        ],
        "concat",
    ),
    "sum": ([*HALVES, N("Add", ["reverse", "forward"], ["x"])], "sum"),
    "mul": ([*HALVES, N("Mul", ["forward", "reverse"], ["x"])], "mul"),
    "average": (
        [*HALVES, N("Add", ["forward", "reverse"], ["s"]), N("Mul", ["half", "s"], ["x"])],
        "average",
    ),
}
# What looks like a join and is none: a stack of it would answer something else.
FALSE_JOINS = {
    "batch_for_time": [N("Transpose", ["Y"], ["t"], perm=[2, 0, 1, 3]), FLAT],
    "reshape_that_mixes": [N("Reshape", ["Y", "mixed"], ["x"])],
    "no_transpose": [N("Reshape", ["Y", "sized"], ["x"])],
    "features_interleaved": [N("Transpose", ["Y"], ["t"], perm=[0, 2, 3, 1]), FLAT],
    "a_size_that_may_not_fit": [ROWS, N("Reshape", ["t", "static"], ["x"])],
    "half_a_row_each": [ROWS, N("Reshape", ["t", "narrow"], ["x"])],
    "dropout_in_training": [
        ROWS, N("Reshape", ["t", "flat"], ["u"]), N("Dropout", ["u", "half", "true"], ["x"]),
    ],
    "reverse_first": [*HALVES, N("Concat", ["reverse", "forward"], ["x"], axis=2)],
    "one_half_alone": [*HALVES, N("Identity", ["forward"], ["x"])],
    "one_half_twice": [*HALVES, N("Add", ["forward", "forward"], ["x"])],
    "an_activation_between": [N("Relu", ["Y"], ["y"]), N("Reshape", ["y", "flat"], ["x"])],
}  # fmt: skip


def two_layers(join, *, width=2 * H, bottom="LSTM", top="GRU", lengths=("", ""), after=(), ends=()):
    low = File(op=bottom, T=T, B=B, I=I, H=H, direction="bidirectional", seed=3).arrays()
    high = File(op=top, T=T, B=B, I=width, H=TOP, seed=4).arrays()
    weights = {f"{n}0": a for n, a in low.items()} | {f"{n}1": a for n, a in high.items()}
    nodes = [
        N(bottom, ["X", "W0", "R0", "B0", lengths[0]], ["Y", "Yh"], "low", hidden_size=H,
          direction="bidirectional"),
        *join,
        N(top, ["x", "W1", "R1", "B1", lengths[1]], ["Z", "Zh"], "high", hidden_size=TOP),
        *after,
    ]  # fmt: skip
    inputs = {"X": [None, None, I]} | {n: [None] for n in lengths if n and n not in CONSTANTS}
    return model(nodes, weights | CONSTANTS, inputs, ["Z", "Zh", *ends])


def request(spec, x, **more):
    return spec.defaults(B, T) | {"input": x.transpose(1, 0, 2)} | more


def drawn():
    return np.random.default_rng(5).standard_normal((T, B, I)).astype(np.float32)


@pytest.mark.parametrize("name", JOINS)
def test_a_join_is_a_stack(name, tmp_path):
    join, merge = JOINS[name]
    made = two_layers(join, width=2 * H if merge == "concat" else H)
    imported = importers.read(save(made, tmp_path), name="t")
    assert [layer.merge for layer in imported.spec.layers] == [merge, "concat"]
    assert imported.notes == ()
    x = drawn()
    want = reference.run(imported.spec, imported.weights, request(imported.spec, x))
    got = run_onnxruntime(made, {"X": x})["Z"][:, 0].transpose(1, 0, 2)
    assert parity.agrees(parity.difference(got, want["output"]))


@pytest.mark.parametrize("name", FALSE_JOINS)
def test_a_false_join_is_no_stack(name, tmp_path):
    path = save(two_layers(FALSE_JOINS[name]), tmp_path)
    with pytest.raises(WeightsError) as refused:
        importers.read(path, name="t")
    assert "2 recurrent layers or stacks; choose one" in str(refused.value)
    assert "--layer low   LSTM 'low' 3 → 5 bidirectional" in str(refused.value)
    assert "--layer high   GRU 'high' 10 → 6 forward" in str(refused.value)
    (low,) = importers.read(path, name="t", layer="low").spec.layers
    assert (low.cell, low.hidden_size) == ("lstm", H)
    high = importers.read(path, name="t", layer="high")
    assert (len(high.spec.layers), high.spec.input_size) == (1, 2 * H)
    assert "Before GRU 'high' comes" in high.notes[0]


def test_layer_begins_a_stack_in_its_middle(tmp_path):
    path = save(two_layers(JOINS["pytorch"][0]), tmp_path)
    (layer,) = importers.read(path, name="t", layer="high").spec.layers
    assert layer.cell == "gru"
    assert len(importers.read(path, name="t", layer="Y").spec.layers) == 2  # by its output
    with pytest.raises(WeightsError, match="no RNN, LSTM or GRU node is called 'hihg'; there is"):
        importers.read(path, name="t", layer="hihg")


def test_lengths_of_one_layer_only_make_no_stack(tmp_path):
    join = JOINS["pytorch"][0]
    assert (
        len(
            importers.read(
                save(two_layers(join, lengths=("n", "n")), tmp_path), name="t"
            ).spec.layers
        )
        == 2
    )
    with pytest.raises(WeightsError, match="2 recurrent layers"):
        importers.read(save(two_layers(join, lengths=("n", "")), tmp_path), name="t")


def test_stacked_layers_share_ragged_lengths(tmp_path):
    made = two_layers(JOINS["keras_halves"][0], lengths=("lengths", "lengths"))
    imported = importers.read(save(made, tmp_path), name="t")
    x, lengths = drawn(), np.array([T, 0, 3, 1], np.int32)
    want = reference.run(
        imported.spec, imported.weights, request(imported.spec, x, lengths=lengths)
    )
    got = run_onnxruntime(made, {"X": x, "lengths": lengths})["Z"][:, 0].transpose(1, 0, 2)
    assert parity.agrees(parity.difference(got, want["output"]))


def test_two_readers_end_a_stack_and_are_told(tmp_path):
    third = N("GRU", ["x", "W1", "R1", "B1"], ["V"], "third", hidden_size=TOP)
    path = save(two_layers(JOINS["pytorch"][0], after=[third]), tmp_path)
    with pytest.raises(WeightsError, match="3 recurrent layers or stacks"):
        importers.read(path, name="t")
    notes = importers.read(path, name="t", layer="low").notes
    assert notes == (
        "After it come GRU 'high', GRU 'third': not imported. The variant ends before.",
    )


def test_layout_1_stacks_without_a_transpose(tmp_path):
    made = two_layers([N("Transpose", ["Y"], ["t"], perm=[0, 1, 2, 3]), FLAT])
    for node in made.graph.node:
        if node.op_type in ("LSTM", "GRU"):
            node.attribute.append(helper.make_attribute("layout", 1))
    assert len(importers.read(save(made, tmp_path), name="t").spec.layers) == 2
    made.graph.node[0].attribute.pop()  # layout 0 below, 1 above: time becomes batch
    with pytest.raises(WeightsError, match="2 recurrent layers"):
        importers.read(save(made, tmp_path), name="t")


def test_one_direction_needs_no_transpose_but_the_right_zeros(tmp_path):
    def forward(join):
        made = two_layers([N("Slice", ["X", "zero", "one", "two"], ["cut"]), *join])
        low = File(op="LSTM", T=T, B=B, I=I, H=2 * H)
        made.graph.node[0].CopyFrom(
            N("LSTM", ["X", "W0", "R0", "B0"], ["Y"], "low", hidden_size=2 * H)
        )
        for tensor in made.graph.initializer:
            if tensor.name in ("W0", "R0", "B0"):
                array = low.arrays()[tensor.name[0]]
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        return save(made, tmp_path)

    layers = importers.read(forward([N("Reshape", ["Y", "sized"], ["x"])]), name="t").spec.layers
    assert [layer.hidden_size for layer in layers] == [2 * H, TOP]
    with pytest.raises(WeightsError, match="2 recurrent layers"):  # [T, 1, B·H]
        importers.read(forward([N("Reshape", ["Y", "flat"], ["x"])]), name="t")
