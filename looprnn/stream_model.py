"""TritonPythonModel of a stream model: chunks of many streams run as one, each from its own state.

Triton's sequence batcher (strategy Oldest) hands over at most one chunk of a stream at a time and
gives its correlation id and its START and END. An error changes no state: the chunk did not happen.
Only END frees its stream whatever becomes of the chunk, since Triton has forgotten it by then.
"""

import json
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import triton_python_backend_utils as pb_utils  # provided by Triton's Python backend

from looprnn import states, triton_model
from looprnn.batching import Piece, plan, useful_steps
from looprnn.errors import RequestError, StreamRefused, StreamUnknown
from looprnn.every import Every
from looprnn.slots import SlotTable, StreamId
from looprnn.stream_metrics import StreamMetrics
from looprnn.triton_model import Arrays, Asked, refusal

# A state outlives Triton's interest in it, so that none is gone that a chunk in the queue needs.
TTL_IDLES = 2
START = pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_START
END = pb_utils.TRITONSERVER_REQUEST_FLAG_SEQUENCE_END


@dataclass(slots=True, kw_only=True)
class Chunk(Asked):
    """A chunk on its way; slot is None where the whole stream is this chunk."""

    stream: StreamId
    start: bool
    end: bool
    slot: int | None


class TritonPythonModel(triton_model.TritonPythonModel):
    def initialize(self, args: dict[str, str]) -> None:
        """Load the engine, and make the slot table that config.pbtxt's parameters describe."""
        super().initialize(args)
        parameters = json.loads(args["model_config"])["parameters"]
        try:
            idle_s = float(parameters["stream_idle_s"]["string_value"])
            capacity = int(parameters["stream_capacity"]["string_value"])
        except (KeyError, ValueError) as error:
            super().finalize()
            raise pb_utils.TritonModelException(
                f"{args['model_name']}: config.pbtxt lacks how streams are kept ({error}). "
                f"Render it again: python build_engines.py --variant {self._spec.name}"
            ) from error
        self._table = SlotTable(capacity=capacity, ttl_s=TTL_IDLES * idle_s)
        try:
            beside = states.beside(self._session, self._spec, capacity)
            self._states = self._open.enter_context(beside)
        except Exception as error:
            super().finalize()
            raise pb_utils.TritonModelException(f"{args['model_name']}: {error}") from error
        pb_utils.Logger.log_info(
            f"{args['model_name']}: {capacity} slots in {self._states.place}, "
            f"{self._states.nbytes / 2**20:.1f} MiB"
        )
        self._metrics = StreamMetrics(
            {
                "model": args["model_name"],
                "version": args["model_version"],
                "instance": args["model_instance_name"],
            }
        )
        self._table_lock = threading.Lock()
        sweeper = Every(min(idle_s, 1.0), self._sweep)
        self._open.callback(sweeper.stop)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request, in order.

        Whether one was cancelled is not asked: that costs as much as the chunk (0.1 ms), and what
        came this far may as well be done.
        """
        answers: list[Any] = [None] * len(requests)
        with self._table_lock:
            for turn in turns([request.correlation_id() for request in requests]):
                chunks: dict[int, Chunk] = {}
                for k in turn:
                    try:
                        chunks[k] = self._admit(requests[k])
                    except StreamRefused as error:
                        answers[k] = refusal(str(error), "UNAVAILABLE")
                    except StreamUnknown as error:
                        answers[k] = refusal(str(error), "INVALID_ARG")
                    except RequestError as error:
                        answers[k] = refusal(f"bad input: {error}", "INVALID_ARG")
                taken = list(chunks.values())
                sizes = [(1, chunk.inputs["input"].shape[1]) for chunk in taken]
                for run in plan(sizes, self._spec.profile.batch.max, self._most_waste):
                    self._advance(taken, run)
                for k, chunk in chunks.items():
                    answers[k] = chunk.answer()
            self._metrics.show(self._table)
        return answers

    def _admit(self, request: Any) -> Chunk:
        """Raises RequestError."""
        stream, flags = request.correlation_id(), request.flags()
        start, end = bool(flags & START), bool(flags & END)
        if not stream:  # Triton's warm-up: it lets no client send a chunk without an id
            start = end = True
        try:
            inputs = self._decode({t.name(): t.as_numpy() for t in request.inputs()})
            check_chunk(inputs, start)
            slot = self._table.admit(stream, start=start, end=end)
        except RequestError:
            if end:
                self._table.end(stream)
            raise
        wanted = frozenset(request.requested_output_names())
        return Chunk(inputs, wanted, stream=stream, start=start, end=end, slot=slot)

    def _advance(self, asked: Sequence[Chunk], run: Sequence[Piece]) -> None:
        """Run the engine once, from the streams' states to their next."""
        chunks = [asked[k] for k, _ in run]
        inputs = [chunk.inputs for chunk in asked]
        begin = [self._first(chunk) for chunk in chunks]
        end = [-1 if chunk.slot is None else chunk.slot for chunk in chunks]
        names = self._spec.input_names if min(begin) < 0 else ("input", "lengths")
        try:
            filled = self._batch.fill(inputs, run, names)
            wanted = frozenset().union(*(c.wanted for c in chunks))
            from_slots = partial(self._states.run, begin=begin, end=end)
            outputs = self._compute(filled, wanted, useful_steps(inputs, run), from_slots)
        except Exception as error:
            for chunk in chunks:
                chunk.failure = f"engine failed: {error}"
                self._table.drop(chunk.stream, chunk.slot)
                if chunk.end:
                    self._table.end(chunk.stream)
            return
        for chunk in chunks:
            if chunk.slot is not None:
                self._table.keep(chunk.stream, chunk.slot, start=chunk.start)
            if chunk.end:
                self._table.end(chunk.stream)
        for k, share in self._batch.shares(outputs, inputs, run):
            asked[k].parts.append(share)

    def _first(self, chunk: Chunk) -> int:
        """The slot in which its first state lies; -1 where the chunk brings it."""
        if any(f"{s}_0" in chunk.inputs for s in self._spec.states):
            return -1
        return self._table.capacity if chunk.start or chunk.slot is None else chunk.slot

    def finalize(self) -> None:
        super().finalize()
        del self._metrics

    def _sweep(self) -> None:
        with self._table_lock:
            self._table.sweep()
            self._metrics.show(self._table)


def check_chunk(inputs: Arrays, start: bool) -> None:
    """Raises RequestError for a chunk that is not one row, or brings states without START."""
    if (rows := len(inputs["input"])) != 1:
        raise RequestError(f"input has B = {rows} rows, a chunk is one row of its stream")
    if states := [name for name in inputs if name.endswith("_0") and not start]:
        raise RequestError(
            f"{' and '.join(states)} without START: a live stream goes on from its own states"
        )


def turns(streams: Sequence[StreamId]) -> list[list[int]]:
    """The chunks' indices, such that a turn has one of each stream at most, in their order."""
    found: list[list[int]] = []
    chunks_of: Counter[StreamId] = Counter()
    for k, stream in enumerate(streams):
        if chunks_of[stream] == len(found):
            found.append([])
        found[chunks_of[stream]].append(k)
        chunks_of[stream] += 1
    return found
