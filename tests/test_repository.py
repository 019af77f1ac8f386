"""config.pbtxt is rendered, committed and compared: drift fails here, not in Triton. Cards fit
their files, and builds that are killed or that meet leave a whole repository.
"""

import dataclasses
import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, VARIANTS
from google.protobuf import text_format
from small_variant import SPEC, Refused, run
from tritonclient.grpc import model_config_pb2 as pb

from looprnn import build, engines, repository
from looprnn.card import Cards
from looprnn.errors import EngineError, EngineMismatch, EngineMissing
from looprnn.spec import Profile, Range, Stream

COMMITTED = ROOT / "model_repository"


# Every committed model: its variant, and whether it is the stream model.
MODELS = [(spec, model != spec.name) for spec in VARIANTS.values() for model in spec.models]


@pytest.fixture(params=MODELS, ids=lambda m: m[0].models[m[1]])
def committed(request):
    return request.param


def test_the_committed_config_is_the_rendered_one(committed):
    spec, stream = committed
    config = (COMMITTED / spec.models[stream] / "config.pbtxt").read_text(encoding="utf-8")
    assert config == repository.render_config(spec, stream=stream), (
        "python build_engines.py renders it again"
    )


def test_the_committed_model_is_one_import(committed):
    spec, stream = committed
    written = (COMMITTED / spec.models[stream] / "1/model.py").read_text()
    assert written == (repository.STREAM_PY if stream else repository.MODEL_PY)
    assert written.count("\n") == 1


def test_no_model_is_committed_without_its_variant():
    names = {spec.models[stream] for spec, stream in MODELS}
    assert {p.name for p in COMMITTED.iterdir() if p.is_dir()} == names


def test_the_config_says_what_the_wire_contract_says(committed):
    variant, stream = committed
    text = repository.render_config(variant, stream=stream)
    config = text_format.Parse(text, pb.ModelConfig())
    sizes = variant.shapes(1, 1)
    assert config.backend == "python"
    assert config.max_batch_size == variant.profile.batch.max
    for tensor in (*config.input, *config.output):
        whole = tensor.name == "lengths" or (tensor.name == "input" and variant.vocabulary)
        assert tensor.data_type == (pb.TYPE_INT32 if whole else pb.TYPE_FP32)
        every_step = tensor.name in ("input", "output", "output_reverse") or (
            tensor.name == "head" and variant.head.on == "output"
        )
        dims = [-1, *sizes[tensor.name][2:]] if every_step else sizes[tensor.name][1:]
        assert list(tensor.dims) == list(dims or [1])  # Triton's dims cannot be empty
    assert {t.name: t.optional for t in config.input} == {
        name: name != "input" for name in variant.input_names
    }
    assert [t.name for t in config.output] == list(variant.output_names)
    assert config.HasField("sequence_batching" if stream else "dynamic_batching")
    assert ("streaming" in config.parameters) == stream
    assert [g.kind for g in config.instance_group] == [pb.ModelInstanceGroup.KIND_AUTO]
    assert config.parameters["engine"].string_value == "auto"
    # random_data would be random bytes, NaN among them, and the model refuses NaN.
    assert config.model_warmup[0].inputs["input"].zero_data


def test_the_config_of_a_stream_model_says_how_streams_are_kept():
    spec = dataclasses.replace(VARIANTS["lstm"], stream=Stream(capacity=7, idle_s=0.25))
    config = text_format.Parse(repository.render_config(spec, stream=True), pb.ModelConfig())
    assert config.sequence_batching.max_sequence_idle_microseconds == 250_000
    # Refused STARTs hold a place in Triton too: without spare ones the next would wait unanswered.
    assert config.sequence_batching.oldest.max_candidate_sequences > 1000 * 7
    said = {key: p.string_value for key, p in config.parameters.items()}
    assert said["streaming"] == "true"
    assert (said["stream_capacity"], said["stream_idle_s"]) == ("7", "0.25")
    assert config.model_warmup[0].batch_size == 1  # a chunk is one row


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
    why = 'here: no GPU, says the test. onnxruntime can: write "auto" there'
    with pytest.raises(EngineError, match=f"'tensorrt_rtx', which cannot run {why}") as refused:
        engines.choose(cards, "tensorrt_rtx")
    assert "build_engines" not in str(refused.value), "a build brings no GPU"
    with pytest.raises(EngineMissing, match="asks for the engine 'tensorrt'; built are: "):
        engines.choose(cards, "tensorrt")
    with pytest.raises(EngineMissing, match="'fussed'; there are: auto, tensorrt, "):
        engines.choose(cards, "fussed")
    alone = Cards(spec=SPEC, engines={"tensorrt_rtx": cards.engines["tensorrt_rtx"]})
    for wanted in ("auto", "tensorrt_rtx"):
        words = "no engine of small runs here. tensorrt_rtx: no GPU, says the test"
        with pytest.raises(EngineError, match=words):
            engines.choose(alone, wanted)


