"""EngineCard: who built this engine, for what, and how close it came to the reference.

A version directory holds engine.json: the spec, and one card for each engine file beside it.
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from looprnn.errors import EngineMismatch, EngineMissing
from looprnn.spec import RNNSpec
from looprnn.stream import variant_of

CARDS = "engine.json"
PACKAGE = Path(__file__).parent
# What decides an engine's bytes besides the spec, the weights and the libraries.
DECIDING = (
    "spec.py",
    "layer.py",
    "profile.py",
    "weights.py",
    "cells.py",
    "network*.py",
    "engines/*.py",
    "engines/fused/*.cu*",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCard:
    """One engine.

    file, sha256         the engine's file beside the card, and its digest
    spec_digest, weights_digest
                         what it was built from; where these, libraries and looprnn are equal it
                         need not be rebuilt
    libraries            name → version of what built it
    looprnn              looprnn's version and the digest of what decides the engine: maker()
    precision            what it computes in: the spec's on a GPU, always fp32 on the CPU
    made_of              what the recurrences became: "Loop", ONNX operators ("LSTM + Scan"), or the
                         fused engine's "persistent + steps"
    gpu, capabilities    the GPU it was built on and the compute capabilities it is for; a CPU's
                         are None and []
    built                date, UTC
    difference           output → largest difference from the reference (parity.difference), or
                         None where the building host cannot run the engine
    """

    engine: str
    file: str
    sha256: str
    spec_digest: str
    weights_digest: str
    libraries: dict[str, str]
    precision: str
    made_of: str
    gpu: str | None
    capabilities: list[str]
    built: str
    difference: dict[str, float] | None
    looprnn: str = ""  # of cards older than this field: rebuilt, and served until then

    def check_file(self, folder: Path) -> Path:
        """The engine's path. Raises EngineMissing or EngineMismatch if it is not the file that was
        built.
        """
        path = folder / self.file
        if not path.is_file():
            raise EngineMissing(
                f"{path}: the card names it, but it is not there. {rebuild(folder)}"
            )
        if (found := file_digest(path)) != self.sha256:
            raise EngineMismatch(
                f"{path}: {path.stat().st_size} bytes with SHA-256 {found[:12]}…, its card says "
                f"{self.sha256[:12]}…: truncated or replaced since it was built. {rebuild(folder)}"
            )
        return path

    @property
    def target(self) -> str:
        """What it was built for, in words."""
        if not self.capabilities:
            return "any CPU"
        kind = "RTX GPUs" if self.engine == "tensorrt_rtx" else "GPUs"
        return f"{self.gpu or kind} (compute capability {', '.join(self.capabilities)})"

    @property
    def worst(self) -> float | None:
        """The largest difference over all outputs; None where it could not be run."""
        return None if self.difference is None else max(self.difference.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Cards:
    """The content of engine.json."""

    spec: RNNSpec
    engines: dict[str, EngineCard]

    def write(self, folder: Path) -> None:
        content = {
            "spec": self.spec.network_dict(),
            "engines": {name: dataclasses.asdict(card) for name, card in self.engines.items()},
        }
        (folder / CARDS).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises EngineMissing if nothing was built here, EngineMismatch if the card cannot be
        understood.
        """
        path = folder / CARDS
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return cls(
                spec=RNNSpec.from_network_dict(content["spec"]),
                engines={name: EngineCard(**card) for name, card in content["engines"].items()},
            )
        except FileNotFoundError:
            raise EngineMissing(f"{folder}: no engine was built here. {rebuild(folder)}") from None
        except Exception as error:
            raise EngineMismatch(
                f"{path}: not an engine card ({error}). {rebuild(folder)}"
            ) from error


def rebuild(folder: Path) -> str:
    """What to type; a version directory lies in its model's."""
    variant = variant_of(folder.resolve().parent.name)
    return f"Build it: python build_engines.py --force --variant {variant}"


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def maker() -> str:
    """looprnn's version and a digest of its DECIDING modules: a mended looprnn is another maker."""
    modules = [path for pattern in DECIDING for path in sorted(PACKAGE.glob(pattern))]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in modules)).hexdigest()
    try:
        return f"{version('looprnn')} {digest[:16]}"
    except PackageNotFoundError:
        return f"uninstalled {digest[:16]}"
