"""What TensorRT itself says to our networks: TensorRT-RTX builds real plans without a GPU."""

import pytest
from cases import CASES
from conftest import needs

from looprnn import engines
from looprnn.engines.tensorrt import make_logger, no_gpu
from looprnn.errors import EngineError

trt = needs("tensorrt_rtx", "pip install 'looprnn[rtx]'")
WORKSPACE = 1 << 28


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_tensorrt_builds_a_plan(case, tmp_path):
    seen = []
    path = tmp_path / "model.rtx.plan"
    target = engines.get("tensorrt_rtx").build(
        case.spec,
        case.weights,
        path,
        progress=lambda phase, step, steps: seen.append((step, steps)),
        workspace=WORKSPACE,
    )
    assert path.stat().st_size > sum(a.nbytes for a in case.weights.values())
    assert target["capabilities"] == ["8.0", "8.6", "8.9", "12.0", "12.1"]
    assert seen and all(0 <= step <= steps for step, steps in seen)
    assert seen[-1][0] == seen[-1][1], "the progress ends at its end"


def test_what_tensorrt_refuses_is_an_error_with_its_own_words(tmp_path, monkeypatch):
    # 7.5 has no FP32 matmul in TensorRT-RTX.
    monkeypatch.setattr("looprnn.engines.tensorrt.RTX_CAPABILITIES", ("7.5",))
    with pytest.raises(EngineError, match="FP32 GEMM is not supported"):
        engines.get("tensorrt_rtx").build(
            CASES[0].spec,
            CASES[0].weights,
            tmp_path / "p",
            progress=lambda *_: None,
            workspace=WORKSPACE,
        )
    assert not (tmp_path / "p").exists()


def test_an_exception_in_the_progress_bar_does_not_pass_for_a_plan(tmp_path):
    def broken(*_):
        raise KeyboardInterrupt

    with pytest.raises((EngineError, KeyboardInterrupt)):
        engines.get("tensorrt_rtx").build(
            CASES[0].spec, CASES[0].weights, tmp_path / "p", progress=broken, workspace=WORKSPACE
        )


@pytest.mark.skipif(no_gpu() is None, reason="about hosts without a GPU")
def test_no_gpu_is_said_in_words():
    assert "no NVIDIA GPU answers here" in no_gpu()


def test_the_logger_keeps_errors_and_drops_the_rest():
    logger = make_logger(trt)
    logger.log(trt.ILogger.Severity.WARNING, "a warning")
    logger.log(trt.ILogger.Severity.ERROR, "an error")
    assert logger.errors == ["an error"]
