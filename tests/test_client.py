"""The client without a server: every refusal, every error, and sockets that misbehave."""

import http.server
import json
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace

import grpc
import looprnn_client
import numpy as np
import pytest
from looprnn_client import (
    BadInput,
    Client,
    LoopRNNClientError,
    NotReady,
    ServerError,
    Timeout,
    UnknownModel,
    Unreachable,
    list_models,
)
from looprnn_client.cli import main
from looprnn_client.transport import Code, Failure, connect, parse
from tritonclient.grpc import service_pb2, service_pb2_grpc

B, T, I, H, D = 3, 4, 7, 5, 2  # noqa: E741  no two agree
STATES = 4  # two layers, two directions
X = np.linspace(-1, 1, B * T * I, dtype=np.float32).reshape(B, T, I)
STATE = np.linspace(-1, 1, B * STATES * H, dtype=np.float32).reshape(B, STATES, H)


def config(
    *,
    h=(STATES, H),
    c=(STATES, H),
    width=D * H,
    reverse=None,
    head=None,
    lengths=None,
    vocabulary=None,
    batch=8,
    time_max="16",
    dtype="TYPE_FP32",
    strings=False,
):
    def row(name, *dims, dtype=dtype):
        dims = [str(d) for d in dims] if strings else list(dims)
        return {"name": name, "data_type": dtype, "dims": dims}

    states = {"h": h, "c": c} if c else {"h": h}
    takes = [row("input", -1, I), *(row(f"{s}_0", *dims) for s, dims in states.items())]
    gives = [row("output", -1, width), *(row(f"{s}_n", *dims) for s, dims in states.items())]
    if vocabulary is not None:
        takes[0] = row("input", -1, dtype="TYPE_INT32")
    if lengths is not None:
        takes.insert(1, row("lengths", *lengths, dtype="TYPE_INT32"))
    if reverse is not None:
        gives.insert(1, row("output_reverse", -1, reverse))
    if head is not None:
        gives.append(row("head", *head))
    notes = {"time_max": time_max, "vocabulary": vocabulary}
    return {
        "input": takes,
        "output": gives,
        "max_batch_size": batch,
        "parameters": {k: {"string_value": v} for k, v in notes.items() if v is not None},
    }


PADDED = config(c=None, lengths=[1], head=[3])
TOKENS = config(lengths=[1], vocabulary="11", head=[-1, 4])
IDS = np.arange(B * T).reshape(B, T) % 11


class Fake:
    """A transport that serves `config` and remembers what it was asked."""

    def __init__(self, config=None, *, models=(), fails=None, index_fails=None):
        self.model = config if config is not None else globals()["config"]()
        self.models = models
        self.fails = fails
        self.index_fails = index_fails
        self.asked = []
        self.closed = 0

    def config(self, model, timeout_s):
        self.asked.append("config")
        return self.model

    def index(self, timeout_s):
        self.asked.append("index")
        if self.index_fails:
            raise self.index_fails
        return self.models

    def infer(self, model, inputs, outputs, timeout_s):
        self.asked.append("infer")
        self.inputs, self.outputs = inputs, outputs
        if self.fails:
            raise self.fails
        self.answer = {name: self.compute(name, inputs["input"]) for name in outputs}
        return self.answer

    def compute(self, name, x):
        (dims,) = (row["dims"] for row in self.model["output"] if row["name"] == name)
        shape = [len(x), *(x.shape[1] if int(dim) == -1 else int(dim) for dim in dims)]
        array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
        array.flags.writeable = False
        return array

    def close(self):
        self.closed += 1


def client_of(fake, timeout_s=5.0):
    return Client("here:8001", "bilstm", timeout_s=timeout_s, transport=fake)


def state_of(name, state, reason=""):
    return {"name": name, "version": "1", "state": state, "reason": reason}


def with_value(array, index, value):
    changed = array.copy()
    changed[index] = value
    return changed


# ── what is public ───────────────────────────────────────────────────────────────────────────────


def test_public_names_are_these():
    assert looprnn_client.__all__ == [
        "BadInput", "Client", "LoopRNNClientError", "ModelState", "NotReady", "Result",
        "ServerError", "Signature", "Timeout", "UnknownModel", "Unreachable", "list_models",
    ]  # fmt: skip
    assert all(hasattr(looprnn_client, name) for name in looprnn_client.__all__)


def test_importing_loads_no_transport():
    code = (
        "import numpy, sys, time; start = time.perf_counter(); import looprnn_client;"
        "print(time.perf_counter() - start,"
        " *[m for m in ('grpc', 'gevent', 'tritonclient') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, *loaded = said.stdout.split()
    assert loaded == []
    assert float(seconds) < 0.3


@pytest.mark.parametrize(
    ("url", "want"),
    [
        ("localhost:8001", ("grpc", "localhost:8001")),
        ("grpc://10.0.0.7:8001", ("grpc", "10.0.0.7:8001")),
        ("http://triton:8000/", ("http", "triton:8000")),
        ("[::1]:8001", ("grpc", "[::1]:8001")),
    ],
)
def test_address(url, want):
    assert parse(url) == want


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://triton:8000", "'https'"),
        ("ftp://triton:8000", "'ftp'"),
        ("triton", "names no port"),
        (":8001", "names no host"),
        ("", "names no host"),
        ("triton:eight", "is not an address"),
        ("triton:80010", "is not an address"),
        ("http://triton:8000/v2/models", "more than a host and a port"),
        ("http://me:secret@triton:8000", "more than a host and a port"),
        (8001, "must be a string"),
    ],
)
def test_address_that_cannot_be_used(url, words):
    with pytest.raises(BadInput, match=words) as refused:
        Client(url, "lstm", timeout_s=1)
    assert "localhost:8001" in str(refused.value)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "5", None, True])
