"""TritonPythonModel: requests ↔ arrays, one answer per request, never one error for all.

Triton's dynamic batcher hands over requests of one shape; those of one length T are joined into one
engine run. Inputs that hold NaN or Inf are refused: engines differ in what they turn them into.
"""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils  # provided by Triton's Python backend
from numpy.typing import NDArray

from looprnn import engines
from looprnn.card import Cards
from looprnn.errors import RequestError
from looprnn.spec import RNNSpec

Arrays = dict[str, NDArray[Any]]


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        """Load the engine that config.pbtxt's parameter `engine` names, or with `auto` the first
        that runs here.
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
            name = engines.choose(cards, parameter, device)
            path = cards.engines[name].check_file(folder)
            session = engines.get(name).session(path, cards.spec, device)
            self._session = self._open.enter_context(session)
        except Exception as error:
            # Triton shows the message alone, so it must say which model.
            raise pb_utils.TritonModelException(f"{args['model_name']}: {error}") from error
        pb_utils.Logger.log_info(f"{self._spec.name}: engine {name}, {path.name}")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request, in order."""
        answers: list[Any] = [None] * len(requests)
        batches: dict[int, list[tuple[int, Arrays]]] = {}  # by T
        for k, request in enumerate(requests):
            try:
                inputs = decode(request, self._spec)
                batches.setdefault(inputs["input"].shape[1], []).append((k, inputs))
            except RequestError as error:
                answers[k] = refusal(f"bad input: {error}", "INVALID_ARG")
        for group in batches.values():
            for batch in cut(group, self._spec.profile.batch.max):
                self._answer(requests, batch, answers)
        return answers

    def _answer(
        self, requests: Sequence[Any], batch: list[tuple[int, Arrays]], answers: list[Any]
    ) -> None:
        """Run one batch and put each request's rows into its answer."""
        try:
            outputs = self._session.run(join([inputs for _, inputs in batch]))
        except Exception as error:
            for k, _ in batch:
                answers[k] = refusal(f"engine failed: {error}", "INTERNAL")
            return
        row = 0
        for k, inputs in batch:
            rows = slice(row, row := row + len(inputs["input"]))
            wanted = requests[k].requested_output_names()
            answers[k] = pb_utils.InferenceResponse(
                [pb_utils.Tensor(name, outputs[name][rows]) for name in wanted]
            )

    def finalize(self) -> None:
        """Free the engine and all its memory."""
        self._open.close()


def decode(request: Any, spec: RNNSpec) -> Arrays:
    """The request's inputs as arrays, defaults filled in. Raises RequestError in words."""
    given: Arrays = {}
    for name in spec.input_names:
        tensor = pb_utils.get_input_tensor_by_name(request, name)
        if tensor is not None:
            given[name] = tensor.as_numpy()
    if "input" not in given:
        raise RequestError("input is missing")
    batch, time = size(given["input"], spec)
    if "lengths" in given and given["lengths"].shape == (batch, 1):
        given["lengths"] = given["lengths"][:, 0]  # Triton's dims cannot be empty
    shapes = spec.shapes(batch, time)
    for name, array in given.items():
        if array.shape != shapes[name]:
            raise RequestError(
                f"{name} has the shape {list(array.shape)}, wanted {list(shapes[name])}"
            )
        if array.dtype != spec.dtype(name):
            raise RequestError(f"{name} is {array.dtype}, wanted {spec.dtype(name).__name__}")
        check_values(name, array, time if name == "lengths" else (spec.vocabulary or 0) - 1)
    return given if len(given) == len(spec.input_names) else spec.defaults(batch, time) | given


def size(x: NDArray[Any], spec: RNNSpec) -> tuple[int, int]:
    """B and T of the input. Raises RequestError if it has none, or T is outside the profile."""
    rank = len(spec.shapes(1, 1)["input"])
    if x.ndim != rank:
        wanted = "[B, T]" if rank == 2 else f"[B, T, {spec.input_size}]"
        raise RequestError(f"input has the shape {list(x.shape)}, wanted {wanted}")
    limit = spec.profile.time
    if not limit.min <= x.shape[1] <= limit.max:
        raise RequestError(
            f"input has T = {x.shape[1]} steps, this engine takes {limit.min} to {limit.max}"
        )
    return x.shape[0], x.shape[1]


def check_values(name: str, array: NDArray[Any], most: int) -> None:
    """Floats are finite; integers are 0..most. Raises RequestError with the first that is not."""
    whole = array.dtype == np.int32
    good = (array >= 0) & (array <= most) if whole else np.isfinite(array)
    if not good.all():
        where = np.argwhere(~good)[0].tolist()
        wanted = f"wanted 0 to {most}" if whole else "only finite numbers are served"
        raise RequestError(f"{name} holds {array[tuple(where)]} at {where}; {wanted}")


def cut(group: list[tuple[int, Arrays]], most: int) -> list[list[tuple[int, Arrays]]]:
    """Runs of whole requests of at most `most` rows each; Triton refuses a single request above
    that.
    """
    runs: list[list[tuple[int, Arrays]]] = []
    room = 0
    for k, inputs in group:
        rows = len(inputs["input"])
        if rows > room:
            runs.append([])
            room = most
        runs[-1].append((k, inputs))
        room -= rows
    return runs


def join(requests: list[Arrays]) -> Arrays:
    """The rows of several requests below each other; those of a single one uncopied."""
    if len(requests) == 1:
        return requests[0]
    return {name: np.concatenate([r[name] for r in requests]) for name in requests[0]}


def refusal(message: str, code: str) -> Any:
    return pb_utils.InferenceResponse(
        error=pb_utils.TritonError(message, getattr(pb_utils.TritonError, code))
    )
