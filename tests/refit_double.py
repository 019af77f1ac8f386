"""TensorRT's runtime and refitter, doubled: no plan can be refitted without a GPU. A plan is the
network's constants by name; what it answers is computed from TensorRT's own network with those
constants in it.
"""

import io
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
from conftest import needs
from interpreter import run as interpret

from looprnn import build, refit
from looprnn.engines.tensorrt import TensorRT
from looprnn.network import define
from looprnn.spec import Head, Layer, Profile, Range, RNNSpec, WeightSource
from looprnn.variants import dump_spec
from looprnn.weights import load_weights

trt = needs("tensorrt_rtx", "pip install 'looprnn[rtx]'")
BUILDER = trt.Builder(trt.Logger(trt.Logger.ERROR))
SPEC = RNNSpec(
    name="small",
    input_size=3,
    layers=(Layer(cell="lstm", hidden_size=4, peepholes=True),
            Layer(cell="gru", hidden_size=5, direction="bidirectional")),
    head=Head(size=2),
    lengths=True,
    refit=True,
    weights=WeightSource(seed=1),
    profile=Profile(batch=Range(1, 2, 4), time=Range(1, 3, 8)),
)  # fmt: skip
NEW = {
    name: 2 * array
    for name, array in load_weights(replace(SPEC, weights=WeightSource(seed=9))).items()
}


class Double:
    """tensorrt_rtx with a runtime that needs no GPU. A plan is an .npz of constants by name."""

    ILogger, SerializationFlag, Weights = trt.ILogger, trt.SerializationFlag, trt.Weights
    Builder, NetworkDefinitionCreationFlag = trt.Builder, trt.NetworkDefinitionCreationFlag
    refittable = True
    hidden: tuple[str, ...] = ()
    extra: tuple[str, ...] = ()
    refuses = ""

    def __init__(self):
        self.flags = set()

    def __getattr__(self, name):
        return getattr(trt, name)

    # trt.Runtime(logger) and ICudaEngine
    def Runtime(self, logger):
        return self

    def deserialize_cuda_engine(self, plan):
        if not plan.startswith(b"PK"):
            return None
        self.held = dict(np.load(io.BytesIO(plan)))
        return self

    def create_serialization_config(self):
        self.flags = {self.SerializationFlag.EXCLUDE_WEIGHTS}
        return self

    def clear_flag(self, flag):
        self.flags.discard(flag)

    def set_flag(self, flag):
        self.flags.add(flag)

    def serialize_with_config(self, config):
        assert self.flags == {self.SerializationFlag.INCLUDE_REFIT}
        return None if self.refuses == "serialize" else plan_of(self.held)

    # trt.Refitter(engine, logger)
    def Refitter(self, engine, logger):
        self.given = {}
        return self

    def get_all_weights(self):
        floats = [n for n, a in self.held.items() if a.dtype.kind == "f" and n not in self.hidden]
        return [*floats, *self.extra]

    def set_named_weights(self, name, weights):
        """As TensorRT: of the same count and type."""
        held, array = self.held[name], np.array(weights.numpy())
        if array.size != held.size or array.dtype != held.dtype or self.refuses == name:
            return False
        self.given[name] = array.reshape(held.shape)
        return True

    def get_missing_weights(self):
        return ["unnamed"] if self.refuses == "missing" else []

    def refit_cuda_engine(self):
        self.held |= self.given
        return self.refuses != "refit"


def plan_of(constants):
    file = io.BytesIO()
    np.savez(file, **constants)
    return file.getvalue()


def answer(spec, constants, inputs):
    """The network of the spec, with these constants in it, run on the CPU."""
    flag = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = BUILDER.create_network(flag)
    for name, array in (kept := define(trt, network, spec, load_weights(spec))):
        array[...] = constants[name]
    found = interpret(trt, network, inputs)
    del kept
    return found


def a_repository(folder, monkeypatch):
    """A repository with version 1 of SPEC; a host with a GPU, so far as plans are concerned."""

    def build_plan(self, spec, weights, path, *, progress, workspace):
        path.write_bytes(plan_of(refit.constants(trt, spec, weights)))
        return {
            "gpu": None,
            "capabilities": ["8.6"],
            "precision": spec.precision,
            "made_of": "Loop",
        }

    def session(self, path, spec, device=0):
        held = dict(np.load(path))
        return nullcontext(SimpleNamespace(run=lambda inputs: answer(spec, held, inputs)))

    made = Double()
    monkeypatch.setattr(TensorRT, "build", build_plan)
    monkeypatch.setattr(TensorRT, "session", session)
    monkeypatch.setattr(TensorRT, "cannot_run", lambda *_: None)
    monkeypatch.setattr(TensorRT, "libraries", lambda self: {self.name: trt.__version__})
    original = TensorRT.__init__

    def init(self, name):
        original(self, name)
        self.trt = made

    monkeypatch.setattr(TensorRT, "__init__", init)
    first_build(folder)
    return SimpleNamespace(folder=folder / "models", double=made, path=folder / "models/small")


def first_build(folder, spec=SPEC, names=("onnxruntime", "tensorrt_rtx")):
    (folder / "variants").mkdir(exist_ok=True)
    (folder / "variants/small.toml").write_text(dump_spec(spec))
    wanted, _ = build.buildable(names)
    outcomes = build.build_variant(spec, wanted, folder / "models", progress=lambda *_: None)
    assert [o.message for o in outcomes if o.status != "built"] == []


def files(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc"}
