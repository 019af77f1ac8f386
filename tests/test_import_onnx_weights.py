"""Weights in every form that exporters give them, what the notes say, and bad nodes by name."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_files import File, model, save

from looprnn import importers
from looprnn.errors import LoopRNNError

FILE = File(op="LSTM", direction="bidirectional", peepholes=True)
N = helper.make_node
ARRAYS = FILE.arrays()
W = ARRAYS["W"]  # [2, 20, 3]


def made_of(nodes, *, node=None, **constants):
    """FILE's node after others, which may make its constants and states."""
    made = {name for other in nodes for name in other.output}
    kept = {n: a for n, a in ARRAYS.items() if n not in made} | constants
    feed = {n: list(a.shape) for n, a in FILE.feed().items() if n not in made | set(constants)}
    return model([*nodes, node or FILE.node()], kept, feed, ["Y"])


def read(made, folder):
    return importers.read(save(made, folder), name="t")


def ints(*values):
    return np.array(values, np.int64)


WAYS = {
    "constant_node": ([N("Constant", [], ["W"], value=numpy_helper.from_array(W))], {}),
    "identity": ([N("Identity", ["w"], ["W"])], {"w": W}),
    "transpose": ([N("Transpose", ["w"], ["W"], perm=[0, 2, 1])], {"w": W.transpose(0, 2, 1)}),
    "pytorch_stacks_directions": (
        [
            N("Unsqueeze", ["f", "zero"], ["f1"]),
            N("Unsqueeze", ["r", "zero"], ["r1"]),
            N("Concat", ["f1", "r1"], ["W"], axis=0),
        ],
        {"f": W[0], "r": W[1], "zero": ints(0)},
    ),
    "pytorch_reorders_gates": (
        [
            N("Slice", ["w", "from", "to", "axis"], ["tail"]),
            N("Slice", ["w", "zero", "from", "axis"], ["head"]),
            N("Concat", ["tail", "head"], ["W"], axis=1),
        ],
        {"w": np.roll(W, 5, axis=1), "from": ints(5), "to": ints(2**63 - 1), "axis": ints(1),
         "zero": ints(0)},
    ),
    "backwards_slice": (
        [N("Slice", ["w", "start", "end", "axis", "step"], ["W"])],
        {"w": W[::-1], "start": ints(-1), "end": ints(-(2**63)), "axis": ints(0), "step": ints(-1)},
    ),
    "reshape": ([N("Reshape", ["w", "s"], ["W"])], {"w": W.reshape(40, 3), "s": ints(2, -1, 3)}),
    "reshape_that_keeps": ([N("Reshape", ["w", "s"], ["W"])], {"w": W, "s": ints(0, 0, -1)}),
    "squeeze": ([N("Squeeze", ["w", "s"], ["W"])], {"w": W[:, None], "s": ints(1)}),
    "squeeze_all": ([N("Squeeze", ["w"], ["W"])], {"w": W[:, None]}),
    "cast": ([N("Cast", ["w"], ["W"], to=TensorProto.FLOAT)], {"w": W.astype(np.float64)}),
}  # fmt: skip


@pytest.mark.parametrize("name", WAYS)
def test_weights_through_trivial_nodes(name, tmp_path):
    nodes, constants = WAYS[name]
    got = read(made_of(nodes, **constants), tmp_path)
    want = read(FILE.model(), tmp_path)
    assert (list(got.weights), got.notes) == (list(want.weights), ())
    for array in want.weights:
        np.testing.assert_array_equal(got.weights[array], want.weights[array])


def test_old_operators_keep_axes_in_attributes(tmp_path):
    nodes = [N("Unsqueeze", ["f"], ["f1"], axes=[0]), N("Unsqueeze", ["r"], ["r1"], axes=[0]),
             N("Concat", ["f1", "r1"], ["c"], axis=0),
             N("Slice", ["c"], ["W"], starts=[0, 0], ends=[2, 20])]  # fmt: skip
    got = read(made_of(nodes, f=W[0], r=W[1]), tmp_path).weights["weight_ih_l0_reverse"]
    np.testing.assert_array_equal(got, read(FILE.model(), tmp_path).weights["weight_ih_l0_reverse"])


def stored(kind, *, raw):
    made = FILE.model()
    tensor = next(t for t in made.graph.initializer if t.name == "W")
    values = W.astype(np.float16) if kind == TensorProto.FLOAT16 else W
    data = values.tobytes() if raw else values.reshape(-1)
    if kind == TensorProto.BFLOAT16:
        data = (W.view(np.uint32) >> 16).astype(np.uint16)
        made_tensor = TensorProto(name="W", data_type=kind, dims=W.shape)
        if raw:
            made_tensor.raw_data = data.tobytes()
        else:
            made_tensor.int32_data.extend(int(n) for n in data.reshape(-1))
        tensor.CopyFrom(made_tensor)
        return made
    if kind == TensorProto.DOUBLE and raw:
        data = values.astype(np.float64).tobytes()
    tensor.CopyFrom(helper.make_tensor("W", kind, W.shape, data, raw=raw))
    return made


