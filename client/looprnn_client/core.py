"""What every call does, as plans that `drive.py` runs: checked, sent, tried again, explained.

B batch, T time, I input size, N and H a state's recurrences and their size (see `signature`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np

from looprnn_client.drive import Plan, Waits
from looprnn_client.errors import BadInput, LoopRNNClientError, ServerError
from looprnn_client.explain import explain
from looprnn_client.memory import Arena, Loan
from looprnn_client.regions import Region
from looprnn_client.result import Result
from looprnn_client.signature import Signature
from looprnn_client.timing import count, enter, left, pauses, seconds
from looprnn_client.transport import (
    Answer,
    Array,
    AsyncTransport,
    Call,
    Code,
    Failure,
    ModelState,
    Transport,
)

T = TypeVar("T")
Carry = Callable[[Callable[[], Any]], Answer]

# What may be tried again: nothing was computed, or it was and nobody saw it. A network is a pure
# function of its call, so a second run of it harms nobody; a time that is up, a refusal and an
# engine that failed would only be met again.
AGAIN = (Code.BROKEN, Code.UNAVAILABLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A checked call, its request built: all that is left is to send it, any number of times."""

    request: Any
    loan: Loan | None  # the shared memory that the request is about
    deadline: float
    timeout_s: float
    shapes: dict[str, tuple[int, ...]]  # of the outputs asked for


