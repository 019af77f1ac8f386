"""Streams on the wire: raw tritonclient, ids, START and END in the test's own hands; and what the
reference answers.
"""

import dataclasses
import re
import shutil
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from conftest import VARIANTS, cannot_run_here
from tritonclient.utils import InferenceServerException

from looprnn import parity, reference
from looprnn.build import build_variant, buildable
from looprnn.spec import Stream
from looprnn.weights import load_weights

SPEC = VARIANTS["lstm_random"]
MODEL = SPEC.models[1]
TIMEOUT_S = 60
STATES = ["h_n", "c_n"]
ENGINES = ["onnxruntime", pytest.param("fused", marks=pytest.mark.gpu)]


def counted(server):
    """What /metrics says of streams."""
    with urllib.request.urlopen(f"http://{server.metrics}/metrics", timeout=TIMEOUT_S) as answer:
        text = answer.read().decode()
    rows = re.findall(r"^looprnn_streams_(\w+)\{([^}]*)\} ([\d.]+)$", text, re.MULTILINE)
    assert all(f'model="{MODEL}"' in labels for _, labels, _ in rows)
    return {name: float(value) for name, _, value in rows}


def tensor(triton, name, array):
    kind = "INT32" if array.dtype == np.int32 else "FP32"
    made = triton.InferInput(name, list(array.shape), kind)
    made.set_data_from_numpy(array)
    return made


class Wire:
    """chunk(stream, x, …) over one protocol; raises InferenceServerException."""

    def __init__(self, protocol, server, model=MODEL):
        self.triton = {"grpc": triton_grpc, "http": triton_http}[protocol]
        self.model = model
        self.client = self.triton.InferenceServerClient(getattr(server, protocol))

    def close(self):
        self.client.close()

    def chunk(self, stream, x, *, start=False, end=False, outputs=SPEC.output_names, **more):
        inputs = {"input": x, **more}
        answer = self.client.infer(
            self.model,
            [tensor(self.triton, name, array) for name, array in inputs.items()],
            sequence_id=stream,
            sequence_start=start,
            sequence_end=end,
            outputs=[self.triton.InferRequestedOutput(name) for name in outputs],
        )
        return {name: answer.as_numpy(name) for name in outputs}

    def export(self, stream, **flags):
        lengths = np.zeros((1, 1), np.int32)
        return self.chunk(stream, drawn(1), lengths=lengths, outputs=STATES, **flags)


def said(wire, *arguments, **options):
    with pytest.raises(InferenceServerException) as caught:
        wire.chunk(*arguments, **options)
    return caught.value.message()


def drawn(time, seed=0):
    """[1, T, I]"""
    return parity.draw_inputs(SPEC, 1, time, seed)["input"]


def whole(x, **states):
    """What the reference answers to the whole sequence."""
    inputs = {**SPEC.defaults(*x.shape[:2]), "input": x, **states}
    return reference.run(SPEC, load_weights(SPEC), inputs)


def assert_agrees(got, want):
    assert parity.agrees(parity.difference(got, want))


def able(request):
    """The engine that a fixture's parameter names; without what it needs a skip says so."""
    reason = cannot_run_here(request.param)
    if reason and request.config.getoption("--require") != request.param:
        pytest.skip(reason)
    return request.param


def streams_only(folder: Path, stream: Stream, engine: str) -> Path:
    """A repository of the stream model alone, with that engine."""
    spec = dataclasses.replace(SPEC, stream=stream)
    build_variant(spec, buildable([engine])[0], folder, progress=lambda *_: None)
    shutil.rmtree(folder / SPEC.name)
    return folder
