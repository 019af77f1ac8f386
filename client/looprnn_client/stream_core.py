"""One stream, as plans: each chunk is applied once or not at all, and which of the two is known.

The server's side is Triton's sequence batcher: START with the first chunk, a correlation id with
each, END with the last. A chunk of zero steps (T = 1, lengths = [0]) changes nothing: with it the
state is asked for, and END is sent.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import numpy as np

from looprnn_client.core import AGAIN, Core
from looprnn_client.drive import Plan
from looprnn_client.errors import BadInput, LoopRNNClientError, StreamLost
from looprnn_client.explain import (
    BAD_INPUT,
    ENGINE_FAILED,
    STREAM_REFUSED,
    SUFFIX,
    is_stream_gone,
)
from looprnn_client.result import Result
from looprnn_client.signature import Signature
from looprnn_client.state import StreamState
from looprnn_client.timing import enter, left, pauses, seconds
from looprnn_client.transport import Call, Failure, Tensor

T = TypeVar("T")
NOT_APPLIED = (BAD_INPUT, ENGINE_FAILED, STREAM_REFUSED)  # the server says so itself


class StreamCore:
    """What `Stream` and `AsyncStream` share.

    checkpoint: where the stream stood after its last answered chunk; kept when resume is asked for,
    and what a stream made by `Client.resume` begins with.
    """

    def __init__(
        self,
        core: Core,
        model: str | None,
        *,
        outputs: Sequence[str] | None = None,
        resume: bool = False,
        state: StreamState | None = None,
    ) -> None:
        self.core = core
        self.model = model or stream_name(core.model)
        self.outputs, self.resume, self.checkpoint = outputs, resume, state
        self.steps = 0 if state is None else state.steps
        self._id = uuid.uuid4().hex
        self._started = False
        self._ended = False
        self._lost = ""
        self._gate = core.waits.gate()  # the chunks of one stream go one after another

    def send(self, chunk: object, timeout_s: float | None = None) -> Plan[Result]:
        """Applies one chunk, [1, T, I] or ids [1, T], and gives its answer."""

        def call(deadline: float) -> Plan[Result]:
            signature = yield from self._read(deadline)
            names = signature.check_outputs(self.outputs)
            arrays = signature.check_inputs(chunk, None, None, None)
            batch, steps = arrays["input"].shape[:2]
            if batch != 1:
                raise BadInput(
                    f"the chunk has {batch} rows, but a stream is one sequence: send [1, T, ...], "
                    "and open a stream for each row"
                )
            every = dict.fromkeys((*names, *(states(signature) if self.resume else ())))
            shapes = {name: signature.shape(name, 1, steps) for name in every}
            whole = yield from self._apply(arrays, shapes, deadline)
            self.steps += steps
            if self.resume:
                self.checkpoint = self._state(whole)
            return Result(**{name: getattr(whole, name) for name in names})

        return (yield from self._alone(call, timeout_s))

    def state(self, timeout_s: float | None = None) -> Plan[StreamState]:
        """Where the stream stands; the stream goes on."""

        def call(deadline: float) -> Plan[StreamState]:
            if self.checkpoint is not None and (self.resume or not self._started):
                return self.checkpoint  # nothing was answered since
            signature = yield from self._read(deadline)
            shapes = {name: signature.shape(name, 1, 1) for name in states(signature)}
            state = self._state((yield from self._apply(nothing(signature), shapes, deadline)))
            if self.resume:
                self.checkpoint = state
            return state

        return (yield from self._alone(call, timeout_s))

    def end(self) -> Plan[None]:
        """Frees the server's slot. Nothing is raised: every answer was given, and a server that
        cannot be told forgets an idle stream by itself."""
        if self._ended:
            return
        self._ended = True
        if not self._started or self.core.closed:
            return
        deadline = time.monotonic() + self.core.timeout_s
        with suppress(Failure):
            yield from enter(self._gate, deadline, "the last chunk of this stream is not done")
            try:
                wire, request = self.core.transport, self._farewell()
                yield lambda: wire.chunk(request, left(deadline))
            finally:
                self._gate.leave()

    def _alone(self, call: Callable[[float], Plan[T]], timeout_s: float | None) -> Plan[T]:
        """call(deadline), alone among the calls of this stream."""
        limit = self.core.timeout_s if timeout_s is None else seconds(timeout_s)

        def gated(deadline: float) -> Plan[T]:
            yield from enter(self._gate, deadline, "an earlier chunk of this stream is not done")
            try:
                self._refuse_if_over()
                return (yield from call(deadline))
            finally:
                self._gate.leave()

        return (yield from self.core.within(self.model, limit, gated))

    def _read(self, deadline: float) -> Plan[Signature]:
        """The model's signature, which must hold streams and fit the state to go on from."""
        signature = yield from self.core.signature(self.model, deadline, patient=self.resume)
        if not signature.streaming:
            raise BadInput(
                f"{self.model} holds no streams; build its variant with streaming = true, which "
                f"makes {stream_name(self.model)!r}, or run whole sequences with client.infer"
            )
        if self.checkpoint is not None and not self._started:
            h, c = self.checkpoint.h_n, self.checkpoint.c_n
            if signature.has_cell and c is None:
                raise BadInput(f"the state has no c_n, but {self.model} has a cell state")
            signature.check_inputs(nothing(signature)["input"], h, c, None)
        self._signature = signature
        return signature

    def _apply(
        self, arrays: dict[str, Tensor], shapes: dict[str, tuple[int, ...]], deadline: float
    ) -> Plan[Result]:
        """One chunk's answer: the stream is behind the chunk then. When something is raised, it is
        before it, or lost."""
        wire = self.core.transport
        for pause in pauses(None if self.resume else 0):
            request, remaining = self._request(arrays, tuple(shapes)), left(deadline)
            try:
                answer = yield partial(wire.chunk, request, remaining)
                result = self.core.result(self.model, answer, shapes)
            except Failure as failure:
                refused = failure.words.startswith(NOT_APPLIED)
                if refused and self._started:
                    raise  # it was not applied
                gone, broken = self._started and is_stream_gone(failure), failure.code in AGAIN
                self._break_off("" if refused else failure.words, tell=not gone and not broken)
                if pause is None or not (gone or broken) or self.core.closed:
                    raise
                if time.monotonic() + pause >= deadline:
                    raise
                if not gone:
                    yield partial(self.core.waits.sleep, pause)
            except BaseException as error:  # cancelled, or an answer that breaks the contract
                words = f"a chunk's answer did not arrive ({type(error).__name__})"
                self._break_off(words, tell=True)
                raise
            else:
                self._started = True
                return result
        raise AssertionError("the last pause is None")

    def _request(self, arrays: dict[str, Tensor], names: tuple[str, ...]) -> Any:
        """START goes with the first chunk, and with it the state to go on from, if any."""
        if not self._started and self.checkpoint is not None:
            arrays = arrays | {"h_0": self.checkpoint.h_n}
            if self.checkpoint.c_n is not None:
                arrays["c_0"] = self.checkpoint.c_n
        return self.core.transport.prepare(
            Call(
                model=self.model,
                inputs=arrays,
                outputs=names,
                sequence=self._id,
                start=not self._started,
            )
        )

    def _farewell(self) -> Any:
        return self.core.transport.prepare(
            Call(
                model=self.model,
                inputs=nothing(self._signature),
                outputs=("h_n",),
                sequence=self._id,
                end=True,
            )
        )

    def _break_off(self, why: str, *, tell: bool) -> None:
        """What comes next is another sequence to the server: nothing late can reach it.

        It begins where this one was last known to be; where that is not known, the stream is lost.
        """
        if tell:
            self.core.transport.forget(self._farewell())
        if self._started and not self.resume:
            self._lost = why
        self._id, self._started = uuid.uuid4().hex, False

    def _state(self, result: Result) -> StreamState:
        assert result.h_n is not None
        return StreamState(model=self.model, steps=self.steps, h_n=result.h_n, c_n=result.c_n)

    def _refuse_if_over(self) -> None:
        if self._ended:
            raise LoopRNNClientError(f"this stream of {self.model} has ended; open a new one")
        if self._lost:
            raise StreamLost(
                f"this stream of {self.model} is lost: {self._lost}. Open a new one, from a saved "
                "state with client.resume(state); stream(..., resume=True) does so by itself"
            )


def stream_name(model: str) -> str:
    """The model that holds the streams of this one."""
    return model if model.endswith(SUFFIX) else model + SUFFIX


def states(signature: Signature) -> tuple[str, ...]:
    return ("h_n", "c_n") if signature.has_cell else ("h_n",)


def nothing(signature: Signature) -> dict[str, Tensor]:
    """A chunk of zero steps."""
    shape = signature.shape("input", 1, 1)
    silence: Tensor = np.zeros(shape, np.float32)
    if signature.vocabulary is not None:
        silence = np.zeros(shape, np.int32)
    return {"input": silence, "lengths": np.zeros((1, 1), np.int32)}
