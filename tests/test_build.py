"""The build: atomic versions, nothing rebuilt in vain, nothing kept that is stale."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from conftest import ROOT
from small_variant import SPEC, files, run
from test_flow import imports

from looprnn import build, repository
from looprnn.card import DECIDING, PACKAGE, Cards, maker
from looprnn.engines.onnxruntime import OnnxRuntime
from looprnn.spec import Layer, Profile, Range, WeightSource


def test_a_first_build_makes_version_1_whole(tmp_path):
    (outcome,) = run(tmp_path)
    assert (outcome.status, outcome.version) == ("built", 1)
    assert files(tmp_path) == {
        "small/config.pbtxt", "small/1/model.py", "small/1/model.onnx", "small/1/engine.json",
    }  # fmt: skip
    card = Cards.read(tmp_path / "small" / "1").engines["onnxruntime"]
    assert set(card.difference) == {"output", "h_n", "c_n"}
    assert 0 < card.worst < 1e-6
    assert set(card.libraries) == {"onnxruntime", "onnx"}


def test_an_unchanged_variant_is_left_alone(tmp_path):
    run(tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    (outcome,) = run(tmp_path)
    assert (outcome.status, outcome.version) == ("unchanged", 1)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    "change",
    [
        {"layers": (Layer(cell="lstm", hidden_size=5),)},
        {"weights": WeightSource(seed=2)},
        {"h_0": 1.0},
        {"profile": Profile(batch=Range(1, 2, 5))},
    ],
)
def test_a_changed_variant_becomes_the_next_version(tmp_path, change):
    run(tmp_path)
    served = (tmp_path / "small/1/model.onnx").read_bytes()
    (outcome,) = run(tmp_path, dataclasses.replace(SPEC, **change))
    assert (outcome.status, outcome.version) == ("built", 2)
    assert (tmp_path / "small/1/model.onnx").read_bytes() == served, (
        "a served version was written to"
    )


def test_a_new_library_rebuilds(tmp_path, monkeypatch):
    run(tmp_path)
    monkeypatch.setattr(OnnxRuntime, "libraries", lambda self: {"onnxruntime": "99", "onnx": "1"})
    assert run(tmp_path)[0].version == 2


def test_force_rebuilds_and_keep_prunes(tmp_path):
    for _ in range(4):
        run(tmp_path, force=True, keep=2)
    assert repository.built_versions(tmp_path / "small") == [2, 3, 4]
    # 1/model.py is committed, so pruning leaves what a clone has.
    assert files(tmp_path / "small" / "1") == {"model.py"}
    run(tmp_path, force=True, keep=0)
    assert repository.built_versions(tmp_path / "small") == [5]


def test_a_clone_whose_version_1_is_model_py_alone_gets_version_1(tmp_path):
    (tmp_path / "small/1").mkdir(parents=True)
    (tmp_path / "small/1/model.py").write_text(repository.MODEL_PY)
    assert run(tmp_path)[0].version == 1


@pytest.mark.parametrize("built_before", [True, False])
def test_an_empty_version_above_the_built_ones_is_not_what_triton_serves(tmp_path, built_before):
    """Triton serves the highest number; a repository copied without its engines has such ones."""
    if built_before:
        run(tmp_path)
    (tmp_path / "small/7").mkdir(parents=True)
    (tmp_path / "small/7/model.py").write_text(repository.MODEL_PY)
    assert run(tmp_path)[0].version == 1
    assert sorted(p.name for p in (tmp_path / "small").iterdir()) == ["1", "config.pbtxt"]


def test_a_folder_with_something_of_the_users_in_it_is_not_replaced(tmp_path):
    (tmp_path / "small/1").mkdir(parents=True)
    (tmp_path / "small/1/notes.txt").write_text("mine")
    assert run(tmp_path)[0].version == 2
    assert (tmp_path / "small/1/notes.txt").read_text() == "mine"


def test_another_engine_joins_without_rebuilding_the_first(tmp_path):
    run(tmp_path)
    (outcome,) = run(tmp_path, names=["tensorrt_rtx"])
    assert (outcome.status, outcome.version) == ("built", 2)
    first, second = (Cards.read(tmp_path / "small" / v) for v in "12")
    assert set(second.engines) == {"onnxruntime", "tensorrt_rtx"}
    assert second.engines["onnxruntime"] == first.engines["onnxruntime"]
    assert second.engines["tensorrt_rtx"].difference is None
    for card in second.engines.values():
        card.check_file(tmp_path / "small" / "2")


def test_a_truncated_engine_is_rebuilt(tmp_path):
    run(tmp_path)
    path = tmp_path / "small/1/model.onnx"
    path.write_bytes(path.read_bytes()[:-1])
    assert (run(tmp_path)[0].status, run(tmp_path)[0].version) == ("built", 2)


def test_another_gpu_than_the_one_it_was_built_for_is_stale(tmp_path, monkeypatch):
    class ForA10(OnnxRuntime):
        def build(self, *arguments, **options):
            return {**super().build(*arguments, **options), "gpu": "NVIDIA A10"}

        def cannot_run(self, card, device=0):
            return None if card.gpu == here else f"built for {card.gpu}, but this is {here}"

    def again():
        (outcome,) = build.build_variant(SPEC, [ForA10()], tmp_path, progress=lambda *_: None)
        return outcome.status, outcome.version

    here = "NVIDIA A10"
    assert again() == ("built", 1)
    assert again() == ("unchanged", 1)
    here = "NVIDIA L4"
    assert again() == ("built", 2)


def test_a_plan_for_a_list_of_gpus_is_not_stale_where_there_is_no_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr("looprnn.engines.tensorrt.no_gpu", lambda device=0: "no GPU, says the test")
    assert run(tmp_path, names=["tensorrt_rtx"])[0].status == "built"
    assert run(tmp_path, names=["tensorrt_rtx"])[0].status == "unchanged"


@pytest.mark.parametrize("module", ["cells.py", "network.py", "engines/onnx_ops.py"])
def test_a_mended_looprnn_rebuilds(tmp_path, monkeypatch, module):
    package = tmp_path / "package"
    shutil.copytree(PACKAGE, package)
    monkeypatch.setattr("looprnn.card.PACKAGE", package)
    folder = tmp_path / "repository"
    run(folder)
    (package / "cli.py").write_text("# decides no engine")
    assert run(folder)[0].status == "unchanged"
    (package / module).write_text((package / module).read_text() + "\n# mended\n")
    (outcome,) = run(folder)
    assert (outcome.status, outcome.version) == ("built", 2)
    assert outcome.card.looprnn == maker()


def test_no_module_that_the_engines_import_is_left_out_of_the_digest():
    def imported(path: Path) -> set[Path]:
        found = {name.replace(".", "/") for name in imports(path)}
        paths = {ROOT / f"{name}.py" for name in found if name.startswith("looprnn/")}
        return {path for path in paths if path.exists()}

    seen, new = set(), {*PACKAGE.glob("engines/*.py"), *PACKAGE.glob("network*.py")}
    while new:
        seen |= new
        new = {path for old in new for path in imported(old)} - seen
    covered = {path for pattern in DECIDING for path in PACKAGE.glob(pattern)}
    comparing = {"parity.py", "reference.py"}  # for engines/fastest.py, which times what is built
    deciding_nothing = {"errors.py", "stream.py", "card.py", "cuda.py"} | comparing
    assert {path.name for path in seen - covered} == deciding_nothing


def test_a_card_from_before_the_digest_is_served_and_rebuilt(tmp_path):
    run(tmp_path)
    path = tmp_path / "small/1/engine.json"
    content = json.loads(path.read_text())
    del content["engines"]["onnxruntime"]["looprnn"]
    path.write_text(json.dumps(content))
    assert Cards.read(path.parent).engines["onnxruntime"].looprnn == ""
    assert run(tmp_path)[0].version == 2
