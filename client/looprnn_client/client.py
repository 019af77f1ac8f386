"""The client: checks a call against the model, sends it, and builds the answer.

B batch, T time, I input size, N and H a state's recurrences and their size (see `signature`).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from looprnn_client.errors import BadInput, LoopRNNClientError, ServerError
from looprnn_client.explain import explain
from looprnn_client.signature import Signature
from looprnn_client.transport import Array, Code, Failure, ModelState, Transport, connect

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Result:
    """The answer to one call; an array is None when it was not asked for or the model has none.

    output: [B, T, ...], what the last layer puts out at every step; output_reverse: the same of its
    reverse direction, where the model keeps the two apart. h_n, c_n: [B, N, H], the last states.
    head: [B, T, size] or [B, size], what the linear layer at the end makes of every step or of
    the last.
    Each is float32, C-contiguous, writable, and memory of its own.
    """

    output: Array | None = None
    output_reverse: Array | None = None
    h_n: Array | None = None
    c_n: Array | None = None
    head: Array | None = None


class Client:
    """One model on one server. Threads may share it; close it, or use it in a `with`.

    url: "host:port" or "grpc://host:port" for gRPC, "http://host:port" for HTTP.
    timeout_s: seconds that a whole call may take, the first one's reading of the model included.
    transport: stands in for the network; `url` is then only a name in messages.
    Raises BadInput when an argument cannot be used. Nothing is connected before the first call.
    """

    def __init__(
        self, url: str, model: str, *, timeout_s: float, transport: Transport | None = None
    ) -> None:
        if not isinstance(model, str) or not model:
            raise BadInput(f"model must be the name of a model, got {model!r}")
        self._timeout_s = _seconds(timeout_s)
        self._transport = connect(url) if transport is None else transport
        self._url = url
        self._model = model
        self._signature: Signature | None = None
        self._reading = threading.Lock()
        self._closed = False

    @property
    def signature(self) -> Signature:
        """The model's sizes and limits, read from the server at first use. Raises as `infer`."""
        return self._within(self._read_signature)

    def infer(
        self,
        x: Array | NDArray[np.integer[Any]],
        h_0: Array | None = None,
        c_0: Array | None = None,
        *,
        lengths: Sequence[int] | NDArray[np.integer[Any]] | None = None,
        outputs: Sequence[str] | None = None,
    ) -> Result:
        """Runs the model over x: [B, T, I] float32, from h_0 and c_0: [B, N, H] float32.

        x: ids [B, T] of any integer type where the model has a vocabulary. A state left out is what
        the model starts from by itself. lengths: [B] integers in 0..T, the steps of each row that
        count, the rest being padding on the right; None is T for every row. outputs: names among
        `signature.outputs`; None is all. A call that fails makes the next one read the model again.
        Raises BadInput before anything is sent, UnknownModel, NotReady, Unreachable, Timeout,
        ServerError, and BadInput for what only the server could know.
        """

        def call(deadline: float) -> Result:
            signature = self._read_signature(deadline)
            names = signature.check_outputs(outputs)
            arrays = signature.check_inputs(x, h_0, c_0, lengths)
            answer = self._transport.infer(self._model, arrays, names, _left(deadline))
            batch, steps = arrays["input"].shape[:2]
            built: dict[str, Array] = {}
            for name in names:
                want, got = signature.shape(name, batch, steps), answer.get(name)
                if got is None or got.shape != want or got.dtype != np.float32:
                    came = "nothing" if got is None else f"{got.dtype} {list(got.shape)}"
                    raise ServerError(
                        f"{self._model} at {self._url} answered {came} for {name!r}, "
                        f"where float32 {list(want)} is its contract"
                    )
                # a copy: what the protocols give is read-only, and part of the whole message
                built[name] = np.array(got, dtype=np.float32, order="C")
            return Result(**built)

        return self._within(call)

    def close(self) -> None:
        """Ends the connection; calls under way fail. A second close does nothing."""
        if not self._closed:
            self._closed = True
            self._transport.close()

    def __enter__(self) -> Client:
        self._refuse_if_closed()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _within(self, call: Callable[[float], T]) -> T:
        """call(deadline), with every failure explained and the model read anew after it."""
        self._refuse_if_closed()
        deadline = time.monotonic() + self._timeout_s
        try:
            return call(deadline)
        except Failure as failure:
            self._signature = None
            self._refuse_if_closed(failure)
            raise explain(
                failure,
                url=self._url,
                model=self._model,
                timeout_s=self._timeout_s,
                index=lambda: _states(self._transport, _left(deadline)),
            ) from failure
        except LoopRNNClientError:
            self._signature = None  # the model may have been replaced by one that would agree
            raise

    def _read_signature(self, deadline: float) -> Signature:
        known = self._signature
        if known is not None:
            return known
        if not self._reading.acquire(timeout=_left(deadline)):
            raise Failure(Code.TIMEOUT, "another thread is still reading the model")
        try:
            if self._signature is None:
                config = self._transport.config(self._model, _left(deadline))
                self._signature = known = Signature.from_config(self._model, config)
                return known
            return self._signature
        finally:
            self._reading.release()

    def _refuse_if_closed(self, cause: Failure | None = None) -> None:
        if self._closed:
            raise LoopRNNClientError(
                f"this client of {self._model} at {self._url} is closed; make a new Client(...)"
            ) from cause


def list_models(
    url: str, *, timeout_s: float, transport: Transport | None = None
) -> tuple[ModelState, ...]:
    """Every model in the server's repository with its state, by name and version.

    Raises BadInput for an argument, Unreachable, Timeout, ServerError.
    """
    seconds = _seconds(timeout_s)
    line = connect(url) if transport is None else transport

    def index() -> tuple[ModelState, ...]:
        return _states(line, seconds)

    try:
        return index()
    except Failure as failure:
        if failure.code is Code.UNAVAILABLE:  # no model is asked for: it is the server
            failure.code = Code.UNREACHABLE
        raise explain(failure, url=url, model=None, timeout_s=seconds, index=index) from failure
    finally:
        line.close()


def _states(transport: Transport, timeout_s: float) -> tuple[ModelState, ...]:
    try:
        found = [
            ModelState(**{key: str(row.get(key, "")) for key in ModelState.__slots__})
            for row in transport.index(timeout_s)
        ]
    except (AttributeError, TypeError) as error:
        raise Failure(Code.UNREACHABLE, "the list of models it answers is not Triton's") from error
    return tuple(sorted(found, key=lambda state: (state.name, state.version)))


def _seconds(timeout_s: float) -> float:
    number = isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool)
    if not number or not math.isfinite(timeout_s) or timeout_s <= 0:
        raise BadInput(f"timeout_s must be a number of seconds above 0, got {timeout_s!r}")
    return float(timeout_s)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise Failure(Code.TIMEOUT, "the time was up before the call was sent")
    return left
