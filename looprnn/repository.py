"""engine + spec → model_repository/<name>/: config.pbtxt, and one directory a version.

    model_repository/lstm/config.pbtxt     rendered from the spec, committed and compared by a test
    model_repository/lstm/1/model.py       one import
    model_repository/lstm/1/engine.json    the cards; without it the version was not built
    model_repository/lstm/1/model.onnx …   the engines
    model_repository/lstm_stream/          the same for a variant with streaming = true: its stream
                                           model, with copies of the engines (mirror)

A version is staged beside the others and renamed into place whole. It is never written to again.
"""

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from looprnn.card import CARDS
from looprnn.engines import ENGINES
from looprnn.spec import RNNSpec
from looprnn.stream import stream_name, variant_of

log = logging.getLogger(__name__)
MODEL_PY = "from looprnn.triton_model import TritonPythonModel  # noqa: F401\n"
STREAM_PY = MODEL_PY.replace("triton_model", "stream_model")
# A START that was refused holds Triton's place for a stream until it idles. Where these ran out a
# START would wait without a word, so there are more of them than slots; each costs 0.7 KB.
SPARE = 10_000


def render_config(spec: RNNSpec, engine: str = "auto", *, stream: bool = False) -> str:
    """config.pbtxt of the variant, or of its stream model, through Triton's own protobuf.

    instance_group's KIND_AUTO is a GPU where there is one, else the CPU. The parameter `engine` may
    be set to the name of an engine; `auto` takes the first that the host can run.
    """
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as pb

    batch, time = spec.profile.batch, spec.profile.time
    kinds = {"float32": pb.DataType.TYPE_FP32, "int32": pb.DataType.TYPE_INT32}

    def described(name: str) -> dict[str, Any]:
        return {
            "name": name,
            "data_type": kinds[spec.dtype(name).__name__],
            "dims": dims(spec, name),
        }

    parameters = {"engine": engine, "time_max": str(time.max)}
    if spec.vocabulary:
        parameters["vocabulary"] = str(spec.vocabulary)
    if stream:
        parameters |= {
            "streaming": "true",
            "stream_capacity": str(spec.stream.capacity),
            "stream_idle_s": f"{spec.stream.idle_s:.15g}",
        }
        batching: dict[str, Any] = {
            "sequence_batching": pb.ModelSequenceBatching(
                max_sequence_idle_microseconds=spec.stream.idle_us,
                oldest=pb.ModelSequenceBatching.StrategyOldest(
                    max_candidate_sequences=spec.stream.capacity + SPARE
                ),
            )
        }
    else:
        batching = {"dynamic_batching": pb.ModelDynamicBatching()}
    config = pb.ModelConfig(
        name=stream_name(spec.name) if stream else spec.name,
        backend="python",
        max_batch_size=batch.max,
        input=[
            pb.ModelInput(
                **described(n),
                optional=n != "input",
                allow_ragged_batch=n == "input" and spec.lengths,
            )
            for n in spec.input_names
        ],
        output=[pb.ModelOutput(**described(n)) for n in spec.output_names],
        instance_group=[pb.ModelInstanceGroup(count=1, kind=pb.ModelInstanceGroup.KIND_AUTO)],
        **batching,
        parameters={key: pb.ModelParameter(string_value=v) for key, v in parameters.items()},
        model_warmup=[
            pb.ModelWarmup(
                name="typical",
                batch_size=1 if stream else batch.opt,
                inputs={
                    "input": pb.ModelWarmup.Input(
                        data_type=described("input")["data_type"],
                        dims=spec.shapes(1, time.opt)["input"][1:],
                        zero_data=True,  # random_data is random bytes, NaN among them
                    )
                },
            )
        ],
    )
    return str(text_format.MessageToString(config))


def dims(spec: RNNSpec, name: str) -> tuple[int, ...]:
    """Triton's dims of an input or output: without B, and -1 for T. One number a row is [1]."""
    one, two = spec.shapes(1, 1)[name][1:], spec.shapes(1, 2)[name][1:]
    return tuple(a if a == b else -1 for a, b in zip(one, two, strict=True)) or (1,)


