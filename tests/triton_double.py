"""A double of Triton's pb_utils, and server models on it: batches are formed here as a test wants
them.
"""

import importlib
import json
import sys
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
from conftest import VARIANTS

from looprnn import parity
from looprnn.build import build_variant, buildable
from looprnn.weights import load_weights

SPEC = VARIANTS["lstm"]
# What imports Triton's pb_utils: each test imports it anew, with the double.
ON_TRITON = ("looprnn.metrics", "looprnn.triton_model")


class Tensor:
    def __init__(self, name, array):
        self._name, self._array = name, array

    def name(self):
        return self._name

    def as_numpy(self):
        return self._array


class Request:
    cancelled = False

    def __init__(self, inputs, wanted=SPEC.output_names):
        self.inputs_, self.wanted = inputs, wanted

    def inputs(self):
        return [Tensor(name, array) for name, array in self.inputs_.items()]

    def requested_output_names(self):
        return set(self.wanted)

    def is_cancelled(self):
        return self.cancelled


class TritonError:
    INVALID_ARG, INTERNAL, CANCELLED = "INVALID_ARG", "INTERNAL", "CANCELLED"

    def __init__(self, message, code):
        self.message, self.code = message, code


class Response:
    def __init__(self, tensors=(), error=None):
        self.error = error
        self.arrays = {t._name: t.as_numpy() for t in tensors}


class MetricFamily:
    """Triton's, as far as it goes: a counter only grows. values: a name and its labels but those
    every metric has, to the value.
    """

    COUNTER, GAUGE = "counter", "gauge"
    values: ClassVar[dict[tuple[str, ...], float]] = {}

    def __init__(self, *, name, description, kind):
        self.name, self.kind = name, kind

    def Metric(self, labels):
        own = [v for k, v in labels.items() if k not in ("model", "version", "instance")]
        assert len(labels) - len(own) == 3
        return Metric(self, (self.name, *own))


class Metric:
    def __init__(self, family, key):
        self.family, self.key = family, key
        family.values[key] = 0

    def increment(self, value):
        assert self.family.kind == MetricFamily.GAUGE or value > 0
        self.family.values[self.key] += value

    def set(self, value):
        assert self.family.kind == MetricFamily.GAUGE
        self.family.values[self.key] = value


PB_UTILS = SimpleNamespace(
    MetricFamily=MetricFamily,
    Tensor=Tensor,
    TritonError=TritonError,
    TritonModelException=RuntimeError,
    InferenceResponse=Response,
    Logger=SimpleNamespace(log_info=lambda message: None),
)


@contextmanager
def serving(folder, monkeypatch):
    """serve(spec) builds it for the CPU and loads it."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", PB_UTILS)
    for name in ON_TRITON:
        monkeypatch.delitem(sys.modules, name, raising=False)
    module = importlib.import_module("looprnn.triton_model")
    module.SHOWN_EVERY_S = 1000.0  # tests show metrics when they want to see them
    MetricFamily.values.clear()
    with ExitStack() as loaded:

        def serve(spec):
            build_variant(spec, buildable(["onnxruntime"])[0], folder, progress=lambda *_: None)
            model = module.TritonPythonModel()
            model.initialize(arguments(folder, spec))
            loaded.callback(model.finalize)
            return model

        yield serve
    for name in ON_TRITON:
        monkeypatch.delitem(sys.modules, name, raising=False)


def arguments(repository, spec=SPEC, engine="auto"):
    return {
        "model_name": spec.name,
        "model_version": "1",
        "model_repository": str(repository / spec.name),
        "model_instance_name": f"{spec.name}_0_0",
        "model_instance_kind": "CPU",
        "model_instance_device_id": "0",
        "model_config": json.dumps({"parameters": {"engine": {"string_value": engine}}}),
    }


def drawn(rows, time, seed, spec=SPEC):
    return parity.draw_inputs(spec, rows, time, seed)


def on_the_wire(inputs):
    """Triton's dims cannot be empty: one length a row is [B, 1]."""
    return {n: a[:, np.newaxis] if n == "lengths" else a for n, a in inputs.items()}


def assert_right(response, inputs, spec=SPEC):
    assert response.error is None
    full = {**spec.defaults(*inputs["input"].shape[:2]), **inputs}
    found = parity.differences(spec, load_weights(spec), full, response.arrays)
    assert all(parity.agrees(value) for value in found.values()), found
