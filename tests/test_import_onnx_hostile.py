"""Files that lie: each refused with the tensor or node named, in bounded memory, before anything
outside the file's folder is touched.
"""

import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, external_data_helper, helper
from onnx_files import File, model, save

from looprnn import importers
from looprnn.errors import LoopRNNError, WeightsError
from looprnn.importers import onnx_file, onnx_graph

FILE = File(op="LSTM", direction="bidirectional", peepholes=True)
N = helper.make_node


def refused(made, folder, words):
    with pytest.raises(LoopRNNError, match=words):
        importers.read(save(made, folder), name="t")


# ---- external data


def external(folder, location="data.bin", **entries):
    """FILE with W in external data, and the bytes of W."""
    made = FILE.model()
    w = next(tensor for tensor in made.graph.initializer if tensor.name == "W")
    data = w.raw_data
    external_data_helper.set_external_data(w, location=location)
    for key, value in entries.items():
        entry = w.external_data.add()
        entry.key, entry.value = key, str(value)
    w.ClearField("raw_data")
    w.data_location = TensorProto.EXTERNAL
    folder.mkdir(exist_ok=True)
    return made, data


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("../data.bin", "'W' keeps its data in '../data.bin', which leaves the file's folder"),
        ("sub/../../data.bin", "leaves the file's folder"),
        ("..\\\\data.bin", "leaves the file's folder"),
        ("/etc/passwd", "which is no path inside the file's folder"),
        ("C:\\\\data.bin", "which is no path inside the file's folder"),
        ("\\\\\\\\host\\\\data.bin", "which is no path inside the file's folder"),
        ("a\0b", "which is no path inside the file's folder"),
        ("", "which is no path inside the file's folder"),
        (".", "which is no path inside the file's folder"),
        ("link.bin", "where 'link.bin' is a symlink"),
        ("linked/data.bin", "where 'linked' is a symlink"),
        ("missing.bin", "which is not there: put it beside the .onnx file"),
        ("sub", "which is not there"),
    ],
)
def test_external_data_outside_is_refused_before_anything_is_read(
    location, words, tmp_path, monkeypatch
):
    folder = tmp_path / "model"
    made, data = external(folder, location)
    (tmp_path / "data.bin").write_bytes(data)
    (folder / "sub").mkdir()
    (folder / "link.bin").symlink_to(tmp_path / "data.bin")
    (folder / "linked").symlink_to(tmp_path)
    monkeypatch.setattr(onnx_file.os, "open", lambda *_: pytest.fail("it was opened"))
    monkeypatch.setattr(onnx_graph, "decode", lambda *_: pytest.fail("a tensor was read"))
    refused(made, folder, words)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"offset": 8}, "'W' keeps its data in 'data.bin', 480 bytes from 8 on; it holds 480"),
        ({"offset": -480}, "480 bytes from -480 on"),
        ({"offset": "x"}, "an offset or length that is no number"),
        ({"offset": "9" * 5000}, "an offset or length that is no number"),
        ({"length": 472}, r"472 bytes, but \[2, 20, 3\] takes 480"),
        ({"length": 2**63}, "9223372036854775808 bytes, but"),
    ],
)
def test_external_data_that_does_not_fit_is_refused(entries, words, tmp_path):
    made, data = external(tmp_path, **entries)
    (tmp_path / "data.bin").write_bytes(data)
    refused(made, tmp_path, words)


def test_external_data_inside_is_read(tmp_path):
    made, data = external(tmp_path, "sub/data.bin", offset=16, length=480)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "data.bin").write_bytes(b"?" * 16 + data + b"?")
    got = importers.read(save(made, tmp_path), name="t").weights
    want = importers.read(save(FILE.model(), tmp_path), name="t").weights
    assert all(np.array_equal(got[name], want[name]) for name in want)


# ---- claims