def write_config(repository: Path, spec: RNNSpec, *, stream: bool = False) -> None:
    """Bring config.pbtxt of the variant, or of its stream model, up to date; an unchanged one is
    not touched.

    The parameter `engine` is the user's to set: one that names an engine stays as it is.
    """
    path = repository / (stream_name(spec.name) if stream else spec.name) / "config.pbtxt"
    text = render_config(spec, _engine_asked_for(path), stream=stream)
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=".staging-", delete=False
    ) as file:
        file.write(text)
    Path(file.name).chmod(0o644)
    Path(file.name).replace(path)


def _engine_asked_for(config: Path) -> str:
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as pb

    try:
        parsed = text_format.Parse(config.read_text(encoding="utf-8"), pb.ModelConfig())
    except (FileNotFoundError, UnicodeDecodeError, text_format.ParseError):
        return "auto"
    engine = str(parsed.parameters["engine"].string_value)
    return engine if engine in ENGINES else "auto"


@contextmanager
def locked(repository: Path, name: str) -> Iterator[Path]:
    """model_repository/<name>, made where it is missing, to one build at a time.

    What killed builds left there is removed, and so is a numbered folder without engines above
    the built ones: Triton serves the highest number. A folder that stays empty goes again: Triton
    would take it for a broken model.
    """
    model = repository / name
    held = _lock(model)
    try:
        for left in model.glob(".staging-*"):
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()
        for version in _numbers(model):
            if version > 1 and _is_skeleton(model / str(version)):  # a clone's 1/ stays
                shutil.rmtree(model / str(version))
        yield model
    finally:
        with suppress(OSError):
            model.rmdir()
        os.close(held)


def _lock(model: Path) -> int:
    """A file descriptor that holds the lock until it is closed, by the kernel if we are killed.

    The lock is on the folder itself: no lock file lies there for git or Triton to notice.
    """
    while True:
        model.mkdir(parents=True, exist_ok=True)
        held = os.open(model, os.O_RDONLY)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("%s: another build is at work here, waiting for it", model)
            fcntl.flock(held, fcntl.LOCK_EX)
        except OSError as error:  # NFS locks no folder
            log.warning("%s cannot be locked (%s): run one build at a time", model, error)
            return held
        if model.exists() and os.path.samestat(os.fstat(held), model.stat()):
            return held
        os.close(held)  # the other build failed and took the empty folder with it


def built_versions(model: Path) -> list[int]:
    """The version numbers under model_repository/<name> that hold engines, ascending."""
    return [n for n in _numbers(model) if (model / str(n) / CARDS).is_file()]


@contextmanager
def staged_version(repository: Path, name: str) -> Iterator[Path]:
    """A folder to fill; at the end it becomes the next version whole, or, after an exception,
    nothing.

    Its `.name` inside the `with` is temporary: ask built_versions() afterwards.
    """
    model = repository / name
    model.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=model))
    try:
        yield staging
        (staging / "model.py").write_text(model_py(name), encoding="utf-8")
        staging.chmod(0o755)
        _promote(model, staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def model_py(name: str) -> str:
    """The one line of model.py in the versions of the model of that name."""
    return MODEL_PY if variant_of(name) == name else STREAM_PY


def _promote(model: Path, staging: Path) -> None:
    taken = [n for n in _numbers(model) if not _is_skeleton(model / str(n))]
    version = max(taken, default=0) + 1
    while True:
        target = model / str(version)
        if _is_skeleton(target):
            shutil.rmtree(target)  # a clone's 1/ holds model.py and nothing that could be served
        try:
            os.rename(staging, target)  # noqa: PTH104 - refuses a folder that holds anything
            return
        except OSError:
            if not target.exists():
                raise
            version += 1  # another build was faster


def _numbers(model: Path) -> list[int]:
    return (
        sorted(int(p.name) for p in model.iterdir() if p.name.isdecimal()) if model.is_dir() else []
    )


def _is_skeleton(folder: Path) -> bool:
    return folder.is_dir() and {p.name for p in folder.iterdir()} <= {"model.py", "__pycache__"}


def prune(model: Path, keep: int) -> None:
    """Remove all but the newest version and `keep` old ones. 1/model.py is committed, so it
    stays.
    """
    versions = built_versions(model)
    for version in versions[: max(0, len(versions) - 1 - keep)]:
        folder = model / str(version)
        aside = Path(tempfile.mkdtemp(prefix=".staging-", dir=model))
        folder.rename(aside / folder.name)
        if version == 1:
            folder.mkdir()
            (folder / "model.py").write_text(model_py(model.name), encoding="utf-8")
        shutil.rmtree(aside)
