"""The build: atomic versions, nothing rebuilt in vain, nothing kept that differs from the
reference.
"""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from looprnn import build, engines, repository
from looprnn.card import Cards
from looprnn.cli import main
from looprnn.engines.onnxruntime import OnnxRuntime, OnnxSession
from looprnn.errors import EngineError, EngineMismatch, EngineMissing, ParityError
from looprnn.spec import Layer, Profile, Range, RNNSpec, WeightSource

SPEC = RNNSpec(
    name="small",
    input_size=3,
    layers=(Layer(cell="lstm", hidden_size=4),),
    weights=WeightSource(seed=1),
    profile=Profile(batch=Range(1, 2, 4), time=Range(1, 3, 8)),
)


def run(folder: Path, spec: RNNSpec = SPEC, names=("onnxruntime",), **options):
    wanted, _ = build.buildable(names)
    return build.build_variant(spec, wanted, folder, progress=lambda *_: None, **options)


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


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


class Refused(OnnxRuntime):
    name = "tensorrt_rtx"
    file = "model.rtx.plan"

    def build(self, spec, weights, path, **_):
        path.write_bytes(b"half")
        raise EngineError("the builder said no")


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
    assert files(tmp_path) == {"small/config.pbtxt"}


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


def test_a_card_that_does_not_match_its_file_says_so(tmp_path):
    run(tmp_path)
    folder = tmp_path / "small/1"
    card = Cards.read(folder).engines["onnxruntime"]
    (folder / "model.onnx").write_bytes(b"other")
    with pytest.raises(EngineMismatch, match="5 bytes with SHA-256.*--force --variant small"):
        card.check_file(folder)
    (folder / "model.onnx").unlink()
    with pytest.raises(EngineMissing, match="the card names it, but it is not there"):
        card.check_file(folder)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"spec": {}, "engines": {}}', "\0"])
def test_a_card_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "engine.json").write_text(content)
    with pytest.raises(EngineMismatch, match="not an engine card"):
        Cards.read(tmp_path)


def test_a_version_without_a_card_says_what_to_type(tmp_path):
    (tmp_path / "lstm/1").mkdir(parents=True)
    with pytest.raises(EngineMissing, match=r"python build_engines\.py --force --variant lstm"):
        Cards.read(tmp_path / "lstm/1")


def test_auto_takes_what_runs_here_and_a_named_engine_never_falls_back(tmp_path, monkeypatch):
    run(tmp_path, names=["onnxruntime", "tensorrt_rtx"])
    cards = Cards.read(tmp_path / "small/1")
    monkeypatch.setattr("looprnn.engines.tensorrt.no_gpu", lambda device=0: "no GPU, says the test")
    assert engines.choose(cards, "auto") == "onnxruntime"
    with pytest.raises(EngineError, match="tensorrt_rtx: no GPU, says the test"):
        engines.choose(cards, "tensorrt_rtx")
    with pytest.raises(EngineMissing, match="asks for the engine 'tensorrt'; built are: "):
        engines.choose(cards, "tensorrt")
    with pytest.raises(EngineError, match="no engine of small runs here"):
        engines.choose(
            Cards(spec=SPEC, engines={"tensorrt_rtx": cards.engines["tensorrt_rtx"]}), "auto"
        )


def variant_file(folder: Path, **weights: object) -> Path:
    path = folder / "mine.toml"
    source = "\n".join(f"{k} = {json.dumps(v)}" for k, v in (weights or {"seed": 1}).items())
    path.write_text(f'cell = "rnn"\ninput_size = 2\nhidden_size = 3\n[weights]\n{source}\n')
    return path


def test_the_command_builds_and_says_what_happened(tmp_path, capsys):
    repository = tmp_path / "repository"
    command = ["build", "--spec", str(variant_file(tmp_path)), "--repository", str(repository)]
    assert main([*command, "--engine", "onnxruntime"]) == 0
    assert "built" in capsys.readouterr().out
    assert main([*command, "--engine", "onnxruntime"]) == 0
    assert "unchanged" in capsys.readouterr().out
    assert repository.joinpath("mine/1/model.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["build", "--variant", "nothing"], 1, "no such variant"),
        (["build", "--engine", "tensort"], 2, "invalid choice: 'tensort'"),
        (["build", "--workspace", "much"], 2, "invalid int value"),
        (["serve", "--repository", "/nowhere"], 1, "no such model repository"),
        (["biuld"], 2, "invalid choice: 'biuld'"),
        ([], 2, "required"),
    ],
)
def test_the_command_line_says_how_to_type_it_right(arguments, status, words, capsys):
    try:
        got = main(arguments)
    except SystemExit as stopped:
        got = stopped.code
    assert got == status
    assert words in capsys.readouterr().err


def test_an_engine_this_host_cannot_build_is_an_error_that_says_why(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(engines.ENGINES, "tensorrt", ("looprnn.engines.gone", "looprnn[gpu]"))
    command = ["build", "--spec", str(variant_file(tmp_path)), "--repository", str(tmp_path / "r")]
    assert main([*command, "--engine", "tensorrt"]) == 1
    assert "cannot build tensorrt: tensorrt is not installed here" in capsys.readouterr().err


def test_weights_that_do_not_fit_fail_the_command_and_build_nothing(tmp_path, capsys):
    command = ["build", "--spec", str(variant_file(tmp_path, file="gone.safetensors"))]
    assert main([*command, "--repository", str(tmp_path / "r")]) == 1
    assert "no such weights file" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
