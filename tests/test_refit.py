"""refit: a plan with new weights answers as a build with them would, or there is no new version.

No plan can be refitted without a GPU: TensorRT's runtime and refitter are doubles here, whose plan
is the network's constants by name. What such a plan answers is computed from TensorRT's own network
with those constants in it.
"""

import argparse
import io
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from cases import CASES
from conftest import cannot_run_here, needs
from interpreter import run as interpret
from rich.console import Console

from looprnn import build, engines, parity, refit, repository
from looprnn.card import Cards
from looprnn.engines.tensorrt import RTX_CAPABILITIES, TensorRT, no_gpu, refittable_capability
from looprnn.engines.tensorrt_refit import Plan
from looprnn.errors import (
    EngineError,
    EngineMismatch,
    EngineMissing,
    ParityError,
    SpecError,
    WeightsError,
)
from looprnn.network import define
from looprnn.spec import Head, Layer, Profile, Range, RNNSpec, WeightSource
from looprnn.variants import dump_spec
from looprnn.weights import load_weights, save_weights

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


def test_the_double_has_no_method_that_tensorrt_lacks():
    real = {*dir(trt), *dir(trt.Runtime), *dir(trt.ICudaEngine), *dir(trt.Refitter)}
    real |= {*dir(trt.ISerializationConfig), "hidden", "extra", "refuses"}
    assert {name for name in vars(Double) if not name.startswith("_")} - real == set()


def answer(spec, constants, inputs):
    """The network of the spec, with these constants in it, run on the CPU."""
    flag = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = BUILDER.create_network(flag)
    for name, array in (kept := define(trt, network, spec, load_weights(spec))):
        array[...] = constants[name]
    found = interpret(trt, network, inputs)
    del kept
    return found


@pytest.fixture
def models(tmp_path, monkeypatch):
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
    first_build(tmp_path)
    return SimpleNamespace(folder=tmp_path / "models", double=made, path=tmp_path / "models/small")


def first_build(tmp_path, spec=SPEC, names=("onnxruntime", "tensorrt_rtx")):
    (tmp_path / "variants").mkdir(exist_ok=True)
    (tmp_path / "variants/small.toml").write_text(dump_spec(spec))
    wanted, _ = build.buildable(names)
    outcomes = build.build_variant(spec, wanted, tmp_path / "models", progress=lambda *_: None)
    assert [o.message for o in outcomes if o.status != "built"] == []


def renew(models, spec=SPEC, arrays=NEW):
    return refit.refit(spec, arrays, models.folder, progress=lambda *_: None)