@pytest.mark.parametrize("raw", [True, False], ids=["raw", "typed"])
@pytest.mark.parametrize(
    ("kind", "near"),
    [
        (TensorProto.FLOAT, 0.0), (TensorProto.DOUBLE, 0.0), (TensorProto.FLOAT16, 2e-3),
        (TensorProto.BFLOAT16, 2e-2),
    ],
)  # fmt: skip
def test_every_type_becomes_float32(kind, near, raw, tmp_path):
    got = read(stored(kind, raw=raw), tmp_path)
    want = read(FILE.model(), tmp_path).weights
    for name, array in got.weights.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, want[name], rtol=0, atol=near)
    told = ("'W' is float64 in the file; it was rounded to float32.",)
    assert got.notes == (told if kind == TensorProto.DOUBLE else ())


# ---- what cannot be kept is told


def test_a_learned_state_is_told(tmp_path):
    learned = np.random.default_rng(3).standard_normal((2, 1, 5)).astype(np.float32)
    nodes = [N("Expand", ["learned", "s"], ["h_0"], "spread")]
    got = read(made_of(nodes, learned=learned, s=ints(2, 4, 5)), tmp_path)
    assert got.spec.h_0 == 0.0
    assert got.notes[0].startswith("The initial h of LSTM 'node' is a constant that is not one")
    assert "send it as h_0 with each request" in got.notes[0]


@pytest.mark.parametrize("value", [None, 0.25])
def test_a_filled_state_is_the_default(value, tmp_path):
    fill = {} if value is None else {"value": helper.make_tensor("", 1, [1], [value])}
    nodes = [
        N("Shape", ["X"], ["s"]),
        N("ConstantOfShape", ["s"], ["filled"], **fill),
        N("Slice", ["filled", "zero", "two", "zero"], ["h_0"]),
    ]
    got = read(made_of(nodes, zero=ints(0), two=ints(2)), tmp_path)
    assert (got.spec.h_0, got.notes) == (value or 0.0, ())


def test_a_computed_state_is_told(tmp_path):
    got = read(made_of([N("Relu", ["c_0"], ["h_0"], "relu")]), tmp_path)
    assert got.notes == (
        "Relu 'relu' makes the initial h of LSTM 'node': send it as h_0 with each request.",
    )


def test_computed_input_is_told(tmp_path):
    got = read(made_of([N("Conv", ["c_0", "h_0"], ["X"], "conv")]), tmp_path)
    assert got.notes[0].startswith("Before LSTM 'node' comes Conv 'conv': not imported.")


LENGTHS = File(op="LSTM", lengths=(1, 2, 3, 4))


def test_fixed_lengths_are_told(tmp_path):
    arrays = LENGTHS.arrays() | {"lengths": np.array([1, 2, 3, 4], np.int32)}
    feed = {n: list(a.shape) for n, a in LENGTHS.feed().items() if n != "lengths"}
    got = read(model([LENGTHS.node()], arrays, feed, ["Y"]), tmp_path)
    assert got.spec.lengths
    assert "has the fixed lengths [1, 2, 3, 4]" in got.notes[0]


def test_lengths_made_of_shapes_are_full_lengths(tmp_path):
    nodes = [
        N("Shape", ["X"], ["s"]),
        N("Slice", ["s", "zero", "one"], ["t"]),
        N("Slice", ["s", "one", "two"], ["b"]),
        N("Tile", ["t", "b"], ["n"]),
        N("Cast", ["n"], ["lengths"], to=TensorProto.INT32),
    ]
    feed = {n: list(a.shape) for n, a in LENGTHS.feed().items() if n != "lengths"}
    bounds = {"zero": ints(0), "one": ints(1), "two": ints(2)}
    made = model([*nodes, LENGTHS.node()], LENGTHS.arrays() | bounds, feed, ["Y"])
    got = read(made, tmp_path)
    assert not got.spec.lengths
    assert "takes its lengths from shapes alone" in got.notes[0]


# ---- bad nodes


def bad(node=None, **arrays):
    return made_of([], node=node, **arrays)


def attribute(**changes):
    return FILE.model(**changes)


