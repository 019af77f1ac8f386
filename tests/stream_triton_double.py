"""A double of Triton for the stream model alone: chunks meet here as a test wants them, and the
engine is a double whose every number says which steps of which stream it has seen.
"""

import importlib
import json
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
from triton_double import ON_TRITON as BASE
from triton_double import PB_UTILS, SPEC, Request, TritonError, arguments

from looprnn.build import build_variant, buildable
from looprnn.states import HostStates

CAPACITY = 5
START, END = 1, 2
ON_TRITON = (*BASE, "looprnn.stream_metrics", "looprnn.stream_model")


class Error(TritonError):
    UNAVAILABLE = "UNAVAILABLE"


DOUBLE = SimpleNamespace(
    **{**vars(PB_UTILS), "TritonError": Error},
    TRITONSERVER_REQUEST_FLAG_SEQUENCE_START=START,
    TRITONSERVER_REQUEST_FLAG_SEQUENCE_END=END,
)


class Chunk(Request):
    def __init__(self, stream, x, flags=0, wanted=SPEC.output_names, **more):
        inputs = {"input": np.asarray(x, np.float32), **more}
        super().__init__({n: np.asarray(a) for n, a in inputs.items()}, wanted)
        self.stream, self.flag_bits = stream, flags

    def correlation_id(self):
        return self.stream

    def flags(self):
        return self.flag_bits


def step(h, x):
    """Exact in float32, other for every history; the same for h and c but for where they begin."""
    return (31 * h + x + 1) % 1009


class Session:
    """An engine: h and c step by the input's first feature; output is h."""

    def __init__(self):
        self.runs, self.fails = [], False

    def run(self, inputs, wanted=None):
        self.runs.append(inputs["input"].shape[:2])
        if self.fails:
            raise RuntimeError("out of memory")
        x, lengths = inputs["input"][..., :1], inputs["lengths"]
        states = {s: inputs[f"{s}_0"][:, 0].copy() for s in "hc"}
        output = np.zeros((*x.shape[:2], 5), np.float32)
        for t in range(x.shape[1]):
            on = t < lengths
            for s in "hc":
                states[s][on] = step(states[s][on], x[on, t])
            output[on, t] = states["h"][on]
        every = {"output": output, **{f"{s}_n": a[:, np.newaxis] for s, a in states.items()}}
        return {name: every[name] for name in wanted}


@contextmanager
def loading(folder):
    """load() is a stream model of CAPACITY slots, built in the folder; its engine is a double
    unless told otherwise.
    """
    build_variant(SPEC, buildable(["onnxruntime"])[0], folder, progress=lambda *_: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "triton_python_backend_utils", DOUBLE)
        for name in ON_TRITON:
            patch.delitem(sys.modules, name, raising=False)
        module = importlib.import_module("looprnn.stream_model")
        loaded = []

        def load(session=None, **changed):
            found = arguments(folder)
            found["model_name"], found["model_instance_name"] = "lstm_stream", "lstm_stream_0_0"
            found["model_repository"] = str(folder / "lstm_stream")
            config = json.loads(found["model_config"])
            kept = {"stream_capacity": str(CAPACITY), "stream_idle_s": "1000", **changed}
            for key, value in kept.items():
                config["parameters"][key] = {"string_value": value}
            model = module.TritonPythonModel()
            model.initialize({**found, "model_config": json.dumps(config)})
            model._session = session or Session()
            model._states = HostStates(model._session, SPEC, CAPACITY)
            loaded.append(model)
            return model

        yield load
        for model in loaded:
            if hasattr(model, "_runs"):  # not by the test itself
                model.finalize()
    for name in ON_TRITON:
        sys.modules.pop(name, None)


def steps(stream, count, first=0):
    """[1, T, I]: what a stream sends at its steps first, first + 1, …"""
    x = np.zeros((1, count, 7), np.float32)
    x[0, :, 0] = 50 * stream + np.arange(first, first + count)
    return x


def truth(stream, count, h_0=1.0):
    """[T]: h after each step of a stream that begins at h_0; the variant's own is 1."""
    found = []
    for t in range(count):
        h_0 = step(h_0, 50 * stream + t)
        found.append(h_0)
    return np.array(found)


def hidden(answer):
    """[T]: h after each step of the chunk."""
    assert answer.error is None, answer.error.message
    return answer.arrays["output"][0, :, 0]


def state(answer):
    assert answer.error is None, answer.error.message
    return float(answer.arrays["h_n"].flat[0]), float(answer.arrays["c_n"].flat[0])


def export(model, stream, flags=0):
    (answer,) = model.execute(
        [Chunk(stream, steps(0, 1), flags, ["h_n", "c_n"], lengths=np.zeros((1, 1), np.int32))]
    )
    return state(answer)


def refused(answer):
    assert answer.error is not None
    return answer.error.message


# A script is a list of executes, each a list of (stream, steps of its chunk, flags).


def play(model, script):
    """Whether every chunk of the script was answered with its stream's next steps."""
    done = {}
    for together in script:
        requests, wanted = [], []
        for stream, count, flags in together:
            first = 0 if flags & START else done[stream]
            done[stream] = first + count
            requests.append(Chunk(stream, steps(stream, count, first), flags))
            wanted.append(truth(stream, done[stream])[first:])
        for want, answer in zip(wanted, model.execute(requests), strict=True):
            if answer.error or not np.array_equal(hidden(answer), want):
                return False
    return True
