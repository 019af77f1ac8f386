"""One module per engine, the same verbs in each: build(...) writes a file, session(...).run(...)
answers.

| name         | file           | built on              | runs on                             |
|--------------|----------------|-----------------------|-------------------------------------|
| tensorrt     | model.plan     | a host with the GPU   | the GPU family it was built on      |
| tensorrt_rtx | model.rtx.plan | any host, GPU or none | RTX GPUs, capability 8.x and 12.x   |
| fused        | model.fused    | any host, GPU or none | capability 9.0; from 8.0, slower    |
| onnxruntime  | model.onnx     | any host              | any CPU                             |
"""

import importlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from looprnn.card import Cards, EngineCard
from looprnn.errors import EngineError, EngineMissing
from looprnn.spec import RNNSpec
from looprnn.weights import Weights

log = logging.getLogger("looprnn.engines")
Arrays = Mapping[str, NDArray[Any]]
Progress = Callable[[str, int, int], None]  # phase, steps done, steps in all

# In order of preference: what `auto` takes first where several can run.
ENGINES: Final = {
    "tensorrt": ("looprnn.engines.tensorrt", "looprnn[gpu]"),
    "tensorrt_rtx": ("looprnn.engines.tensorrt", "looprnn[rtx]"),
    "fused": ("looprnn.engines.fused", "looprnn[fused]"),
    "onnxruntime": ("looprnn.engines.onnxruntime", "looprnn[onnxruntime]"),
}


class Session(Protocol):
    """A loaded engine: use it in a `with`, and from one thread at a time."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def run(
        self, inputs: Arrays, wanted: Collection[str] | None = None
    ) -> dict[str, NDArray[np.float32]]:
        """Every input of the spec → the wanted outputs, by default all; shapes as in
        RNNSpec.shapes.

        Inputs are C-contiguous and within the profile. The answers are the caller's to keep.
        """
        ...


class States(Protocol):
    """The states of streams in slots, from one run of a session to the next; used like it.

    Slots are 0 to capacity - 1. One more, `capacity`, is for reading: h_0 and c_0 of the spec.
    place and nbytes say where they lie, in words, and how much memory they take.
    """

    @property
    def place(self) -> str: ...

    @property
    def nbytes(self) -> int: ...

    def run(
        self, inputs: Arrays, wanted: Collection[str], begin: Sequence[int], end: Sequence[int]
    ) -> dict[str, NDArray[np.float32]]:
        """Session.run of B rows, from slots to slots; at least the wanted outputs.

        Row b begins at the state in slot begin[b], or with -1 at its h_0 and c_0, which may be
        missing where no row does; it leaves its last state in slot end[b], or with -1 nowhere. Rows
        of no step end as they began to the last bit. No slot has changed where this raises.
        """
        ...


@runtime_checkable
class KeepsStates(Protocol):
    """A session that keeps the states of streams where it computes."""

    def states(self, capacity: int) -> AbstractContextManager[States]:
        """Slots for so many streams, the session's own memory; closed before it is."""
        ...


class Engine(ABC):
    """How one kind of engine is built and loaded."""

    name: str
    file: str

    @abstractmethod
    def libraries(self) -> dict[str, str]:
        """Name → version of what builds and runs it."""

    @abstractmethod
    def cannot_build(self) -> str | None:
        """Why this host cannot build it, in words; None if it can."""

    @abstractmethod
    def cannot_run(self, card: EngineCard, device: int = 0) -> str | None:
        """Why this host cannot run the engine of this card, in words; None if it can."""

    @abstractmethod
    def build(
        self, spec: RNNSpec, weights: Weights, path: Path, *, progress: Progress, workspace: int
    ) -> dict[str, Any]:
        """Write the engine to `path`; answer the card's gpu, capabilities, precision
        and made_of.

        workspace is TensorRT's, in bytes. Raises EngineError.
        """

    def plan(self, path: Path) -> list[dict[str, Any]]:
        """How the engine at `path` will run, a row for each part: layer, batch (the least and the
        most), way, and what else it can tell. Raises EngineError.
        """
        return []

    @abstractmethod
    def session(self, path: Path, spec: RNNSpec, device: int = 0) -> Session:
        """Load the engine at `path`. Raises EngineError."""


def get(name: str) -> Engine:
    """The engine of that name. Raises EngineMissing if it is unknown or its library is not
    installed.
    """
    if name not in ENGINES:
        raise EngineMissing(f"no engine is called {name!r}; there are {', '.join(ENGINES)}")
    module, extra = ENGINES[name]
    try:
        engine: Engine = importlib.import_module(module).engine(name)
    except ImportError as error:
        raise EngineMissing(
            f"{name} is not installed here ({error}). Type: pip install '{extra}'"
        ) from error
    return engine


def cannot_run(name: str, card: EngineCard, device: int = 0) -> str | None:
    """Engine.cannot_run, with a missing library as one more reason."""
    try:
        return get(name).cannot_run(card, device)
    except EngineMissing as error:
        return str(error)


def choose(
    cards: Cards,
    wanted: str,
    device: int = 0,
    *,
    folder: Path | None = None,
    say: Callable[[str], None] = log.info,
) -> str:
    """The engine to serve: the wanted one, or for "auto" the first of ENGINES that was built and
    runs here.

    With the version's folder, "auto" on a host with a GPU times all that run here on a typical
    request, says the table and takes the fastest. Raises EngineMissing, or EngineError that says
    why each candidate cannot run. Never falls back silently.
    """
    variant = cards.spec.name
    built = [name for name in ENGINES if name in cards.engines]
    asked = f"config.pbtxt asks for the engine {wanted!r}"
    if wanted not in ("auto", *ENGINES):
        raise EngineMissing(f"{asked}; there are: {', '.join(('auto', *ENGINES))}. Write one there")
    if wanted not in ("auto", *built):
        raise EngineMissing(
            f'{asked}; built are: {", ".join(built) or "none"}. Write "auto" there, or build it: '
            f"python build_engines.py --variant {variant} --engine {wanted}"
        )
    candidates = built if wanted == "auto" else [wanted]
    reasons = {name: cannot_run(name, cards.engines[name], device) for name in candidates}
    able = [name for name, reason in reasons.items() if reason is None]
    on_gpu = any(cards.engines[name].capabilities for name in able)
    if folder is not None and len(able) > 1 and on_gpu:
        from looprnn.engines import fastest

        found = fastest.timed(cards, folder, able, device)
        say(fastest.table(cards, found))
        seconds = {name: value for name, value in found.items() if isinstance(value, float)}
        # If none answers, the first one's own error says why better than this could.
        return min(seconds, key=lambda name: seconds[name], default=able[0])
    if able:
        return able[0]
    others = [name for name in built if name not in reasons]
    if can := [name for name in others if cannot_run(name, cards.engines[name], device) is None]:
        raise EngineError(
            f"{asked}, which cannot run here: {reasons[wanted]}. {' and '.join(can)} can: write "
            '"auto" there, which takes what runs'
        )
    raise EngineError(
        f"no engine of {variant} runs here. {'; '.join(f'{n}: {r}' for n, r in reasons.items())}. "
        f"Build one here: python build_engines.py --variant {variant}"
    )
