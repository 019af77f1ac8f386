"""What both examples need: a published package's file, and an engine made of imported weights."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from looprnn import engines, importers
from looprnn.build import build_variant
from looprnn.engines import Session
from looprnn.errors import EngineError, LoopRNNError
from looprnn.importers import Imported
from looprnn.variants import load_spec

CACHE = Path(__file__).parent / ".cache"


class NotFetched(LoopRNNError):
    """The package is not in the cache, and pip could not bring it."""


class WrongFile(LoopRNNError):
    """A package's file is not the one these examples were proved with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One wheel, pinned: only these bytes are read."""

    name: str
    version: str
    file: str
    sha256: str


def fetch(package: Package, cache: Path = CACHE, console: Console | None = None) -> Path:
    """The package's wheel in the cache; it is downloaded, not installed, when it is not there.

    Raises NotFetched, or WrongFile if its SHA-256 is another.
    """
    kept = cache / package.file
    if not kept.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            fresh = Path(folder) / package.file
            with bar(console, f"downloading {package.name} {package.version}"):
                _download(package, fresh)
            _check(package, fresh)
            fresh.replace(kept)
    _check(package, kept)
    return kept


def unpack(wheel: Path, member: str, folder: Path) -> Path:
    """One file of the wheel, written under `folder`."""
    with zipfile.ZipFile(wheel) as opened:
        return Path(opened.extract(member, folder))


@contextmanager
def built(
    imported: Imported, folder: Path, console: Console | None = None
) -> Iterator[tuple[Session, float]]:
    """The imported weights as a CPU engine, and its largest difference from the reference.

    Writes folder/variants/NAME.toml and folder/model_repository/NAME. Raises EngineError if the
    engine could not be built, or is over the tolerance.
    """
    spec = load_spec(importers.write(imported, folder / "variants"))
    engine = engines.get("onnxruntime")
    with bar(console, f"building and proving {spec.name}") as report:
        outcome, *_ = build_variant(spec, [engine], folder / "model_repository", progress=report)
    if outcome.card is None or outcome.card.difference is None:
        raise EngineError(outcome.message or f"{spec.name}: {engine.name} was not proved")
    path = folder / "model_repository" / spec.name / str(outcome.version) / engine.file
    with engine.session(path, spec) as session:
        yield session, max(outcome.card.difference.values())


@contextmanager
def working_folder(given: Path | None) -> Iterator[Path]:
    """The folder given, or one that is gone afterwards."""
    with nullcontext(str(given)) if given else tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@contextmanager
def bar(
    console: Console | None, text: str, total: int | None = None
) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar, gone when it is done; `total` None where nobody knows how long it takes.

    Yields what moves it: (phase, steps done, steps in all). Without a terminal nothing is shown.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    hidden = console is None or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        task = progress.add_task(text, total=total)
        yield lambda phase, done, steps: progress.update(
            task, description=f"{text}: {phase}", completed=done, total=steps
        )


def exit_status(work: Callable[[], None]) -> int:
    """0, or 1 with the error's message where looprnn or the example raised one on purpose."""
    try:
        work()
    except LoopRNNError as error:
        Console(stderr=True).print(
            f"[red]{type(error).__name__}[/]: {escape(str(error))}", soft_wrap=True
        )
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _download(package: Package, to: Path) -> None:
    wanted = f"{package.name}=={package.version}"
    pip = [sys.executable, "-m", "pip"]
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]
    command = [*pip, "download", "--quiet", *options, "--dest", str(to.parent), wanted]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or not to.exists():
        said = (done.stderr.strip() or "it brought another file").splitlines()[-1]
        raise NotFetched(
            f"{wanted} is not in the cache, and pip could not download it ({said}). Where there "
            f"is a network, type: python -m pip download --no-deps --only-binary=:all: "
            f"--dest {to.parent.parent} {wanted}"
        )


def _check(package: Package, path: Path) -> None:
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != package.sha256:
        raise WrongFile(
            f"{path}: its SHA-256 is {found}, wanted {package.sha256}. "
            "It is damaged or not the published file: remove it and run again"
        )