@pytest.mark.parametrize("asked", ["onnxruntime", "tensorrt_rtx", "auto"])
def test_the_engine_a_user_asks_for_in_the_config_outlives_a_build(tmp_path, asked):
    run(tmp_path)
    config = tmp_path / "small/config.pbtxt"
    config.write_text(config.read_text().replace('"auto"', f'"{asked}"'))
    edited = config.read_text()
    run(tmp_path)
    run(tmp_path, force=True)
    assert config.read_text() == edited == repository.render_config(SPEC, asked)


@pytest.mark.parametrize("broken", ["engine of mine", "{", '"'])
def test_a_config_that_names_no_engine_is_rendered_anew(tmp_path, broken):
    run(tmp_path)
    config = tmp_path / "small/config.pbtxt"
    config.write_text(config.read_text().replace("auto", broken))
    run(tmp_path)
    assert config.read_text() == repository.render_config(SPEC)


def test_a_failed_build_leaves_the_config_of_what_is_served(tmp_path):
    run(tmp_path)
    served = (tmp_path / "small/config.pbtxt").read_text()
    wider = dataclasses.replace(SPEC, profile=Profile(batch=Range(1, 2, 64)))
    (failed,) = build.build_variant(wider, [Refused()], tmp_path, progress=lambda *_: None)
    assert failed.status == "failed"
    assert (tmp_path / "small/config.pbtxt").read_text() == served


def test_the_config_of_a_build_killed_before_it_was_written_is_mended(tmp_path):
    run(tmp_path)
    config = tmp_path / "small/config.pbtxt"
    right = config.read_text()
    config.write_text(right.replace("max_batch_size: 4", "max_batch_size: 2"))
    assert run(tmp_path)[0].status == "unchanged"
    assert config.read_text() == right


BUILDER = """
import sys, time
sys.path.insert(0, {tests!r})
from pathlib import Path
import small_variant
class Slow(small_variant.OnnxRuntime):
    def build(self, *arguments, **options):
        print("building", flush=True)
        time.sleep({seconds})
        if {fails}:
            raise small_variant.EngineError("says the test")
        return super().build(*arguments, **options)
outcomes = small_variant.build.build_variant(
    small_variant.SPEC, [Slow()], Path({folder!r}), progress=lambda *_: None)
print(outcomes[0].status, outcomes[0].version)
"""


def builder(folder: Path, seconds: float, fails: bool = False) -> subprocess.Popen:
    """A process that builds SPEC and takes so long over it; returns once it is at it."""
    tests = str(Path(__file__).parent)
    code = BUILDER.format(tests=tests, folder=str(folder), seconds=seconds, fails=fails)
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "building\n"
    return process


def test_builds_at_once_wait_for_each_other_and_say_so_once(tmp_path, caplog):
    with builder(tmp_path, seconds=1) as other:
        (outcome,) = run(tmp_path)
        assert other.stdout.read() == "built 1\n"
    assert (outcome.status, outcome.version) == ("unchanged", 1)
    waiting = [r.getMessage() for r in caplog.records if "waiting for it" in r.getMessage()]
    assert waiting == [f"{tmp_path / 'small'}: another build is at work here, waiting for it"]


def test_what_a_killed_build_left_is_removed_by_the_next(tmp_path):
    with builder(tmp_path, seconds=60) as other:
        other.kill()
    (left,) = (tmp_path / "small").iterdir()
    assert left.name.startswith(".staging-")
    (tmp_path / "small/.staging-config").write_text("half")
    assert run(tmp_path)[0].version == 1
    assert {p.name for p in (tmp_path / "small").iterdir()} == {"1", "config.pbtxt"}


def test_a_folder_that_cannot_be_locked_is_built_in_with_a_warning(tmp_path, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.EBADF, "Bad file descriptor")  # as NFS does

    monkeypatch.setattr("fcntl.flock", refuse)
    assert run(tmp_path)[0].version == 1
    assert "cannot be locked" in caplog.text


def test_waiting_for_a_first_build_that_fails_ends_in_a_lock_that_holds(tmp_path):
    with builder(tmp_path, seconds=1, fails=True) as other:
        with repository.locked(tmp_path, "small") as model:
            third = os.open(model, os.O_RDONLY)
            with pytest.raises(BlockingIOError):
                fcntl.flock(third, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.close(third)
        assert other.stdout.read() == "failed None\n"
