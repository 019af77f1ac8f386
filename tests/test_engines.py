"""One body over every engine. A skip names a missing capability; a failure is never skipped."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from cases import CASES, WEIGHT_MUTANTS, worst
from conftest import skip_unless_it_runs
from drawn import agree, specs
from hypothesis import given, settings
from hypothesis import strategies as st

from looprnn import engines, parity
from looprnn.card import EngineCard
from looprnn.engines import onnx_ops
from looprnn.engines.onnx_model import how
from looprnn.errors import EngineError, EngineMissing
from looprnn.weights import load_weights


@pytest.fixture(
    params=[
        "onnxruntime",
        pytest.param("tensorrt", marks=pytest.mark.gpu),
        pytest.param("tensorrt_rtx", marks=pytest.mark.gpu),
        pytest.param("fused", marks=pytest.mark.gpu),
    ]
)
def run(request, tmp_path):
    """run(case, weights) builds the engine, opens it and asks it once."""
    skip_unless_it_runs(request.param, request)
    engine = engines.get(request.param)

    def build_and_ask(case, weights):
        path = tmp_path / engine.file
        engine.build(case.spec, weights, path, progress=lambda *_: None, workspace=1 << 28)
        with engine.session(path, case.spec) as session:
            whole = session.run(case.inputs)
            for name in case.spec.output_names:
                alone = session.run(case.inputs, [name])
                assert list(alone) == [name]
                np.testing.assert_array_equal(alone[name], whole[name])
            return whole

    return build_and_ask


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_parity(run, case):
    got = run(case, case.weights)
    assert {a.dtype for a in got.values()} == {np.dtype(np.float32)}
    assert parity.agrees(worst(case, got))


@settings(max_examples=60)
@given(spec=specs(), batch=st.integers(1, 5), time=st.integers(1, 12), seed=st.integers(0, 1000))
def test_any_spec_on_the_cpu(spec, batch, time, seed):
    weights, inputs = load_weights(spec), parity.draw_inputs(spec, batch, time, seed)
    with TemporaryDirectory() as folder:
        engine, path = engines.get("onnxruntime"), Path(folder) / "model.onnx"
        engine.build(spec, weights, path, progress=lambda *_: None, workspace=0)
        with engine.session(path, spec) as session:
            found = parity.differences(spec, weights, inputs, session.run(inputs))
    assert agree(spec, found), found


def test_the_card_names_what_onnx_could_not_express():
    made_of = {c.name: how(c.spec) for c in CASES}
    assert made_of["no_axis_equals_another"] == "LSTM"
    assert made_of["gru_reset_before"] == "GRU"
    assert made_of["projection"] == made_of["layer_norm"] == made_of["clipped_cell"] == "Scan"
    assert made_of["layers_of_other_sizes_and_cells"] == "GRU + LSTM + RNN"


@pytest.mark.parametrize("mutant", WEIGHT_MUTANTS, ids=lambda m: m.__name__)
def test_some_case_notices_wrong_weights(run, mutant):
    noticed = [
        c.name for c in CASES if not parity.agrees(worst(c, run(c, mutant(c.spec, c.weights))))
    ]
    assert noticed, f"no case tells {mutant.__name__} from the truth"


def without(select_or_blank):
    """A mutant of the ONNX graph: selections of this name answer what they should replace."""

    def mutant(monkeypatch):
        right = onnx_ops.Graph.select

        def wrong(g, name, condition, yes, no):
            return yes if name == select_or_blank else right(g, name, condition, yes, no)

        monkeypatch.setattr(onnx_ops.Graph, "select", wrong)

    mutant.__name__ = f"without_{select_or_blank}"
    return mutant


@pytest.mark.parametrize(
    "mutant",
    [without(n) for n in ("residual_valid", "y_some", "y_valid", "valid", "h_kept", "c_kept")],
    ids=lambda m: m.__name__,
)
def test_some_case_notices_wrong_wiring_of_the_onnx_model(mutant, monkeypatch, tmp_path):
    mutant(monkeypatch)
    engine, noticed = engines.get("onnxruntime"), []
    for case in CASES:
        path = tmp_path / case.name
        engine.build(case.spec, case.weights, path, progress=lambda *_: None, workspace=0)
        with engine.session(path, case.spec) as session:
            if not parity.agrees(worst(case, session.run(case.inputs))):
                noticed.append(case.name)
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
        "built": "", "difference": None, "precision": "fp32",
        "made_of": "Loop",
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
            {"engine": "tensorrt_rtx", "gpu": None, "capabilities": ["8.9", "12.0"]},
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
