"""mirror: model_repository/<name>_stream follows the variant's newest version.

Its versions hold copies of the variant's engines and cards, which were proved there; they are
numbered on their own, appear whole, and are pruned as the variant's are.
"""

import logging
import shutil
from pathlib import Path

from looprnn import repository
from looprnn.card import CARDS, Cards
from looprnn.errors import EngineError
from looprnn.spec import RNNSpec
from looprnn.stream import stream_name

log = logging.getLogger(__name__)


def mirror(folder: Path, spec: RNNSpec, keep: int) -> tuple[int, bool] | None:
    """Bring the variant's stream model in `folder` up to date: its newest version, and whether that
    is new. None if the variant does not stream (any more): a stream model of it is removed.

    To be called with the variant's folder locked. Raises EngineError where a model of that name is
    not looprnn's.
    """
    model = folder / stream_name(spec.name)
    if not spec.streaming:
        if _is_stream_model(model):
            log.warning("%s: removed, since %s has no streaming = true", model, spec.name)
            with repository.locked(folder, model.name):
                for path in model.iterdir():
                    remove = shutil.rmtree if path.is_dir() else Path.unlink
                    remove(path)
        return None
    if (model / "config.pbtxt").exists() and not _is_stream_model(model):
        raise EngineError(
            f"{model}: a model of that name is there, and looprnn did not build it. Rename it, or "
            f"leave streaming out of {spec.name}.toml"
        )
    newest = max(repository.built_versions(folder / spec.name), default=None)
    if newest is None:
        return None
    source = folder / spec.name / str(newest)
    with repository.locked(folder, model.name):
        own = max(repository.built_versions(model), default=None)
        if own is not None and _is_copy(source, model / str(own)):
            repository.write_config(folder, spec, stream=True)
            return own, False
        with repository.staged_version(folder, model.name) as staging:
            shutil.copy2(source / CARDS, staging)
            for card in Cards.read(source).engines.values():
                shutil.copy2(source / card.file, staging)
        repository.write_config(folder, spec, stream=True)
        repository.prune(model, keep)
        return max(repository.built_versions(model)), True


def _is_copy(source: Path, copy: Path) -> bool:
    """Whether a version holds these cards, and the engines they name whole."""
    if (source / CARDS).read_bytes() != (copy / CARDS).read_bytes():
        return False
    try:
        for card in Cards.read(copy).engines.values():
            card.check_file(copy)
    except EngineError:
        return False
    return True


def _is_stream_model(model: Path) -> bool:
    """Not a user's own model that happens to have such a name; the images hold a config alone."""
    config = model / "config.pbtxt"
    if config.is_file() and 'key: "stream_capacity"' in config.read_text(encoding="utf-8"):
        return True
    return any(path.read_text() == repository.STREAM_PY for path in model.glob("*/model.py"))
