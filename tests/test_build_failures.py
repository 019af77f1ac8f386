"""Builds that fail: nothing half-written, nothing kept that differs from the reference."""

import numpy as np
import pytest
from small_variant import SPEC, Refused, files, run

from looprnn import build
from looprnn.card import Cards
from looprnn.engines.onnxruntime import OnnxRuntime, OnnxSession
from looprnn.errors import ParityError


class Interrupted(OnnxRuntime):
    def build(self, spec, weights, path, **_):
        path.write_bytes(b"half")
        raise KeyboardInterrupt


def test_an_interrupted_build_leaves_nothing(tmp_path):
    run(tmp_path)
    before = files(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        build.build_variant(SPEC, [Interrupted()], tmp_path, progress=lambda *_: None, force=True)
    assert files(tmp_path) == before


def test_a_failed_engine_leaves_the_others_and_no_file(tmp_path):
    failed, built = build.build_variant(
        SPEC, [Refused(), OnnxRuntime()], tmp_path, progress=lambda *_: None
    )
    assert (failed.status, failed.message, failed.version) == (
        "failed",
        "the builder said no",
        None,
    )
    assert (built.status, built.version) == ("built", 1)
    assert not (tmp_path / "small/1/model.rtx.plan").exists()


def test_where_every_engine_fails_no_version_appears(tmp_path):
    (failed,) = build.build_variant(SPEC, [Refused()], tmp_path, progress=lambda *_: None)
    assert failed.status == "failed"
    assert list(tmp_path.iterdir()) == []  # Triton would take an empty folder for a broken model


@pytest.mark.parametrize(
    "mistake",
    [
        lambda a: a * np.float32(1.0001),
        lambda a: np.full_like(a, np.nan),
        np.zeros_like,
        lambda a: a[:, ::-1],
    ],
    ids=["slightly_off", "nan", "zeros", "time_reversed"],
)
def test_an_engine_that_differs_from_the_reference_is_not_kept(tmp_path, monkeypatch, mistake):
    right = OnnxSession.run

    def wrong(self, inputs):
        answer = right(self, inputs)
        return {**answer, "output": mistake(answer["output"])}

    monkeypatch.setattr(OnnxSession, "run", wrong)
    (outcome,) = run(tmp_path)
    assert outcome.status == "failed"
    assert "differs from the reference by" in outcome.message
    assert not (tmp_path / "small/1").exists()
    with pytest.raises(ParityError, match=r"output \(B=\d+, T=\d+\)"):
        path = tmp_path / "model.onnx"
        weights = build.weights.load_weights(SPEC)
        OnnxRuntime().build(SPEC, weights, path, progress=lambda *_: None, workspace=0)
        build.prove(OnnxRuntime(), path, SPEC, weights, "fp32")


class Wrong(OnnxRuntime):
    """Builds, runs, and differs from the reference."""

    name = "tensorrt_rtx"
    file = "model.rtx.plan"

    def session(self, path, spec, device=0):
        session = super().session(path, spec, device)
        right = session.run
        session.run = lambda inputs: {n: a + 1 for n, a in right(inputs).items()}
        return session


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["wrong_first", "wrong_last"])
def test_where_one_engine_differs_no_other_of_its_weights_is_published(tmp_path, order):
    pair = (Wrong(), OnnxRuntime())
    outcomes = build.build_variant(
        SPEC, [pair[k] for k in order], tmp_path, progress=lambda *_: None
    )
    assert {o.status for o in outcomes} == {"failed"}
    assert {o.version for o in outcomes} == {o.card for o in outcomes} == {None}
    said = {o.engine: o.message for o in outcomes}
    assert "differs from the reference by" in said["tensorrt_rtx"]
    assert "not kept: tensorrt_rtx, of the same weights, differs" in said["onnxruntime"]
    assert files(tmp_path) == set()


def test_a_forced_rebuild_that_fails_keeps_the_good_engine(tmp_path):
    run(tmp_path, names=["onnxruntime", "tensorrt_rtx"])
    good = Cards.read(tmp_path / "small/1").engines["tensorrt_rtx"]
    failed, built = build.build_variant(
        SPEC, [Refused(), OnnxRuntime()], tmp_path, progress=lambda *_: None, force=True
    )
    assert (failed.status, built.status, built.version) == ("failed", "built", 2)
    second = Cards.read(tmp_path / "small/2")
    assert second.engines["tensorrt_rtx"] == good
    good.check_file(tmp_path / "small/2")
