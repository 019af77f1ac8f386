"""config.pbtxt is rendered, committed and compared: drift fails here, not in Triton."""

import pytest
from conftest import ROOT, VARIANTS
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as pb

from looprnn import repository

COMMITTED = ROOT / "model_repository"


def test_the_committed_config_is_the_rendered_one(variant):
    committed = (COMMITTED / variant.name / "config.pbtxt").read_text(encoding="utf-8")
    assert committed == repository.render_config(variant), (
        "python build_engines.py renders it again"
    )


def test_the_committed_model_is_one_import(variant):
    assert (COMMITTED / variant.name / "1/model.py").read_text() == repository.MODEL_PY
    assert repository.MODEL_PY.count("\n") == 1


def test_no_model_is_committed_without_its_variant():
    assert {p.name for p in COMMITTED.iterdir() if p.is_dir()} == set(VARIANTS)


def test_the_config_says_what_the_wire_contract_says(variant):
    config = text_format.Parse(repository.render_config(variant), pb.ModelConfig())
    sizes = variant.shapes(1, 1)
    assert config.backend == "python"
    assert config.max_batch_size == variant.profile.batch.max
    for tensor in (*config.input, *config.output):
        assert tensor.data_type == pb.TYPE_FP32
        assert tensor.dims[-1] == sizes[tensor.name][2]
        assert tensor.dims[0] == (
            -1 if tensor.name in ("input", "output") else sizes[tensor.name][1]
        )
    assert {t.name: t.optional for t in config.input} == {
        name: name != "input" for name in variant.input_names
    }
    assert [t.name for t in config.output] == list(variant.output_names)
    assert config.HasField("dynamic_batching")
    assert [g.kind for g in config.instance_group] == [pb.ModelInstanceGroup.KIND_AUTO]
    assert config.parameters["engine"].string_value == "auto"
    # random_data would be random bytes, NaN among them, and the model refuses NaN.
    assert config.model_warmup[0].inputs["input"].zero_data


def test_an_exception_while_staging_leaves_no_trace(tmp_path):
    with pytest.raises(ZeroDivisionError), repository.staged_version(tmp_path, "m") as folder:
        (folder / "engine").write_text("half")
        raise ZeroDivisionError
    assert list((tmp_path / "m").iterdir()) == []


def test_two_builds_at_once_get_two_versions(tmp_path):
    with repository.staged_version(tmp_path, "m") as one:
        (one / "engine.json").write_text("one")
        with repository.staged_version(tmp_path, "m") as two:
            (two / "engine.json").write_text("two")
    assert [(tmp_path / "m" / v / "engine.json").read_text() for v in "12"] == ["two", "one"]