def files(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc"}


def test_the_next_version_is_whole_proved_and_answers_with_the_new_weights(models):
    before = files(models.path / "1")
    version, cards = renew(models)
    assert (version, set(cards)) == (2, {"onnxruntime", "tensorrt_rtx"})
    assert files(models.path / "1") == before, "a served version was written to"
    inputs = parity.draw_inputs(SPEC, 3, 5, seed=4)
    for name, card in Cards.read(models.path / "2").engines.items():
        path = card.check_file(models.path / "2")
        with engines.get(name).session(path, SPEC) as session:
            found = parity.differences(SPEC, NEW, inputs, session.run(inputs))
        assert all(parity.agrees(value) for value in found.values()), name
        assert card == cards[name]
        assert 0 < card.worst < 1e-5
        assert card.weights_digest == build.weights.digest(NEW)
        assert card.built >= Cards.read(models.path / "1").engines[name].built


def test_a_second_refit_and_the_same_weights_again(models):
    renew(models)
    assert renew(models)[1] == {}, "it has these weights already"
    old = load_weights(SPEC)
    assert renew(models, arrays=old)[0] == 3
    plan = dict(np.load(models.path / "3/model.rtx.plan"))
    wanted = refit.constants(trt, SPEC, old)
    assert all(np.array_equal(plan[n], a) for n, a in wanted.items())
    assert repository.built_versions(models.path) == [2, 3], "the build's rule: one old version"


@pytest.mark.parametrize("precision", parity.TOLERANCE)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_the_constants_that_depend_on_weights_carry_them_all(case, precision):
    """Old constants with the essential ones exchanged are the new network's, to the last bit."""
    spec = replace(case.spec, precision=precision)
    new = {name: (3 * array + 0.1).astype(np.float32) for name, array in case.weights.items()}
    old, wanted = (refit.constants(trt, spec, w) for w in (case.weights, new))
    essential = refit.essential(trt, spec)
    refitted = {n: wanted[n] if n in essential else a for n, a in old.items()}
    assert refitted.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(refitted[name], array, name)
    assert all(old[name].dtype.kind == "f" for name in essential)
    assert all(not np.array_equal(old[name], wanted[name]) for name in essential)


def refused(models, error, words):
    before = files(models.folder)
    with pytest.raises(error, match=words):
        renew(models)
    assert files(models.folder) == before, "something is left of what failed"


@pytest.mark.parametrize("name", ["l0/forward/b", "l1/reverse/d", "head/y_w_weight"])
def test_a_bias_that_tensorrt_dropped_is_noticed(models, name):
    models.double.hidden = (name,)
    refused(models, EngineError, f"does not offer {name} for a refit: they would keep their old")


@pytest.mark.parametrize(
    ("attribute", "value", "words"),
    [
        ("extra", ("other",), "TensorRT wants unknown weights other"),
        ("refuses", "l0/forward/b", "TensorRT refused the weights l0/forward/b"),
        ("refuses", "missing", "TensorRT still wants unnamed"),
        ("refuses", "refit", "TensorRT refused the refit"),
        ("refuses", "serialize", "TensorRT wrote no plan"),
        ("refittable", False, "was built without refit = true"),
    ],
    ids=["unknown", "weights", "missing", "refit", "serialize", "not_refittable"],
)
def test_what_tensorrt_refuses_leaves_no_version(models, attribute, value, words):
    setattr(models.double, attribute, value)
    refused(models, EngineError, words)


def test_a_refit_that_does_not_reach_the_plan_is_found_by_the_reference(models, monkeypatch):
    monkeypatch.setattr(Double, "refit_cuda_engine", lambda self: True)
    refused(models, ParityError, "tensorrt_rtx differs from the reference by")


def test_swapped_names_are_found_by_the_reference(models, monkeypatch):
    right = refit.constants

    def swapped(module, spec, arrays):
        found = right(module, spec, arrays)
        a, b = "l1/forward/d", "l1/reverse/d"
        return {**found, a: found[b], b: found[a]}

    monkeypatch.setattr(refit, "constants", swapped)
    refused(models, ParityError, "tensorrt_rtx differs from the reference by")


def test_a_damaged_plan_and_one_of_another_file(models):
    path = models.path / "1/model.rtx.plan"
    path.write_bytes(b"other")
    refused(models, EngineMismatch, "5 bytes with SHA-256")
    with pytest.raises(EngineMismatch, match="TensorRT cannot load this plan"):
        Plan(models.double, path)


def test_a_plan_of_another_looprnn_is_refused(models):
    cards = Cards.read(models.path / "1")
    older = {n: replace(c, looprnn="0.0 abc") for n, c in cards.engines.items()}
    replace(cards, engines=older).write(models.path / "1")
    refused(models, EngineMismatch, "was built by looprnn 0.0 abc, this is .*may have changed")


def test_another_spec_is_refused(models):
    before = files(models.folder)
    with pytest.raises(EngineMismatch, match="was built from another spec.*--variant small"):
        renew(models, spec=replace(SPEC, h_0=0.5))
    with pytest.raises(SpecError, match="refit is not set. Write refit = true into small.toml"):
        renew(models, spec=replace(SPEC, refit=False))
    assert files(models.folder) == before


def test_a_host_without_a_gpu_says_so(models, monkeypatch):
    monkeypatch.setattr(TensorRT, "cannot_run", lambda *_: "no GPU, says the test")
    refused(models, EngineError, "tensorrt_rtx cannot be refitted here: no GPU, says the test")


def test_a_version_without_a_plan_has_nothing_to_refit(tmp_path):
    first_build(tmp_path, names=["onnxruntime"])
    with pytest.raises(EngineMissing, match="no TensorRT plan, only onnxruntime: there is nothing"):
        refit.refit(SPEC, NEW, tmp_path / "models", progress=lambda *_: None)
    with pytest.raises(EngineMissing, match="nothing was built"):
        refit.refit(SPEC, NEW, tmp_path / "none", progress=lambda *_: None)
    assert not (tmp_path / "none").exists()


# The command


@pytest.fixture
def say(tmp_path):
    def ask(*words):
        parser = argparse.ArgumentParser()
        refit.add_arguments(parser)
        options = parser.parse_args([str(w) for w in words])
        options.variants, options.repository = tmp_path / "variants", tmp_path / "models"
        options.verbose = False
        out = io.StringIO()
        assert refit.run(options, Console(file=out, width=80)) == 0
        return out.getvalue()

    return ask


def test_the_command_says_what_came_of_it_and_that_a_build_would_go_back(models, say, tmp_path):
    save_weights(tmp_path / "new.safetensors", NEW)
    text = say("small", "--weights", tmp_path / "new.safetensors")
    assert "small/2" in text and "refitted" in text and "rebuilt" in text
    assert 'write there: [weights] file = "new.safetensors"' in text
    assert "small/2 has these weights already" in say(
        "small", "--weights", tmp_path / "new.safetensors"
    )
    own = replace(SPEC, weights=WeightSource(file=tmp_path / "variants/own.safetensors"))
    (tmp_path / "variants/small.toml").write_text(dump_spec(own))
    save_weights(tmp_path / "variants/own.safetensors", load_weights(SPEC))
    assert "go" not in say("small", "--weights", tmp_path / "variants/own.safetensors")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda w: {**w, "bias_hh_l0": w["bias_hh_l0"][:-1]},
            r"bias_hh_l0 is \[15\].*needs \[16\]",
        ),
        (lambda w: {n: a for n, a in w.items() if n != "head.bias"}, "small needs head.bias"),
        (lambda w: {**w, "more": w["head.bias"]}, "more not used by small"),
        (lambda w: {**w, "head.bias": w["head.bias"] * np.nan}, "head.bias holds NaN"),
    ],
    ids=["misshapen", "missing", "left_over", "nan"],
)
def test_weights_that_do_not_fit_are_named_before_anything_is_done(
    say, tmp_path, change, words, models
):
    save_weights(tmp_path / "new.safetensors", {n: np.array(a) for n, a in change(NEW).items()})
    before = files(models.folder)
    with pytest.raises(WeightsError, match=words):
        say("small", "--weights", tmp_path / "new.safetensors")
    assert files(models.folder) == before


