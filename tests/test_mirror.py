"""The stream model beside its variant: built with it, a whole version at a time, and every command
knows whose it is.
"""

import argparse
import dataclasses
import io
import json
import shutil

import pytest
from rich.console import Console
from small_variant import SPEC as PLAIN
from small_variant import files, run

from looprnn import inspect, mirror, refit, repository, verify, weights
from looprnn.card import Cards
from looprnn.errors import EngineError, EngineMismatch, EngineMissing, SpecError
from looprnn.spec import Stream, WeightSource
from looprnn.variants import dump_spec, load_spec

SPEC = dataclasses.replace(PLAIN, lengths=True, streaming=True)


def build(folder, spec=SPEC, **options):
    """What became of the variant's engine, and of its stream model's."""
    return [(o.variant, o.status, o.version) for o in run(folder, spec, **options)]


def test_a_streaming_variant_is_built_twice_and_left_alone_once_it_is(tmp_path):
    assert build(tmp_path) == [("small", "built", 1), ("small_stream", "built", 1)]
    own = {"config.pbtxt", "1/model.py", "1/engine.json", "1/model.onnx"}
    assert files(tmp_path / "small_stream") == own
    for name in ("engine.json", "model.onnx"):
        copy = (tmp_path / "small_stream/1" / name).read_bytes()
        assert copy == (tmp_path / "small/1" / name).read_bytes()
    assert (tmp_path / "small_stream/1/model.py").read_text() == repository.STREAM_PY
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert build(tmp_path) == [("small", "unchanged", 1), ("small_stream", "unchanged", 1)]
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_new_weights_become_the_next_version_of_both_and_old_ones_go(tmp_path):
    for seed in range(3):
        build(tmp_path, dataclasses.replace(SPEC, weights=WeightSource(seed=seed)))
    for name in ("small", "small_stream"):
        assert repository.built_versions(tmp_path / name) == [2, 3]
        newest = Cards.read(tmp_path / name / "3").engines["onnxruntime"]
        newest.check_file(tmp_path / name / "3")
    # 1/model.py is committed, so pruning leaves what a clone has: each its own.
    assert (tmp_path / "small_stream/1/model.py").read_text() == repository.STREAM_PY
    assert (tmp_path / "small/1/model.py").read_text() == repository.MODEL_PY


def test_how_streams_are_kept_is_no_reason_to_build_an_engine(tmp_path):
    build(tmp_path, PLAIN)
    lengths = dataclasses.replace(SPEC, streaming=False)
    assert build(tmp_path, lengths) == [("small", "built", 2)]
    assert build(tmp_path) == [("small", "unchanged", 2), ("small_stream", "built", 1)]
    kept = dataclasses.replace(SPEC, stream=Stream(capacity=9, idle_s=5))
    assert build(tmp_path, kept) == [("small", "unchanged", 2), ("small_stream", "unchanged", 1)]
    config = (tmp_path / "small_stream/config.pbtxt").read_text()
    assert config == repository.render_config(kept, stream=True)


@pytest.mark.parametrize("damage", ["truncated", "missing", "cards"])
def test_a_damaged_stream_model_is_mended_by_the_next_build(tmp_path, damage):
    build(tmp_path)
    engine, cards = (tmp_path / "small_stream/1" / n for n in ("model.onnx", "engine.json"))
    {
        "truncated": lambda: engine.write_bytes(b"half"),
        "missing": engine.unlink,
        "cards": lambda: cards.write_text("{}"),
    }[damage]()
    assert build(tmp_path) == [("small", "unchanged", 1), ("small_stream", "built", 2)]


def test_a_build_killed_between_the_two_is_finished_by_the_next(tmp_path, monkeypatch):
    build(tmp_path)
    monkeypatch.setattr("looprnn.build.mirror", lambda *_: None)
    other = dataclasses.replace(SPEC, weights=WeightSource(seed=7))
    assert build(tmp_path, other) == [("small", "built", 2)]
    monkeypatch.undo()
    assert build(tmp_path, other) == [("small", "unchanged", 2), ("small_stream", "built", 2)]


