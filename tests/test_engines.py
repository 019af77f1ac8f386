"""One body over every engine. A skip names a missing capability; a failure is never skipped."""

import numpy as np
import pytest
from cases import CASES, WEIGHT_MUTANTS, worst

from looprnn import engines, parity
from looprnn.card import EngineCard
from looprnn.engines.tensorrt import no_gpu
from looprnn.errors import EngineError, EngineMissing

NEEDS_GPU = pytest.mark.skipif(no_gpu() is not None, reason="needs an NVIDIA GPU")


@pytest.fixture(
    params=[
        "onnxruntime",
        pytest.param("tensorrt", marks=[pytest.mark.gpu, NEEDS_GPU]),
    ]
)
def run(request, tmp_path):
    """run(case, weights) builds the engine, opens it and asks it once."""
    engine = engines.get(request.param)

    def build_and_ask(case, weights):
        path = tmp_path / engine.file
        engine.build(case.spec, weights, path, progress=lambda *_: None, workspace=1 << 28)
        with engine.session(path, case.spec) as session:
            return session.run(case.inputs)

    return build_and_ask


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_parity(run, case):
    got = run(case, case.weights)
    assert {a.dtype for a in got.values()} == {np.dtype(np.float32)}
    assert parity.agrees(worst(case, got))


@pytest.mark.parametrize("mutant", WEIGHT_MUTANTS, ids=lambda m: m.__name__)
def test_some_case_notices_wrong_weights(run, mutant):
    noticed = [
        c.name for c in CASES if not parity.agrees(worst(c, run(c, mutant(c.spec, c.weights))))
    ]
    assert noticed, f"no case tells {mutant.__name__} from the truth"


def test_an_unknown_engine_is_answered_with_the_known_ones():
    with pytest.raises(EngineMissing, match="no engine is called 'tensort'.*tensorrt_rtx"):
        engines.get("tensort")


def test_an_engine_without_its_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(engines.ENGINES, "tensorrt", ("looprnn.engines.gone", "looprnn[gpu]"))
    with pytest.raises(EngineMissing, match=r"pip install 'looprnn\[gpu\]'"):
        engines.get("tensorrt")


@pytest.mark.parametrize("content", [b"", b"\x08\x01garbage", b"\0" * 100])
def test_a_file_that_is_no_onnx_model_is_refused(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(EngineError, match="ONNX Runtime cannot load it"):
        engines.get("onnxruntime").session(path, CASES[0].spec)


def card(**changes):
    fields = {
        "engine": "tensorrt", "file": "model.plan", "sha256": "", "spec_digest": "",
        "weights_digest": "",
        "libraries": {"tensorrt": "11.4.0.106"}, "gpu": "NVIDIA A10", "capabilities": ["8.6"],
        "built": "", "difference": None,
    }  # fmt: skip
    return EngineCard(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"libraries": {"tensorrt": "10.16.1.11"}},
            "built by tensorrt 10.16.1.11, but this is tensorrt 11.4.0.106",
        ),
        ({"libraries": {}}, "built by tensorrt None"),
        (
            {"gpu": "NVIDIA L4", "capabilities": ["8.9"]},
            "built for NVIDIA L4 (compute capability 8.9), but this is NVIDIA A10",
        ),
        ({"gpu": "NVIDIA RTX A2000"}, "built for NVIDIA RTX A2000"),
        (
            {"gpu": None, "capabilities": ["8.9", "12.0"]},
            "built for RTX GPUs (compute capability 8.9, 12.0)",
        ),
    ],
)
def test_a_plan_for_another_gpu_or_library_says_both(changes, words):
    from looprnn.engines.tensorrt import mismatch

    reason = mismatch(card(**changes), {"tensorrt": "11.4.0.106"}, "NVIDIA A10", "8.6")
    assert words in reason


@pytest.mark.parametrize("changes", [{}, {"gpu": None, "capabilities": ["8.6", "8.9"]}])
def test_a_plan_for_this_gpu_fits(changes):
    from looprnn.engines.tensorrt import mismatch

    assert mismatch(card(**changes), {"tensorrt": "11.4.0.106"}, "NVIDIA A10", "8.6") is None
