"""TritonPythonModel: requests ↔ arrays, one answer per request, never one error for all.

Triton's dynamic batcher hands over requests that wait at the same time. With lengths, those of
different T run together, padded (see batching.py); without, those of equal T.
"""

import gc
import json
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # provided by Triton's Python backend
from numpy.typing import NDArray

from looprnn import engines
from looprnn.batching import MOST_WASTE, Batch, Piece, plan, useful_steps
from looprnn.card import Cards
from looprnn.decoding import Decoder
from looprnn.errors import RequestError
from looprnn.every import Every
from looprnn.metrics import SHOWN_EVERY_S, EngineMetrics
from looprnn.watchdog import Watchdog

Arrays = dict[str, NDArray[Any]]
# Whether a request was cancelled is asked once it may have waited so long: to ask is a message to
# Triton and its answer, 0.01 to 0.1 ms. Triton itself drops those that wait in its queue.
ASK_AFTER_S = 0.01


@dataclass(slots=True)
class Asked:
    """A request on its way: answers has a part for each run that its rows were in."""

    inputs: Arrays
    wanted: frozenset[str]
    request: Any = None
    parts: list[Arrays] = field(default_factory=list)
    failure: str = ""
    failure_code: str = "INTERNAL"

    def answer(self) -> Any:
        if self.failure:
            return refusal(self.failure, self.failure_code)
        whole = self.parts[0]
        if len(self.parts) > 1:
            whole = {n: np.concatenate([part[n] for part in self.parts]) for n in self.wanted}
        return pb_utils.InferenceResponse([pb_utils.Tensor(n, whole[n]) for n in self.wanted])


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        """Load the engine that config.pbtxt's parameter `engine` names, or with `auto` the
        fastest that runs here.
        """
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        device = (
            int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else 0
        )
        parameter = config["parameters"].get("engine", {}).get("string_value", "auto")
        self._open = ExitStack()
        try:
            cards = Cards.read(folder)
            self._spec = cards.spec
            say = pb_utils.Logger.log_info
            name = engines.choose(cards, parameter, device, folder=folder, say=say)
            path = cards.engines[name].check_file(folder)
            session = engines.get(name).session(path, cards.spec, device)
            self._session = self._open.enter_context(session)
        except Exception as error:
            # Triton shows the message alone, so it must say which model.
            raise pb_utils.TritonModelException(f"{args['model_name']}: {error}") from error
        self._decode, self._batch = Decoder(self._spec), Batch(self._spec)
        self._most_waste = MOST_WASTE if self._spec.lengths else 0.0
        labels = {
            "model": args["model_name"],
            "version": args["model_version"],
            "instance": args["model_instance_name"],
        }
        gc.freeze()  # what was loaded stays: collections need not walk over it
        self._began = self._ended = float("-inf")
        self._watchdog = Watchdog(self._spec)
        self._runs = EngineMetrics(labels, name, self._spec.profile.batch.max)
        self._open.callback(Every(SHOWN_EVERY_S, self._runs.show).stop)
        pb_utils.Logger.log_info(f"{self._spec.name}: engine {name}, {path.name}")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request, in order."""
        now = time.monotonic()
        # Triton had these ready while the requests before them ran.
        oldest = self._began if now - self._ended < ASK_AFTER_S else now
        self._began = now
        answers: list[Any] = [None] * len(requests)
        asked: dict[int, Asked] = {}
        for k, request in enumerate(requests):
            try:
                inputs = self._decode({t.name(): t.as_numpy() for t in request.inputs()})
            except RequestError as error:
                answers[k] = refusal(f"bad input: {error}", "INVALID_ARG")
            else:
                asked[k] = Asked(inputs, frozenset(request.requested_output_names()), request)
        taken = list(asked.values())
        sizes = [(len(a.inputs["input"]), a.inputs["input"].shape[1]) for a in taken]
        for run in plan(sizes, self._spec.profile.batch.max, self._most_waste):
            waited = time.monotonic() - oldest > ASK_AFTER_S
            self._run(taken, still_wanted(taken, run) if waited else run)
        for k, one in asked.items():
            answers[k] = one.answer()
        self._ended = time.monotonic()
        return answers

    def _run(self, asked: Sequence[Asked], run: Sequence[Piece]) -> None:
        """Run the engine once and hand each request its share."""
        if not run:
            return
        inputs = [one.inputs for one in asked]
        wanted = frozenset().union(*(asked[k].wanted for k, _ in run))
        try:
            filled = self._batch.fill(inputs, run)
            outputs = self._compute(filled, wanted, useful_steps(inputs, run))
        except Exception as error:
            for k, _ in run:
                asked[k].failure = f"engine failed: {error}"
            return
        for k, share in self._batch.shares(outputs, inputs, run):
            asked[k].parts.append(share)

    def _compute(
        self,
        filled: Arrays,
        wanted: Collection[str],
        useful: int,
        run: Callable[[Arrays, Collection[str]], Arrays] | None = None,
    ) -> Arrays:
        """The engine's answer, watched and measured; useful: its requests' own steps."""
        rows, steps = filled["input"].shape[:2]
        begin = time.perf_counter()
        with self._watchdog.over(rows * steps):
            outputs = (run or self._session.run)(filled, wanted)
        seconds = time.perf_counter() - begin
        self._runs.observe(rows=rows, computed=rows * steps, useful=useful, seconds=seconds)
        return outputs

    def finalize(self) -> None:
        """Free the engine and all its memory."""
        self._open.close()
        # A metric tells Triton of its end through shared memory, which the stub takes away next.
        del self._runs


def still_wanted(asked: Sequence[Asked], run: Sequence[Piece]) -> list[Piece]:
    """The run without what was cancelled meanwhile."""
    for k, _ in run:
        if not asked[k].failure and asked[k].request.is_cancelled():
            asked[k].failure, asked[k].failure_code = "cancelled", "CANCELLED"
    return [piece for piece in run if not asked[piece.request].failure]


def refusal(message: str, code: str) -> Any:
    return pb_utils.InferenceResponse(
        error=pb_utils.TritonError(message, getattr(pb_utils.TritonError, code))
    )