@pytest.mark.parametrize("dims", [[2**40, 2**40], [2**62, 4], [2**31, 1], [2**40], [2**29, 1, 1]])
@pytest.mark.parametrize("where", ["initializer", "constant", "external"])
def test_a_huge_claim_is_refused_in_little_memory(dims, where, tmp_path):
    made = FILE.model()
    if where == "external":
        made, _ = external(tmp_path)
        (tmp_path / "data.bin").write_bytes(b"0" * 480)
    w = next(tensor for tensor in made.graph.initializer if tensor.name == "W")
    w.dims[:] = dims
    if where == "constant":
        made.graph.node.insert(0, N("Constant", [], ["W"], value=w))
        made.graph.initializer.remove(w)
    path = save(made, tmp_path)
    tracemalloc.start()
    words = "claims .* at most" if dims[0] > 2**29 else "(no such bytes|bytes from 0 on)"
    with pytest.raises(WeightsError, match=f"'W'.* {words}"):
        importers.read(path, name="t")
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()


def test_a_claim_that_nothing_uses_is_refused(tmp_path):
    made = FILE.model()
    made.graph.initializer.add(name="unused", data_type=TensorProto.FLOAT, dims=[2**20])
    refused(made, tmp_path, "'unused' claims .*no such bytes")


@pytest.mark.parametrize("dims", [[-1, 20, 3], [1] * 40, [2, 20, 2], [0, 2**62, 2**62]])
def test_a_shape_that_the_bytes_do_not_have(dims, tmp_path):
    made = FILE.model()
    made.graph.initializer[0].dims[:] = dims
    refused(made, tmp_path, f"'{made.graph.initializer[0].name}'")


def test_two_gigabytes_are_refused_unread(tmp_path):
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(WeightsError, match="2147483648 bytes; a .onnx file has between 1 and"):
        importers.read(path, name="t")


@pytest.mark.parametrize("data", [b"", b"\0", b"not protobuf at all", b"PK\3\4" * 99])
def test_what_is_no_onnx_is_refused(data, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=r"model\.onnx: "):
        importers.read(path, name="t")


def test_names_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "model.onnx"
    data = FILE.model().SerializeToString()
    for old, new in (
        (b"\x04LSTM", b"\x04LS\xffM"),
        (b"\x04node", b"\x04\xffode"),
        (b"Y_h", b"Y\xffh"),
    ):
        path.write_bytes(data.replace(old, new))
        with pytest.raises(WeightsError, match="has a name that is not UTF-8"):
            importers.read(path, name="t")


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "model.onnx"
    data = FILE.model().SerializeToString()
    for end in range(0, len(data), 7):
        path.write_bytes(data[:end])
        with pytest.raises(WeightsError, match=r"model\.onnx: "):
            importers.read(path, name="t")


PEAK = """
import resource, sys
from looprnn import importers
from looprnn.importers import onnx
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
importers.read(importers.Path(sys.argv[1]), name="t")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_large_file_peaks_under_two_and_a_half_times_its_size(tmp_path):
    path = save(File(op="LSTM", I=1024, H=1024, direction="bidirectional").model(), tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) * 1024 < 2.5 * path.stat().st_size


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(hits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes_raise_our_errors_or_nothing(hits, tmp_path):
    data = bytearray(bystanders().SerializeToString())
    for where, value in hits:
        data[int(where * (len(data) - 1))] = value
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    try:
        importers.read(path, name="t")
    except LoopRNNError as error:
        assert str(error)


def bystanders():
    """A small file with many kinds of nodes around the one."""
    file = File(op="GRU", I=2, H=2)
    shape = {"shape": np.array([0, -1, 2]), "axes": np.array([1]), "v": np.ones((2, 3), np.float32)}
    nodes = [
        N("Constant", [], ["half"], value_float=0.5),
        N("ConstantOfShape", ["dims"], ["h"]),
        N("Transpose", ["x"], ["X"], perm=[1, 0, 2]),
        N("GRU", ["X", "W", "R", "B", "", "h"], ["Y", "Yh"], "g", hidden_size=2, clip=0.5),
        N("Squeeze", ["Y", "axes"], ["y"]),
        N("MatMul", ["y", "v"], ["z"]),
        N("Softmax", ["z"], ["p"], axis=-1),
        N("Slice", ["Yh", "zero", "axes", "zero"], ["s"]),
        N("Reshape", ["s", "shape"], ["t"]),
        N("Mul", ["t", "half"], ["u"]),
    ]
    shape |= {"dims": np.array([1, 4, 2]), "zero": np.array([0])}
    return model(nodes, file.arrays() | shape, {"x": [None, None, 2]}, ["p", "u"])


# ---- graphs


def around(nodes, **constants):
    """FILE's node after others; they may make its W, R or h_0."""
    kept = {n: a for n, a in FILE.arrays().items() if not any(n in node.output for node in nodes)}
    feed = {
        n: list(a.shape) for n, a in FILE.feed().items() if not any(n in k.output for k in nodes)
    }
    return model([*nodes, FILE.node()], kept | constants, feed, ["Y"])