BAD = {
    "w_is_computed": (
        made_of([N("MatMul", ["w", "h_0"], ["W"], "mm")], w=W),
        "'W' is no constant: MatMul 'mm' makes 'W'.*W of LSTM 'node'",
    ),
    "w_is_quantized": (
        made_of([N("DequantizeLinear", ["w", "h_0"], ["W"], "dq")], w=W.astype(np.int8)),
        "DequantizeLinear 'dq' makes 'W'; quantized weights are not imported",
    ),
    "w_is_an_input": (
        model([FILE.node()], {n: a for n, a in ARRAYS.items() if n != "W"},
              {"W": [2, 20, 3]} | {n: list(a.shape) for n, a in FILE.feed().items()}, ["Y"]),
        "'W' is an input of the graph",
    ),
    "w_is_int8": (bad(W=W.astype(np.int8)), "'W' is INT8; wanted FLOAT"),
    "w_is_int64": (bad(W=W.astype(np.int64)), "'W' is int64, wanted a floating type"),
    "w_is_transposed": (
        bad(W=W.transpose(0, 2, 1)), r"'W' is \[2, 3, 20\].*needs \[2, 20, input size\]"),
    "w_of_one_direction": (bad(W=W[:1]), r"'W' is \[1, 20, 3\], LSTM 'node' needs \[2, 20,"),
    "w_is_flat": (bad(W=W[0]), r"'W' is \[20, 3\]"),
    "r_of_another_size": (bad(R=ARRAYS["R"][:, :, :4]), "hidden_size is 5, but R is for 4"),
    "r_is_flat": (bad(R=ARRAYS["R"][0]), r"'R' is \[20, 5\], wanted \[D, G·H, size\]"),
    "b_is_one_half": (bad(B=ARRAYS["B"][:, :20]), r"'B' is \[2, 20\], LSTM 'node' needs \[2, 40\]"),
    "p_is_short": (bad(P=ARRAYS["P"][:, :5]), r"'P' is \[2, 5\], LSTM 'node' needs \[2, 15\]"),
    "w_holds_nan": (bad(W=W * np.float32("nan")), "weight_ih_l0 holds NaN"),
    "double_beyond_float32": (bad(W=W * 1e300), "weight_ih_l0 holds NaN"),
    "no_r": (bad(N("LSTM", ["X", "W", ""], ["Y"], "node")), "LSTM 'node' has no R"),
    "too_few_inputs": (bad(N("LSTM", ["X", "W"], ["Y"], "node")), "LSTM 'node' has 2 inputs"),
    "no_output": (bad(N("LSTM", ["X", "W", "R"], [""], "node")), "LSTM 'node' has no output"),
    "clip_0": (attribute(clip=0.0), "LSTM 'node': clip must be a number above 0, got 0.0"),
    "clip_below_0": (attribute(clip=-1.0), "clip must be a number above 0, got -1.0"),
    "three_activations_for_two_directions": (
        attribute(activations=["Sigmoid", "Tanh", "Tanh"]),
        "6 activations are wanted, got Sigmoid"),
    "an_unknown_activation": (
        attribute(activations=["Sigmoid", "Tanh", "Gelu"] * 2),
        "the activation 'Gelu' is not known"),
    "affine_without_alpha": (
        attribute(activations=["Sigmoid", "Tanh", "Affine"] * 2), "affine needs alpha and beta"),
    "layout_2": (attribute(layout=2), "layout must be 0 or 1, got 2"),
    "an_unknown_attribute": (attribute(gate_order=1), "unknown attribute 'gate_order'"),
    "an_attribute_of_another_type": (attribute(clip=[0.5, 1.0]), "clip must be float"),
    "a_direction_that_is_none": (
        bad(N("LSTM", ["X", "W", "R"], ["Y"], "node", direction="both")),
        "direction must be one of forward, reverse, bidirectional; got 'both'"),
    "a_fold_that_fails": (
        made_of([N("Reshape", ["w", "s"], ["W"], "rs")], w=W, s=ints(7, 7)),
        "Reshape 'rs': cannot reshape"),
    "a_zero_that_is_a_size": (
        made_of([N("Reshape", ["w", "s"], ["W"], "rs", allowzero=1)], w=W, s=ints(0, 0, -1)),
        "Reshape 'rs': cannot reshape"),
    "a_fold_out_of_range": (
        made_of([N("Transpose", ["w"], ["W"], "tr", perm=[0, 1, 9])], w=W), "Transpose 'tr': "),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_bad_node_is_refused_by_name(name, tmp_path):
    made, words = BAD[name]
    with pytest.raises(LoopRNNError, match=words) as error:
        read(made, tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("op", ["RNN", "GRU"])
def test_a_name_that_no_spec_can_have(op, tmp_path):
    with pytest.raises(LoopRNNError, match="name must be letters"):
        importers.read(save(File(op=op).model(), tmp_path), name="../etc")