def test_a_copy_that_fails_leaves_no_version(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError("No space left on device")

    monkeypatch.setattr("looprnn.mirror.shutil.copy2", full)
    with pytest.raises(OSError, match="No space"):
        build(tmp_path)
    assert not (tmp_path / "small_stream").exists()
    monkeypatch.undo()
    assert build(tmp_path) == [("small", "unchanged", 1), ("small_stream", "built", 1)]


def test_the_engine_a_user_asks_for_in_the_config_outlives_a_build(tmp_path):
    build(tmp_path)
    config = tmp_path / "small_stream/config.pbtxt"
    config.write_text(config.read_text().replace('"auto"', '"onnxruntime"'))
    edited = config.read_text()
    build(tmp_path, force=True)
    assert config.read_text() == edited


def test_a_variant_that_streams_no_more_takes_its_stream_model_along(tmp_path, caplog):
    build(tmp_path)
    stopped = dataclasses.replace(SPEC, streaming=False)
    assert build(tmp_path, stopped) == [("small", "unchanged", 1)]
    assert not (tmp_path / "small_stream").exists()
    assert "small_stream: removed, since small has no streaming = true" in caplog.text


def test_a_users_own_model_of_such_a_name_is_left_alone(tmp_path):
    own = tmp_path / "small_stream/1/model.py"
    own.parent.mkdir(parents=True)
    own.write_text("class TritonPythonModel: ...\n")
    config = tmp_path / "small_stream/config.pbtxt"
    config.write_text('backend: "python"')
    build(tmp_path, PLAIN)
    with pytest.raises(EngineError, match="small_stream: a model of that name is there.*Rename it"):
        build(tmp_path)
    assert (own.exists(), config.read_text()) == (True, 'backend: "python"')


def test_a_config_without_versions_as_images_hold_it_is_no_strangers(tmp_path):
    build(tmp_path)
    (config,) = tmp_path.glob("small_stream/config.pbtxt")
    for folder in ("small_stream/1", "small"):
        shutil.rmtree(tmp_path / folder)
    assert config.exists()
    build(tmp_path)
    assert (tmp_path / "small_stream/1/model.onnx").exists()


def test_a_refit_reaches_the_stream_model(tmp_path, monkeypatch):
    spec = dataclasses.replace(SPEC, refit=True)
    build(tmp_path, spec)
    monkeypatch.setattr(refit, "check", lambda *_: None)  # the CPU engine alone: no plan to refit
    new = weights.load_weights(dataclasses.replace(spec, weights=WeightSource(seed=8)))
    assert refit.refit(spec, new, tmp_path, progress=lambda *_: None)[0] == 2
    assert files(tmp_path / "small_stream/2") == files(tmp_path / "small/2")
    for name in ("engine.json", "model.onnx"):
        copy = (tmp_path / "small_stream/2" / name).read_bytes()
        assert copy == (tmp_path / "small/2" / name).read_bytes()


def test_a_broken_version_says_to_build_the_variant(tmp_path):
    build(tmp_path)
    version = tmp_path / "small_stream/1"
    card = Cards.read(version).engines["onnxruntime"]
    (version / card.file).write_bytes(b"other")
    with pytest.raises(EngineMismatch, match="--force --variant small$"):
        card.check_file(version)
    (version / "engine.json").unlink()
    with pytest.raises(EngineMissing, match="--force --variant small$"):
        Cards.read(version)


@pytest.fixture
def say(tmp_path):
    """say(command, "small_stream", …) → exit status and what was printed."""
    (tmp_path / "variants").mkdir()
    (tmp_path / "variants/small.toml").write_text(dump_spec(SPEC))

    def ask(command, *words):
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        options = parser.parse_args(words)
        options.variants, options.repository = tmp_path / "variants", tmp_path / "models"
        options.verbose = False
        out = io.StringIO()
        return command.run(options, Console(file=out, width=120)), out.getvalue()

    return ask


def test_verify_and_inspect_know_a_stream_model(tmp_path, say):
    build(tmp_path / "models")
    status, text = say(verify, "small_stream", "--json")
    (verdict,) = json.loads(text)["engines"]
    assert (status, verdict["variant"], verdict["status"]) == (0, "small_stream", "agrees")
    for name in ("small", "small_stream"):
        found = json.loads(say(inspect, name, "--json")[1])
        assert (found["name"], found["version"], found["notes"]) == ("small", 1, [])
        assert found["stream"] == {
            "model": "small_stream", "capacity": 1024, "idle_s": 60.0, "state_bytes": 32,
        }  # fmt: skip
    assert "small_stream keeps 1,024 at once, 32 bytes each" in say(inspect, "small")[1]
    (tmp_path / "models/small_stream/1/model.onnx").write_bytes(b"other")
    assert say(verify, "small_stream")[0] == 1
    assert say(verify, "small")[0] == 0


@pytest.mark.parametrize("command", [inspect, verify], ids=["inspect", "verify"])
def test_a_variant_without_streams_says_how_to_have_them(tmp_path, say, command):
    (tmp_path / "variants/other.toml").write_text(dump_spec(PLAIN))
    with pytest.raises(SpecError, match="other has no streams. Set streaming = true in other.toml"):
        say(command, "other_stream")


def test_a_stream_model_taken_for_a_variant_is_told_whose_it_is(say, tmp_path):
    with pytest.raises(SpecError, match="no such variant. It is built along with its variant: sm"):
        load_spec(tmp_path / "variants/small_stream.toml")


def test_the_lock_of_the_stream_model_is_held_while_its_version_is_made(tmp_path, monkeypatch):
    held = []
    right = repository.locked
    monkeypatch.setattr(repository, "locked", lambda f, name: held.append(name) or right(f, name))
    build(tmp_path)
    assert held == ["small", "small_stream"]
    assert mirror.mirror(tmp_path, SPEC, 1) == (1, False)