def test_timeout_that_is_no_time(seconds):
    with pytest.raises(BadInput, match="timeout_s must be"):
        Client("localhost:8001", "lstm", timeout_s=seconds)


def test_timeout_forgotten():
    with pytest.raises(TypeError, match="timeout_s"):
        Client("localhost:8001", "lstm")


@pytest.mark.parametrize("model", ["", None])
def test_model_name_forgotten(model):
    with pytest.raises(BadInput, match="name of a model"):
        Client("localhost:8001", model, timeout_s=1)


# ── arrays that do not fit ───────────────────────────────────────────────────────────────────────

REFUSED = {
    "batch_axis_forgotten": ((X[0],), r"\[4, 7\].*takes \[B, T, I\].*x\[np.newaxis\]"),
    "rank_four": ((X[None],), r"\[1, 3, 4, 7\]"),
    "scalar": ((np.float32(1),), r"input is \[\]"),
    "time_last": ((X.swapaxes(1, 2),), r"\[3, 7, 4\].*1\.\.16, 7\].*last axis"),
    "no_rows": ((X[:0],), "no row to compute"),
    "no_steps": ((X[:, :0],), "no step to compute"),
    "too_many_rows": ((np.repeat(X, 3, 0),), r"\[9, 4, 7\].*\[1\.\.8.*at most 8 rows"),
    "too_many_steps": (
        (np.repeat(X, 5, 1),),
        r"\[3, 20, 7\].*cut the sequence at 16 steps.*carry h_n",
    ),
    "float64": ((X.astype(np.float64),), r"float64.*x\.astype\(np\.float32\)"),
    "float16": ((X.astype(np.float16),), r"float16.*x\.astype\(np\.float32\)"),
    "ints": ((X.astype(np.int32),), r"int32.*x\.astype\(np\.float32\)"),
    "big_endian": ((X.astype(">f4"),), r">f4.*x\.astype\(np\.float32\)"),
    "nested_list": ((X.tolist(),), r"float64.*np\.asarray\(x, dtype=np\.float32\)"),
    "ragged_list": (([[1.0], [1.0, 2.0]],), "input is not an array of numbers"),
    "words": (("x.npy",), "input is <U5"),
    "mask_dropped": ((np.ma.masked_array(X),), "mask cannot be sent"),
    "nan": ((with_value(X, (1, 2, 3), np.nan),), r"input\[1, 2, 3\] is nan.*finite"),
    "first_of_two": (
        (with_value(with_value(X, (2, 0, 1), np.nan), (0, 3, 6), -np.inf),),
        r"input\[0, 3, 6\] is -inf",
    ),
    "nan_in_h": ((X, with_value(STATE, (2, 3, 4), np.nan)), r"h_0\[2, 3, 4\] is nan"),
    "inf_in_c": ((X, STATE, with_value(STATE, (0, 0, 1), np.inf)), r"c_0\[0, 0, 1\] is inf"),
    "h_of_other_batch": ((X, STATE[:2]), r"h_0 is \[2, 4, 5\].*\[3, 4, 5\]"),
    "h_layers_first": ((X, STATE.swapaxes(0, 1)), r"h_0 is \[4, 3, 5\].*swapaxes\(0, 1\)"),
    "h_without_batch": ((X[:1], STATE[0]), r"h_0 is \[4, 5\].*np\.newaxis"),
    "c_of_one_direction": ((X, STATE, STATE[:, :2]), r"c_0 is \[3, 2, 5\].*\[3, 4, 5\]"),
    "h_float64": ((X, STATE.astype(np.float64)), "h_0 is float64"),
}
REFUSED_OUTPUTS = {
    "misspelt": (["output", "hn"], "'hn'; did you mean 'h_n'.*output, h_n"),
    "as_string": ("h_n", r"pass \['h_n'\]"),
    "empty": ([], "nothing to ask for"),
    "not_a_name": ([0], "no output 0"),
    "of_another_model": (["head"], "no output 'head'"),
}
REFUSED_LENGTHS = {
    "past_the_end": ([4, 5, 1], r"lengths\[1\] is 5, but .* 0\.\.4 steps"),
    "negative": ([0, 4, -1], r"lengths\[2\] is -1"),
    "past_int32": ([4, 2**32 + 1, 4], r"lengths\[1\] is 4294967297"),
    "past_int64": (np.array([4, 2**63, 4], np.uint64), r"lengths\[1\] is 9223372036854775808"),
    "past_every_integer": ([4, 2**64, 4], "lengths is object"),
    "one_too_few": ([4, 2], r"lengths is \[2\], but .*\[B\] = \[3\]"),
    "as_the_wire_has_them": ([[4], [2], [1]], r"lengths is \[3, 1\], but .*\[B\] = \[3\]"),
    "one_for_all": (4, r"lengths is \[\]"),
    "floats": ([4.0, 2.0, 1.0], r"float64, but .*integers.*np\.asarray\(x, dtype=np\.int32\)"),
    "a_mask": (np.ones(B, bool), "lengths is bool, but .*integers"),
    "ragged": ([[4], [2, 1], [1]], "lengths is not an array"),
    "masked": (np.ma.masked_array([4, 2, 1]), "lengths is a masked array"),
}
REFUSED_IDS = {
    "one_past_the_vocabulary": (with_value(IDS, (1, 2), 11), r"input\[1, 2\] is 11.*0\.\.10"),
    "padding_of_minus_one": (with_value(IDS, (2, 3), -1), r"input\[2, 3\] is -1.*padding included"),
    "first_of_two": (with_value(with_value(IDS, (2, 0), 99), (0, 3), -7), r"input\[0, 3\] is -7"),
    "past_int32": (with_value(IDS, (0, 1), 2**32), r"input\[0, 1\] is 4294967296"),
    "unsigned": (with_value(IDS.astype(np.uint8), (0, 1), 255), r"input\[0, 1\] is 255"),
    "floats": (IDS.astype(np.float32), r"float32, but .*takes ids.*x\.astype\(np\.int32\)"),
    "one_hot": (
        np.eye(11, dtype=np.int32)[IDS],
        r"\[3, 4, 11\].*takes \[B, T\] = \[1\.\.8, 1\.\.16\]",
    ),
    "batch_axis_forgotten": (IDS[0], r"\[4\].*x\[np\.newaxis\]"),
    "no_steps": (IDS[:, :0], "no step to compute"),
    "too_many_rows": (np.repeat(IDS, 3, 0), "at most 8 rows"),
    "too_many_steps": (np.repeat(IDS, 5, 1), "cut the sequence at 16 steps"),
    "words": (["a", "b"], "input is <U1, but .*takes ids"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_anything_is_sent(case):
    arguments, words = REFUSED[case]
    fake = Fake()
    with client_of(fake) as client, pytest.raises(BadInput, match=words):
        client.infer(*arguments)
    assert fake.asked == ["config"]


@pytest.mark.parametrize("case", REFUSED_OUTPUTS)
def test_outputs_that_cannot_be_asked_for(case):
    names, words = REFUSED_OUTPUTS[case]
    fake = Fake()
    with client_of(fake) as client, pytest.raises(BadInput, match=words):
        client.infer(X, outputs=names)
    assert fake.asked == ["config"]


@pytest.mark.parametrize("case", REFUSED_LENGTHS)
def test_lengths_that_do_not_fit(case):
    lengths, words = REFUSED_LENGTHS[case]
    fake = Fake(PADDED)
    with client_of(fake) as client, pytest.raises(BadInput, match=words):
        client.infer(X, lengths=lengths)
    assert fake.asked == ["config"]


@pytest.mark.parametrize("case", REFUSED_IDS)
def test_ids_that_do_not_fit(case):
    ids, words = REFUSED_IDS[case]
    fake = Fake(TOKENS)
    with client_of(fake) as client, pytest.raises(BadInput, match=words):
        client.infer(ids)
    assert fake.asked == ["config"]


def test_lengths_for_a_model_without_them():
    fake = Fake()
    with client_of(fake) as client, pytest.raises(BadInput, match="needs .*lengths = true"):
        client.infer(X, lengths=[4, 2, 1])
    assert fake.asked == ["config"]


def test_states_of_unequal_layers():
    """A projected LSTM below a GRU: h and c are rows of different size, checked each for itself."""
    flat = {s: np.zeros((B, 1, size), np.float32) for s, size in (("h", 9), ("c", 6))}
    fake = Fake(config(h=(1, 9), c=(1, 6), width=11))
    with client_of(fake) as client:
        result = client.infer(X, flat["h"], flat["c"])
        assert result.output.shape == (B, T, 11)
        assert (result.h_n.shape, result.c_n.shape) == ((B, 1, 9), (B, 1, 6))
        with pytest.raises(BadInput, match=r"h_0 is \[3, 1, 6\].*\[3, 1, 9\]"):
            client.infer(X, flat["c"])
        with pytest.raises(BadInput, match=r"c_0 is \[3, 1, 9\].*\[3, 1, 6\]"):
            client.infer(X, flat["h"], flat["h"])
        with pytest.raises(BadInput, match=r"c_0 is \[3, 6\].*\[:, np\.newaxis\]"):
            client.infer(X, c_0=flat["c"][:, 0])


def test_c_for_a_cell_without_c():
    with client_of(Fake(config(c=None))) as client:
        with pytest.raises(BadInput, match="no cell state; leave c_0 out"):
            client.infer(X, c_0=STATE)
        with pytest.raises(BadInput, match=r"no output 'c_n'.*'h_n'"):
            client.infer(X, outputs=["c_n"])


def test_limits_are_inclusive():
    with client_of(Fake()) as client:
        assert client.infer(np.zeros((8, 16, I), np.float32)).output.shape == (8, 16, D * H)
        assert client.infer(np.zeros((1, 1, I), np.float32)).output.shape == (1, 1, D * H)


def test_limits_of_lengths_and_ids_are_inclusive():
    fake = Fake(TOKENS)
    with client_of(fake) as client:
        client.infer([[0, 10, 0, 10]], lengths=[0])
        client.infer([[0, 10, 0, 10]], lengths=[4])
    np.testing.assert_array_equal(fake.inputs["lengths"], [[4]])


def test_no_time_limit_named():
    with client_of(Fake(config(time_max=None))) as client:
        assert client.signature.time_max is None
        assert client.infer(np.repeat(X, 50, 1)).output.shape == (B, T * 50, D * H)


# ── the model's configuration ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("strings", [False, True], ids=["http", "grpc"])
def test_signature(strings):
    with client_of(Fake(config(strings=strings))) as client:
        s = client.signature
    state = (STATES, H)
    assert s == looprnn_client.Signature(
        model="bilstm",
        takes={"input": (-1, I), "h_0": state, "c_0": state},
        gives={"output": (-1, D * H), "h_n": state, "c_n": state},
        vocabulary=None, batch_max=8, time_max=16, engine=None,
    )  # fmt: skip
    assert (s.inputs, s.has_cell, s.outputs) == (I, True, ("output", "h_n", "c_n"))
    assert hash(s) != hash(replace(s, batch_max=9))


@pytest.mark.parametrize("strings", [False, True], ids=["http", "grpc"])
def test_signature_of_ids_and_heads(strings):
    model = config(
        h=(1, 9), c=(1, 6), width=11, reverse=11, head=[-1, 4], lengths=[1], vocabulary="13",
        strings=strings,
    )  # fmt: skip
    with client_of(Fake(model)) as client:
        s = client.signature
    assert (s.inputs, s.vocabulary) == (None, 13)
    assert s.outputs == ("output", "output_reverse", "h_n", "c_n", "head")
    shapes = {name: s.shape(name, 2, 3) for name in (*s.takes, *s.gives)}
    assert shapes == {
        "input": (2, 3), "lengths": (2,), "h_0": (2, 1, 9), "c_0": (2, 1, 6),
        "output": (2, 3, 11), "output_reverse": (2, 3, 11), "h_n": (2, 1, 9), "c_n": (2, 1, 6),
        "head": (2, 3, 4),
    }  # fmt: skip


def test_arrays_of_a_later_looprnn_are_left_alone():
    later = config()
    later["input"].append({"name": "mask", "data_type": "TYPE_BOOL", "dims": [-1]})
    later["output"].append({"name": "attention", "data_type": "TYPE_FP16", "dims": [-1, -1]})
    fake = Fake(later)
    with client_of(fake) as client:
        client.infer(X)
    assert fake.outputs == ("output", "h_n", "c_n")


def without(config, side, name):
    return config | {side: [row for row in config[side] if row["name"] != name]}


STRANGE = {
    "no_tensors": {"input": [], "output": []},
    "other_names": {
        "input": [{"name": "INPUT0", "data_type": "TYPE_FP32", "dims": [4]}],
        "output": [],
    },
    "fp16": config(dtype="TYPE_FP16"),
    "int32_states": config(dtype="TYPE_INT32", vocabulary="11"),
    "no_width": config(width=0),
    "any_width": config(width=-1),
    "no_batch": config(batch=0),
    "time": config(time_max="long"),
    "ids_of_no_vocabulary": without(config(), "input", "input")
    | {"input": [TOKENS["input"][0], *config()["input"][1:]]},
    "vocabulary_of_none": config(vocabulary="0"),
    "lengths_by_step": config(lengths=[-1]),
    "two_lengths": config(lengths=[2]),
    "c_0_without_c_n": without(config(), "output", "c_n"),
    "c_n_without_c_0": without(config(), "input", "c_0"),
    "no_h_n": without(config(), "output", "h_n"),
    "no_output": without(config(head=[3]), "output", "output"),
    "h_0_unlike_h_n": config() | {"input": config(h=(1, 9))["input"]},
    "head_of_rank_three": config(head=[-1, 2, 3]),
    "head_of_every_size": config(head=[-1]),
    "list": ["not", "a", "config"],
}


@pytest.mark.parametrize("strange", STRANGE)
def test_model_of_another_kind(strange):
    with (
        client_of(Fake(STRANGE[strange])) as client,
        pytest.raises(ServerError, match="'bilstm' is not a model that looprnn made") as refused,
    ):
        client.infer(X)
    assert refused.value.__cause__ is not None


def test_config_is_read_once():
    fake = Fake()
    with client_of(fake) as client:
        assert fake.asked == []
        client.infer(X)
        client.infer(X)
    assert fake.asked == ["config", "infer", "infer"]


def test_threads_read_config_once():
    fake = Fake()
    slow = fake.config
    fake.config = lambda *a: (time.sleep(0.05), slow(*a))[1]
    with client_of(fake) as client:
        in_threads(8, lambda: client.infer(X))
    assert fake.asked.count("config") == 1


def test_config_goes_stale():
    fake = Fake()
    with client_of(fake) as client:
        with pytest.raises(BadInput, match="9"):
            client.infer(np.repeat(X, 3, 0))
        fake.model = config(batch=16)
        assert client.infer(np.repeat(X, 3, 0)).output.shape == (9, T, D * H)


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


def test_every_input_goes_under_its_own_name():
    fake = Fake()
    with client_of(fake) as client:
        client.infer(X, STATE, STATE * 2)
        assert set(fake.inputs) == {"input", "h_0", "c_0"}
        np.testing.assert_array_equal(fake.inputs["input"], X)
        np.testing.assert_array_equal(fake.inputs["h_0"], STATE)
        np.testing.assert_array_equal(fake.inputs["c_0"], STATE * 2)
        client.infer(X, c_0=STATE)
        assert set(fake.inputs) == {"input", "c_0"}


@pytest.mark.parametrize(
    "lengths",
    [[4, 0, 1], (4, 0, 1), *(np.array([4, 0, 1], kind) for kind in ("u1", "i8", ">i4", "u8"))],
    ids=["list", "tuple", "uint8", "int64", "big_endian", "uint64"],
)
def test_lengths_go_as_a_column_of_int32(lengths):
    fake = Fake(PADDED)
    with client_of(fake) as client:
        client.infer(X, STATE, lengths=lengths)
    assert set(fake.inputs) == {"input", "lengths", "h_0"}
    sent = fake.inputs["lengths"]
    assert (sent.dtype, sent.dtype.isnative) == (np.int32, True)
    np.testing.assert_array_equal(sent, [[4], [0], [1]])


def test_lengths_left_out_are_not_sent():
    fake = Fake(PADDED)
    with client_of(fake) as client:
        client.infer(X)
    assert set(fake.inputs) == {"input"}


@pytest.mark.parametrize(
    "ids",
    [IDS.tolist(), *(IDS.astype(kind) for kind in ("i1", "i4", "i8", ">i2", "u8"))],
    ids=["list", "int8", "int32", "int64", "big_endian", "uint64"],
)
def test_ids_go_as_int32(ids):
    fake = Fake(TOKENS)
    with client_of(fake) as client:
        result = client.infer(ids, c_0=STATE)
    assert set(fake.inputs) == {"input", "c_0"}
    sent = fake.inputs["input"]
    assert (sent.dtype, sent.dtype.isnative) == (np.int32, True)
    np.testing.assert_array_equal(sent, IDS)
    assert result.output.shape == (B, T, D * H)


@pytest.mark.parametrize(("dims", "shape"), [([-1, 6], (B, T, 6)), ([6], (B, 6))])
def test_head_and_reverse_come_as_they_are(dims, shape):
    fake = Fake(config(reverse=11, head=dims))
    with client_of(fake) as client:
        result = client.infer(X)
        alone = client.infer(X, outputs=["head"])
    assert (result.head.shape, result.output_reverse.shape) == (shape, (B, T, 11))
    np.testing.assert_array_equal(alone.head, fake.answer["head"])
    assert (alone.output, alone.output_reverse, alone.h_n, alone.c_n) == (None, None, None, None)


def test_only_what_was_asked_for_comes():
    fake = Fake()
    with client_of(fake) as client:
        result = client.infer(X, outputs=["h_n", "h_n"])
    assert fake.outputs == ("h_n",)
    assert (result.output, result.c_n) == (None, None)
    np.testing.assert_array_equal(result.h_n, fake.answer["h_n"])


def test_what_the_model_has_not_is_none():
    with client_of(Fake(config(c=None))) as client:
        result = client.infer(X)
    assert (result.c_n, result.output_reverse, result.head) == (None, None, None)


def test_outputs_are_nobody_elses_memory():
    fake = Fake(config(reverse=11, head=[3]))
    with client_of(fake) as client:
        result = client.infer(X)
    assert len(fake.answer) == 5
    for name, wire in fake.answer.items():
        array = getattr(result, name)
        np.testing.assert_array_equal(array, wire)
        assert (array.dtype, array.flags.c_contiguous) == (np.float32, True)
        assert array.flags.writeable and array.flags.owndata
        assert not np.shares_memory(array, wire)


def test_result_is_frozen():
    with client_of(Fake()) as client, pytest.raises(AttributeError):
        client.infer(X).output = None


@pytest.mark.parametrize(
    "wrong",
    [lambda a: None, lambda a: a[:1], lambda a: a.astype(np.float64), lambda a: a.swapaxes(0, 1)],
    ids=["missing", "rows_lost", "float64", "time_first"],
)
@pytest.mark.parametrize("name", ["output", "output_reverse", "h_n", "c_n", "head"])
def test_answer_that_breaks_the_contract(wrong, name):
    fake = Fake(config(reverse=11, head=[6]))
    compute = fake.compute
    fake.compute = lambda n, x: wrong(compute(n, x)) if n == name else compute(n, x)
    with client_of(fake) as client, pytest.raises(ServerError, match=f"'{name}'.*its contract"):
        client.infer(X)


# ── failures ─────────────────────────────────────────────────────────────────────────────────────

READY = [state_of("bilstm", "READY"), state_of("lstm", "READY")]
BROKEN = [state_of("bilstm", "UNAVAILABLE", "Internal: no model.onnx\n\nAt:\n  model.py(17)")]
DEAD = Failure(Code.UNAVAILABLE, "failed to connect")
MAPPED = {
    "refused_by_the_model": (Code.INVALID, "bad input: T is odd", READY, BadInput, ": T is odd"),
    "refused_without_codes": (Code.INTERNAL, "bad input: T is odd", READY, BadInput, ": T is odd"),
    "refused_by_triton": (Code.INVALID, "unexpected shape", READY, BadInput, "unexpected shape"),
    "engine_failed": (Code.INTERNAL, "out of memory", READY, ServerError, "out of memory"),
    "misspelt": (Code.NOT_FOUND, "?", READY[1:], UnknownModel, "'bilstm'.*mean 'lstm'.*has: lstm"),
    "misspelt_as_invalid": (
        Code.INVALID,
        "Request for unknown model",
        READY[1:],
        UnknownModel,
        "lstm",
    ),
    "empty_repository": (Code.NOT_FOUND, "?", [], UnknownModel, "It has none"),
    "failed_to_load": (Code.NOT_FOUND, "?", BROKEN, NotReady, "UNAVAILABLE: .*no model.onnx$"),
    "not_ready": (Code.UNAVAILABLE, "?", BROKEN, NotReady, "version 1 is UNAVAILABLE"),
    "queue_full": (Code.UNAVAILABLE, "queue is full", READY, ServerError, "queue is full"),
    "server_died": (Code.UNAVAILABLE, "failed to connect", DEAD, Unreachable, "Is it running"),
    "no_server": (Code.UNREACHABLE, "refused", DEAD, Unreachable, "refused.*8001 for gRPC"),
    "too_slow": (Code.TIMEOUT, "deadline", READY, Timeout, "within 5 s.*deadline"),
}


@pytest.mark.parametrize("case", MAPPED)
def test_failure_becomes(case):
    code, words, models, kind, match = MAPPED[case]
    failure = Failure(code, words)
    dead = models is DEAD
    fake = Fake(fails=failure, models=() if dead else models, index_fails=DEAD if dead else None)
    with client_of(fake) as client, pytest.raises(kind, match=match) as raised:
        client.infer(X)
    assert type(raised.value) is kind
    assert raised.value.__cause__ is failure
    fake.fails = None
    client_of(fake).infer(X)


def test_failure_makes_the_next_call_read_again():
    fake = Fake(fails=Failure(Code.INTERNAL, "out of memory"))
    with client_of(fake) as client:
        with pytest.raises(ServerError):
            client.infer(X)
        fake.fails = None
        client.infer(X)
    assert fake.asked == ["config", "infer", "config", "infer"]


def test_every_error_is_one_of_ours():
    kinds = [NotReady, UnknownModel, Unreachable, BadInput, ServerError, Timeout]
    assert all(kind.__bases__ == (LoopRNNClientError,) for kind in kinds)
    drawn = looprnn_client.errors.__doc__
    assert all(f" {kind.__name__} " in drawn for kind in kinds)


def test_time_spent_reading_the_model_counts():
    fake = Fake()
    slow = fake.config
    fake.config = lambda *a: (time.sleep(0.2), slow(*a))[1]
    with client_of(fake, timeout_s=0.1) as client, pytest.raises(Timeout):
        client.infer(X)
    assert "infer" not in fake.asked


# ── life and death ───────────────────────────────────────────────────────────────────────────────


def test_used_after_close():
    fake = Fake()
    client = client_of(fake)
    client.close()
    client.close()
    assert fake.closed == 1
    for use in (lambda: client.infer(X), lambda: client.signature, client.__enter__):
        with pytest.raises(LoopRNNClientError, match=r"closed; make a new Client"):
            use()
    assert fake.asked == []


def test_with_closes_after_an_error():
    fake = Fake(fails=Failure(Code.INTERNAL, "?"))
    with pytest.raises(ServerError), client_of(fake) as client:
        client.infer(X)
    assert fake.closed == 1


def test_listing_closes_what_it_opened():
    fake = Fake(index_fails=DEAD)
    with pytest.raises(Unreachable):
        list_models("here:8001", timeout_s=1, transport=fake)
    assert fake.closed == 1


# ── real sockets ─────────────────────────────────────────────────────────────────────────────────


def in_threads(count, call):
    """Runs call in `count` threads at once; raises the first error, or when one hangs."""
    errors = []

    def run():
        try:
            call()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, daemon=True) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if errors:
        raise errors[0]


@contextmanager
def listening(answer):
    """A server whose every connection is handled by answer(socket); yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as server, ExitStack() as connections:

        def serve():
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                connections.enter_context(connection)
                threading.Thread(target=handle, args=(connection,), daemon=True).start()

        def handle(connection):
            try:
                answer(connection)
            except OSError:
                return  # the client went away: that is what the test is about

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join(5)


def silent(connection):
    while connection.recv(4096):
        pass


def trickling(connection):
    for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" + b" " * 99999:
        connection.sendall(bytes([byte]))
        time.sleep(0.02)


def saying(text):
    def answer(connection):
        connection.recv(4096)
        connection.sendall(text)
        connection.shutdown(socket.SHUT_WR)

    return answer


def page(status, body):
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


@pytest.fixture(params=["", "http://"], ids=["grpc", "http"])
def scheme(request):
    return request.param


def test_closed_port(scheme):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with Client(f"{scheme}127.0.0.1:{port}", "lstm", timeout_s=5) as client:
        for _ in range(2):
            start = time.monotonic()
            with pytest.raises(Unreachable, match="no Triton server answers"):
                client.infer(X)
            assert time.monotonic() - start < 5


def test_name_that_does_not_resolve(scheme):
    url = f"{scheme}no-such-host.invalid:8001"
    with Client(url, "lstm", timeout_s=5) as client, pytest.raises((Unreachable, Timeout)):
        client.infer(X)


def test_port_that_drops_every_packet(scheme):
    with ExitStack() as opened:
        server = opened.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(8):  # a full backlog answers no further SYN
            waiting = opened.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(server.getsockname())
        url = f"{scheme}127.0.0.1:{server.getsockname()[1]}"
        client = opened.enter_context(Client(url, "lstm", timeout_s=0.5))
        assert_times_out(client, 0.5)


@pytest.mark.parametrize("answer", [silent, trickling])
def test_server_that_never_finishes(scheme, answer):
    with (
        listening(answer) as port,
        Client(f"{scheme}127.0.0.1:{port}", "lstm", timeout_s=0.5) as client,
    ):
        if scheme == "" and answer is trickling:
            with pytest.raises(Unreachable):  # gRPC sees at once that this is no HTTP/2
                client.infer(X)
        else:
            assert_times_out(client, 0.5)


def assert_times_out(client, seconds):
    start = time.monotonic()
    with pytest.raises(Timeout, match=f"within {seconds:g} s") as raised:
        client.infer(X)
    assert "worker" not in str(raised.value), "the call was abandoned, not ended"
    assert seconds * 0.9 < time.monotonic() - start < seconds + 1.5


@pytest.mark.parametrize(
    "text",
    [
        b"220 mail.example ESMTP\r\n",
        b"",
        page("200 OK", "<html>hello</html>"),
        page("404 Not Found", "<html>nginx</html>"),
        page("404 Not Found", ""),
        page("502 Bad Gateway", "[]"),
    ],
    ids=["mail", "hangs_up", "page", "page_not_found", "empty_not_found", "gateway"],
)
def test_something_else_listens_there(scheme, text):
    with (
        listening(saying(text)) as port,
        Client(f"{scheme}127.0.0.1:{port}", "lstm", timeout_s=5) as client,
        pytest.raises(Unreachable, match="no Triton server answers"),
    ):
        client.infer(X)


def test_json_that_is_not_tritons():
    with (
        listening(saying(page("200 OK", "[1, 2]"))) as port,
        pytest.raises(Unreachable, match="not Triton's"),
    ):
        list_models(f"http://127.0.0.1:{port}", timeout_s=5)


def test_closed_by_another_thread_during_a_call(scheme):
    with listening(silent) as port:
        client = Client(f"{scheme}127.0.0.1:{port}", "lstm", timeout_s=30)
        threading.Timer(0.3, client.close).start()
        start = time.monotonic()
        with pytest.raises(LoopRNNClientError, match="closed"):
            client.infer(X)
        assert time.monotonic() - start < 10


class Index(http.server.BaseHTTPRequestHandler):
    """Triton's HTTP, as much of it as its repository index."""

    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.answer(READY)

    def answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def http_server(handler):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = False  # closing waits for the connections, and closes them
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_http_transport_is_shared_by_threads():
    with http_server(Index) as port:
        transport = connect(f"http://127.0.0.1:{port}")

        def call():
            for _ in range(10):
                assert transport.index(10) == READY

        in_threads(8, call)
        transport.close()


class Grpc(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Triton's gRPC, as much of it as one answer; keeps the request's (type, shape, bytes)."""

    def ModelInfer(self, request, context):
        self.got = {
            tensor.name: (tensor.datatype, list(tensor.shape), raw)
            for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        row = {"name": "head", "datatype": "FP32", "shape": [1, 2]}
        raw = np.array([3, 4], np.float32).tobytes()
        return service_pb2.ModelInferResponse(outputs=[row], raw_output_contents=[raw])


@contextmanager
def grpc_triton():
    triton = Grpc()
    server = grpc.server(ThreadPoolExecutor(1))
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", triton
    finally:
        server.stop(None).wait()


@contextmanager
def http_triton():
    class Http(Index):
        """Triton's HTTP, as much of it as one answer."""

        def do_POST(self):
            head = int(self.headers["Inference-Header-Content-Length"])
            rows = json.loads(self.rfile.read(head))["inputs"]
            Http.got = {
                row["name"]: (
                    row["datatype"],
                    row["shape"],
                    self.rfile.read(row["parameters"]["binary_data_size"]),
                )
                for row in rows
            }
            row = {"name": "head", "datatype": "FP32", "shape": [1, 2], "data": [3, 4]}
            self.answer({"outputs": [row]})

    with http_server(Http) as port:
        yield f"http://127.0.0.1:{port}", Http


@pytest.mark.parametrize("triton", [grpc_triton, http_triton])
def test_every_type_goes_over_the_wire(triton):
    inputs = {
        "input": np.asfortranarray(IDS.astype(np.int32)),
        "lengths": np.array([[4], [0], [1]], np.int32),
        "h_0": STATE,
    }
    with triton() as (url, heard), closing(connect(url)) as transport:
        answer = transport.infer("tokens", inputs, ["head"], 10)
    np.testing.assert_array_equal(answer["head"], np.array([[3, 4]], np.float32))
    assert heard.got == {
        "input": ("INT32", [3, 4], IDS.astype("<i4").tobytes()),
        "lengths": ("INT32", [3, 1], np.array([4, 0, 1], "<i4").tobytes()),
        "h_0": ("FP32", [3, 4, 5], STATE.astype("<f4").tobytes()),
    }


def test_transport_closed_between_two_calls(scheme):
    transport = connect(f"{scheme}127.0.0.1:1")
    transport.close()
    transport.close()
    with pytest.raises(Failure, match="closed"):
        transport.index(1)


def workers():
    return [thread for thread in threading.enumerate() if thread.name == "looprnn-client"]


def test_forgotten_http_client_ends_its_thread():
    before = workers()
    client = Client("http://127.0.0.1:1", "lstm", timeout_s=1)
    (worker,) = set(workers()) - set(before)
    del client
    worker.join(5)
    assert not worker.is_alive()


# ── the command ──────────────────────────────────────────────────────────────────────────────────


def command(*words):
    return [str(word) for word in words]


def infer_command(folder, **changes):
    np.save(folder / "x.npy", X)
    options = {
        "url": "http://127.0.0.1:1",
        "model": "lstm",
        "input": folder / "x.npy",
        "output": folder / "y.npz",
        **changes,
    }
    return command("infer", *(w for key, value in options.items() for w in (f"--{key}", value)))


@pytest.fixture
def pretend(monkeypatch):
    """Every connection is to one fake."""
    fake = Fake(models=[*READY, *BROKEN, state_of("old", "")])
    monkeypatch.setattr("looprnn_client.client.connect", lambda url: fake)
    return fake


def test_command_writes_the_answer(pretend, tmp_path, capsys):
    np.save(tmp_path / "h0.npy", STATE)
    np.save(tmp_path / "c0.npy", STATE * 2)
    states = {"h0": tmp_path / "h0.npy", "c0": tmp_path / "c0.npy"}
    assert main(infer_command(tmp_path, **states)) == 0
    np.testing.assert_array_equal(pretend.inputs["input"], X)
    np.testing.assert_array_equal(pretend.inputs["h_0"], STATE)
    np.testing.assert_array_equal(pretend.inputs["c_0"], STATE * 2)
    with np.load(tmp_path / "y.npz") as written:
        assert set(written) == {"output", "h_n", "c_n"}
        for name in written:
            np.testing.assert_array_equal(written[name], pretend.answer[name])
    assert capsys.readouterr().out.splitlines() == [
        "output [3, 4, 10] float32", "h_n [3, 4, 5] float32", "c_n [3, 4, 5] float32",
    ]  # fmt: skip
    assert not list(tmp_path.glob(".*")), "the part file stays"


def test_command_with_ids_lengths_and_a_head(pretend, tmp_path, capsys):
    pretend.model = TOKENS
    np.save(tmp_path / "ids.npy", IDS)
    np.save(tmp_path / "l.npy", np.array([4, 0, 1]))
    files = {"input": tmp_path / "ids.npy", "lengths": tmp_path / "l.npy"}
    assert main(infer_command(tmp_path, **files)) == 0
    np.testing.assert_array_equal(pretend.inputs["input"], IDS)
    np.testing.assert_array_equal(pretend.inputs["lengths"], [[4], [0], [1]])
    with np.load(tmp_path / "y.npz") as written:
        assert set(written) == {"output", "h_n", "c_n", "head"}
        np.testing.assert_array_equal(written["head"], pretend.answer["head"])
    assert capsys.readouterr().out.splitlines()[-1] == "head [3, 4, 4] float32"


def test_command_keeps_the_old_answer_when_writing_fails(pretend, tmp_path, capsys, monkeypatch):
    (tmp_path / "y.npz").write_bytes(b"old")

    def full(file, **arrays):
        file.write(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(np, "savez", full)
    assert main(infer_command(tmp_path)) == 1
    assert (tmp_path / "y.npz").read_bytes() == b"old"
    assert not list(tmp_path.glob(".*")), "half a file stays"
    assert "No space left" in capsys.readouterr().err


def save_pickle(path):
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "No such file"),
        (lambda path: path.write_bytes(b""), "not a .npy file"),
        (lambda path: path.write_bytes(b"rubbish"), "not a .npy file"),
        (save_pickle, "not a .npy file"),
        (lambda path: np.savez(path.open("wb"), X), "several arrays"),
        (lambda path: np.save(path, X.astype(np.float64)), "astype"),
    ],
    ids=["missing", "empty", "rubbish", "pickle", "npz", "float64"],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_command_with_a_bad_file(pretend, tmp_path, capsys, make, words):
    make(tmp_path / "bad.npy")
    assert main(infer_command(tmp_path, input=tmp_path / "bad.npy")) == 1
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said
    assert not (tmp_path / "y.npz").exists()
    assert "infer" not in pretend.asked


def test_command_into_no_directory(pretend, tmp_path, capsys):
    assert main(infer_command(tmp_path, output=tmp_path / "none" / "y.npz")) == 1
    assert "no such directory" in capsys.readouterr().err
    assert pretend.asked == []


def test_command_lists_models(pretend, capsys):
    assert main(command("models", "--url", "here:8001")) == 0
    assert capsys.readouterr().out.splitlines() == [
        "bilstm  1  READY",
        "bilstm  1  UNAVAILABLE  Internal: no model.onnx",
        "lstm    1  READY",
        "old     1  -",
    ]


def test_command_without_a_server(tmp_path, capsys):
    assert main(infer_command(tmp_path)) == 1
    assert main(command("models", "--url", "http://127.0.0.1:1")) == 1
    said = capsys.readouterr().err
    assert said.count("looprnn-client: no Triton server answers") == 2


@pytest.mark.parametrize(
    "words", [[], ["infer"], ["models"], ["models", "--url", "a:1", "--timeout", "soon"], ["fly"]]
)
def test_command_used_wrongly(words, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "usage:" in capsys.readouterr().err
