"""refit: a plan with new weights answers as a build with them would, or there is no new version."""

from dataclasses import replace

import numpy as np
import pytest
from cases import CASES
from conftest import cannot_run_here
from refit_double import NEW, SPEC, Double, a_repository, files, first_build, trt

from looprnn import build, engines, parity, refit, repository
from looprnn.card import Cards
from looprnn.engines.tensorrt import TensorRT, refittable_capability
from looprnn.engines.tensorrt_refit import Plan
from looprnn.errors import EngineError, EngineMismatch, EngineMissing, ParityError, SpecError
from looprnn.weights import load_weights


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A repository with version 1 of SPEC; a host with a GPU, so far as plans are concerned."""
    return a_repository(tmp_path, monkeypatch)


def test_the_double_has_no_method_that_tensorrt_lacks():
    real = {*dir(trt), *dir(trt.Runtime), *dir(trt.ICudaEngine), *dir(trt.Refitter)}
    real |= {*dir(trt.ISerializationConfig), "hidden", "extra", "refuses"}
    assert {name for name in vars(Double) if not name.startswith("_")} - real == set()


def renew(models, spec=SPEC, arrays=NEW):
    return refit.refit(spec, arrays, models.folder, progress=lambda *_: None)


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


@pytest.mark.gpu
@pytest.mark.skipif(cannot_run_here("tensorrt_rtx") is not None, reason="needs an RTX GPU")
def test_a_real_plan_takes_new_weights(tmp_path):
    first_build(tmp_path)
    version, cards = refit.refit(SPEC, NEW, tmp_path / "models", progress=lambda *_: None)
    assert (version, cards["tensorrt_rtx"].capabilities) == (2, [*refittable_capability(SPEC)])
    assert all(card.worst < 1e-5 for card in cards.values())
