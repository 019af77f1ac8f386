"""The model's configuration as the client reads it: its signature, and models of another kind."""

import time
from dataclasses import replace

import looprnn_client
import numpy as np
import pytest
from client_doubles import STATES, TOKENS, D, Fake, H, I, T, X, client_of, config, in_threads
from looprnn_client import BadInput, ServerError


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