class Core:
    """One server and the models on it that a client has met."""

    def __init__(
        self,
        url: str,
        model: str,
        transport: Transport | AsyncTransport,
        waits: Waits,
        *,
        timeout_s: float,
        retries: int,
        make_region: Callable[[int], Region] | None = None,
    ) -> None:
        self.url, self.model, self.transport, self.waits = url, model, transport, waits
        self.timeout_s, self.retries = seconds(timeout_s), count(retries)
        self.arena = make_region and Arena(url, transport, waits, make_region)
        self.closed = False
        self._signatures: dict[str, Signature] = {}
        self._reading = waits.gate()

    def infer(self, *arguments: Any, **options: Any) -> Plan[Result]:
        """prepare, then send."""
        ready = yield from self.prepare(*arguments, **options)
        return (yield from self.send(ready))

    def prepare(
        self,
        x: object,
        h_0: object = None,
        c_0: object = None,
        *,
        lengths: object = None,
        outputs: Sequence[str] | None = None,
        timeout_s: float | None = None,
    ) -> Plan[Ready]:
        """Everything that can be refused before sending; what is built shares no memory with x."""
        limit = self.timeout_s if timeout_s is None else seconds(timeout_s)

        def call(deadline: float) -> Plan[Ready]:
            signature = yield from self.signature(self.model, deadline)
            if signature.streaming:
                raise BadInput(
                    f"{self.model} holds streams, and this is a whole sequence; call "
                    f"client.stream(), or infer on {self.model.removesuffix('_stream')!r}"
                )
            names = signature.check_outputs(outputs)
            arrays = signature.check_inputs(x, h_0, c_0, lengths)
            batch, steps = arrays["input"].shape[:2]
            request, loan = Call(model=self.model, inputs=arrays, outputs=names), None
            shapes = {name: signature.shape(name, batch, steps) for name in names}
            if self.arena is None:
                request = self.transport.prepare(request)
            else:
                loan = yield from self.arena.lend(request, shapes, partial(left, deadline))
            return Ready(
                request=request, loan=loan, deadline=deadline, timeout_s=limit, shapes=shapes
            )

        return (yield from self.within(self.model, limit, call))

    def send(self, ready: Ready, carry: Carry | None = None) -> Plan[Result]:
        """One request, until it is answered or may not be tried again.

        carry: waits for what it starts, and may be made to stop by another thread.
        """
        wire = self.transport

        def call(deadline: float) -> Plan[Result]:
            def ask(request: Any) -> Plan[Answer]:
                def step() -> Any:
                    if carry is None:
                        return wire.infer(request, left(deadline))
                    return carry(lambda: cast(Transport, wire).start(request, left(deadline)))

                return self.again(deadline, step)

            def result(answer: Answer) -> Result:
                return self.result(self.model, answer, ready.shapes)

            if self.arena is None or ready.loan is None:
                return result((yield from ask(ready.request)))
            return (
                yield from self.arena.collect(
                    ready.loan, ask, ready.shapes, result, partial(left, deadline)
                )
            )

        return (yield from self.within(self.model, ready.timeout_s, call, ready.deadline))

    def discard(self, ready: Ready) -> None:
        """What was never sent gives its memory back."""
        if self.arena is not None and ready.loan is not None:
            self.arena.give(ready.loan)

    def close(self) -> Plan[None]:
        """Takes the shared memory back from the server, and ends the connection; a second close
        does nothing."""
        closed, self.closed = self.closed, True
        if closed:
            return
        try:
            if self.arena is not None:
                yield from self.arena.close(self.timeout_s)
        finally:
            yield self.transport.close

    def read_signature(self) -> Plan[Signature]:
        """The client's own model."""
        return (
            yield from self.within(
                self.model, self.timeout_s, lambda deadline: self.signature(self.model, deadline)
            )
        )

    def signature(self, model: str, deadline: float, *, patient: bool = False) -> Plan[Signature]:
        """From the server at first use, by one caller at a time."""
        known = self._signatures.get(model)
        if known is not None:
            return known
        yield from enter(self._reading, deadline, "another call is still reading the model")
        try:
            known = self._signatures.get(model)
            if known is None:
                config = yield from self.again(
                    deadline, lambda: self.transport.config(model, left(deadline)), patient
                )
                if config is None:  # Triton's metrics port says yes to any GET
                    raise Failure(Code.UNREACHABLE, "it says nothing when asked for the model")
                known = self._signatures[model] = Signature.from_config(model, config)
            return known
        finally:
            self._reading.leave()

    def within(
        self,
        model: str,
        timeout_s: float,
        call: Callable[[float], Plan[T]],
        deadline: float | None = None,
    ) -> Plan[T]:
        """call(deadline), with every failure explained and the model read anew after it."""
        self.refuse_if_closed()
        if deadline is None:
            deadline = time.monotonic() + timeout_s
        try:
            return (yield from call(deadline))
        except Failure as failure:
            self._signatures.pop(model, None)
            self.refuse_if_closed(failure)
            error = yield from explain(
                failure,
                url=self.url,
                model=model,
                timeout_s=timeout_s,
                index=states(self.transport, deadline),
            )
            raise error from failure
        except LoopRNNClientError:
            self._signatures.pop(model, None)  # it may have been replaced by one that would agree
            raise

    def again(self, deadline: float, step: Callable[[], Any], patient: bool = False) -> Plan[Any]:
        """The step's answer, tried again after a pause where that is safe and there is time;
        patient: until then, whatever `retries` says."""
        for pause in pauses(None if patient else self.retries):
            try:
                return (yield step)
            except Failure as failure:
                if pause is None or failure.code not in AGAIN or self.closed:
                    raise
                if time.monotonic() + pause >= deadline:
                    raise
            yield partial(self.waits.sleep, pause)
        raise AssertionError("the last pause is None")

    def result(self, model: str, answer: Answer, shapes: dict[str, tuple[int, ...]]) -> Result:
        """The answer as the caller gets it. Raises ServerError where it breaks the contract."""
        built: dict[str, Array] = {}
        for name, want in shapes.items():
            got = answer.get(name)
            if got is None or got.shape != want or got.dtype != np.float32:
                came = "nothing" if got is None else f"{got.dtype} {list(got.shape)}"
                raise ServerError(
                    f"{model} at {self.url} answered {came} for {name!r}, "
                    f"where float32 {list(want)} is its contract"
                )
            # a copy: what the protocols give is read-only, and part of the whole message
            built[name] = np.array(got, dtype=np.float32, order="C")
        return Result(**built)

    def refuse_if_closed(self, cause: Failure | None = None) -> None:
        if self.closed:
            raise LoopRNNClientError(
                f"this client of {self.model} at {self.url} is closed; make a new Client(...)"
            ) from cause


def list_states(
    url: str, transport: Transport | AsyncTransport, timeout_s: float
) -> Plan[tuple[ModelState, ...]]:
    """Every model in the repository; failures explained."""
    deadline = time.monotonic() + timeout_s
    try:
        return (yield from states(transport, deadline))
    except Failure as failure:
        if failure.code is Code.UNAVAILABLE:  # no model is asked for: it is the server
            failure.code = Code.BROKEN
        error = yield from explain(
            failure, url=url, model=None, timeout_s=timeout_s, index=states(transport, deadline)
        )
        raise error from failure


def states(transport: Transport | AsyncTransport, deadline: float) -> Plan[tuple[ModelState, ...]]:
    """The repository's rows in order. Raises Failure."""
    rows = yield lambda: transport.index(left(deadline))
    try:
        found = [
            ModelState(**{key: str(row.get(key, "")) for key in ModelState.__slots__})
            for row in rows
        ]
    except (AttributeError, TypeError) as error:
        raise Failure(Code.UNREACHABLE, "the list of models it answers is not Triton's") from error
    return tuple(sorted(found, key=lambda state: (state.name, state.version)))