def test_a_cycle_is_refused(tmp_path):
    made = around([N("Add", ["Y", "Y"], ["X"], "again")])
    refused(made, tmp_path, "Add 'again' reads 'Y' before anything makes it: the graph has a cycle")


def test_a_tensor_made_twice_is_refused(tmp_path):
    refused(around([N("Relu", ["X"], ["Y_h"], "relu")]), tmp_path, "'Y_h' is made twice")


def test_a_concat_that_doubles_forever_is_refused_in_little_memory(tmp_path):
    nodes = [N("Concat", [f"w{k}", f"w{k}"], [f"w{k + 1}"], f"twice{k}", axis=0) for k in range(60)]
    made = around([*nodes, N("Identity", ["w60"], ["W"])], w0=np.ones((2, 20, 3), np.float32))
    tracemalloc.start()
    refused(made, tmp_path, r"Concat 'twice\d+' makes more than the file holds")
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()


def test_a_very_long_way_is_followed(tmp_path):
    nodes = [N("Identity", [f"w{k}"], [f"w{k + 1}"]) for k in range(5000)]
    nodes += [N("Identity", [f"s{k}"], [f"s{k + 1}"]) for k in range(5000)]
    ways = [N("Identity", ["w5000"], ["W"]), N("Identity", ["s5000"], ["h_0"])]
    zero = np.full((2, 4, 5), 0.5, np.float32)
    made = around([*nodes, *ways], w0=FILE.arrays()["W"], s0=zero)
    assert importers.read(save(made, tmp_path), name="t").spec.h_0 == 0.5


@pytest.mark.parametrize("op", ["If", "Loop", "Scan"])
def test_a_node_inside_another_is_refused_with_a_sentence(op, tmp_path):
    value = helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)
    body = helper.make_graph([FILE.node()], "body", [], [value])
    names = {"If": ("then_branch", "else_branch"), "Loop": ("body",), "Scan": ("body",)}[op]
    made = model(
        [N(op, ["X"], ["out"], "outer", **dict.fromkeys(names, body))], {}, {"X": [None] * 3}, []
    )
    words = f"There is LSTM 'node' in {op} 'outer'.*inside If, Loop, Scan and functions are not"
    refused(made, tmp_path, words)
    made.graph.node.extend([FILE.node()])
    made.graph.initializer.extend(FILE.model().graph.initializer)
    for name in ("h_0", "c_0"):
        made.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    assert importers.read(save(made, tmp_path), name="t").spec.layers[0].cell == "lstm"


def test_a_file_without_recurrent_nodes(tmp_path):
    made = model([N("Relu", ["X"], ["y"])], {}, {"X": [1]}, ["y"])
    refused(made, tmp_path, "no RNN, LSTM or GRU node at its top")
    other = N("DynamicQuantizeLSTM", ["X"], ["y"], "dq", domain="com.microsoft")
    made = model([other], {}, {"X": [1]}, ["y"])
    refused(made, tmp_path, "DynamicQuantizeLSTM 'dq': not ONNX's own, not imported")