def test_weights_in_another_format_say_what_to_type(say, models):
    with pytest.raises(WeightsError, match="looprnn import new.pt --name OTHER"):
        say("small", "--weights", "new.pt")


# The build of a refittable plan


class Spy:
    """A TensorRT whose builder keeps its configuration and builds nothing."""

    def __getattr__(self, name):
        return getattr(trt, name)

    def Builder(self, logger):
        real = trt.Builder(logger)

        def build_serialized_network(network, config):
            self.refit = config.get_flag(trt.BuilderFlag.REFIT)
            self.capabilities = [
                config.get_compute_capability(k) for k in range(config.num_compute_capabilities)
            ]
            return b"plan"

        return SimpleNamespace(
            create_network=real.create_network,
            create_builder_config=real.create_builder_config,
            create_optimization_profile=real.create_optimization_profile,
            build_serialized_network=build_serialized_network,
        )


def build_with(spy, spec, tmp_path):
    engine = TensorRT("tensorrt_rtx")
    engine.trt = spy
    return engine.build(
        spec, load_weights(spec), tmp_path / "p", progress=lambda *_: None, workspace=1 << 28
    )


def test_a_refittable_plan_is_for_this_hosts_gpu_alone(tmp_path, monkeypatch):
    spy = Spy()
    assert build_with(spy, replace(SPEC, refit=False), tmp_path)["capabilities"] == [
        *RTX_CAPABILITIES
    ]
    assert (spy.refit, len(spy.capabilities)) == (False, len(RTX_CAPABILITIES))
    monkeypatch.setattr("looprnn.engines.tensorrt.no_gpu", lambda device=0: None)
    monkeypatch.setattr("looprnn.cuda.gpu", lambda device=0: SimpleNamespace(capability="8.9"))
    assert build_with(spy, SPEC, tmp_path)["capabilities"] == ["8.9"]
    assert (spy.refit, spy.capabilities) == (True, [trt.ComputeCapability.SM89])


def test_without_its_gpu_a_refittable_plan_is_refused_with_what_to_do(tmp_path, monkeypatch):
    words = "for one compute capability, that of the GPU at hand; {}. Build it on .*remove refit"
    monkeypatch.setattr("looprnn.engines.tensorrt.no_gpu", lambda device=0: "there is none")
    with pytest.raises(EngineError, match=words.format("there is none")):
        build_with(trt, SPEC, tmp_path)
    monkeypatch.setattr("looprnn.engines.tensorrt.no_gpu", lambda device=0: None)
    monkeypatch.setattr("looprnn.cuda.gpu", lambda device=0: SimpleNamespace(capability="9.0"))
    with pytest.raises(EngineError, match=words.format("TensorRT-RTX does not run on .*")):
        build_with(trt, SPEC, tmp_path)


@pytest.mark.skipif(no_gpu() is None, reason="about hosts without a GPU")
def test_tensorrt_rtx_itself_builds_no_refittable_plan_without_a_gpu(tmp_path, monkeypatch):
    # So the refusal above is no caution of ours: with one capability it still asks for the driver.
    monkeypatch.setattr("looprnn.engines.tensorrt.refittable_capability", lambda spec: ("8.6",))
    with pytest.raises(EngineError, match="built no plan.*Myelin"):
        build_with(trt, SPEC, tmp_path)
    assert not (tmp_path / "p").exists()


@pytest.mark.gpu
@pytest.mark.skipif(cannot_run_here("tensorrt_rtx") is not None, reason="needs an RTX GPU")
def test_a_real_plan_takes_new_weights(tmp_path):
    first_build(tmp_path)
    version, cards = refit.refit(SPEC, NEW, tmp_path / "models", progress=lambda *_: None)
    assert (version, cards["tensorrt_rtx"].capabilities) == (2, [*refittable_capability(SPEC)])
    assert all(card.worst < 1e-5 for card in cards.values())
