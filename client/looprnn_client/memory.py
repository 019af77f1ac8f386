"""Arrays in memory that client and server share, so that only their places go over the wire.

A call borrows a region for its inputs and outputs; between calls regions lie ready, registered with
the server. A region's name is unlinked as soon as the server has mapped it: whatever ends this
process, no file stays behind.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from looprnn_client.drive import Plan, Waits
from looprnn_client.errors import BadInput
from looprnn_client.regions import Region
from looprnn_client.transport import (
    Answer,
    AsyncTransport,
    Call,
    Code,
    Failure,
    Place,
    Transport,
)

T = TypeVar("T")

ALIGNMENT = 64  # a cache line, for each array
SMALLEST = 1 << 16
UNKNOWN = "Unable to find"  # Triton's words for a region of before its restart
IN_USE = "currently in use"  # and for one that a call of its own still reads or writes
PAUSE_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Loan:
    """A region in a call's hands: the call's inputs are in it, and its outputs will be."""

    region: Region
    call: Call
    request: Any


class Arena:
    """The regions of one client, each lent to one call at a time."""

    def __init__(
        self,
        url: str,
        transport: Transport | AsyncTransport,
        waits: Waits,
        make: Callable[[int], Region],
    ) -> None:
        self._url, self._transport, self._waits, self._make = url, transport, waits, make
        self._lock = threading.Lock()
        self._every: list[Region] = []
        self._ready: list[Region] = []
        self._doubtful: list[Region] = []  # a call ended without an answer: it may still be in use

    def lend(
        self,
        call: Call,
        shapes: Mapping[str, tuple[int, ...]],
        timeout: Callable[[], float],
    ) -> Plan[Loan]:
        """A region that holds the call's inputs, with room for outputs of these shapes, float32.

        Raises BadInput when the server cannot map this client's memory, and Failure.
        """
        sizes = {name: array.nbytes for name, array in call.inputs.items()}
        sizes |= {name: 4 * int(np.prod(shape)) for name, shape in shapes.items()}
        offsets, total = {}, 0
        for name, size in sizes.items():
            offsets[name], total = total, total + -(-size // ALIGNMENT) * ALIGNMENT
        region = yield from self._take(total, timeout)
        for name, array in call.inputs.items():
            region.write(offsets[name], array)
        places = {
            name: Place(region=region.name, offset=offsets[name], size=size)
            for name, size in sizes.items()
        }
        placed = replace(call, places=places)
        return Loan(region=region, call=placed, request=self._transport.prepare(placed))

    def collect(
        self,
        loan: Loan,
        ask: Callable[[Any], Plan[Answer]],
        shapes: Mapping[str, tuple[int, ...]],
        use: Callable[[Answer], T],
        timeout: Callable[[], float],
    ) -> Plan[T]:
        """use(outputs) after ask(request); the region is back then, whatever was raised."""
        try:
            try:
                answer = yield from ask(loan.request)
            except Failure as failure:
                if UNKNOWN not in failure.words:
                    raise
                stale, loan = loan, (yield from self._move(loan, shapes, timeout))
                self._forget(stale.region)
                answer = yield from ask(loan.request)
            for name, said in answer.items():
                if said.shape == shapes.get(name):  # else `use` will not have it
                    place = loan.call.places[name]
                    answer[name] = loan.region.read(place.offset, said.shape, said.dtype)
            result = use(answer)
        except BaseException:
            with self._lock:
                self._doubtful.append(loan.region)
            raise
        self.give(loan)
        return result

    def give(self, loan: Loan) -> None:
        """Back from a call that was answered, or never sent."""
        with self._lock:
            self._ready.append(loan.region)

    def close(self, timeout_s: float) -> Plan[None]:
        """Unregisters and frees every region, waiting for calls that still use one."""
        deadline = time.monotonic() + timeout_s
        with self._lock:
            every, self._every = self._every, []
        try:
            for region in every:
                while not (yield from self._unshare(region, max(deadline - time.monotonic(), 0.1))):
                    if time.monotonic() > deadline:
                        break
                    yield partial(self._waits.sleep, PAUSE_S)
        finally:
            for region in every:
                region.close()

    def _take(self, total: int, timeout: Callable[[], float]) -> Plan[Region]:
        with self._lock:
            fitting = [region for region in self._ready if region.size >= total]
            if fitting:
                best = min(fitting, key=lambda region: region.size)
                self._ready.remove(best)
                return best
            doubtful, self._doubtful = self._doubtful, []
            small, self._ready = self._ready, []  # too small for what is sent nowadays
        for region in (*doubtful, *small):
            if (yield from self._unshare(region, timeout())):
                self._forget(region)
            else:
                with self._lock:
                    self._doubtful.append(region)
        return (yield from self._open(total, timeout))

    def _open(self, total: int, timeout: Callable[[], float]) -> Plan[Region]:
        size = max(SMALLEST, 1 << (total - 1).bit_length())
        try:
            region = self._make(size)
        except OSError as error:
            raise BadInput(
                f"there is no shared memory of {size} bytes to be had: {error}; in Docker give the "
                "container more with --shm-size, or use memory='wire'"
            ) from error
        try:
            yield lambda: self._transport.share(region.name, region.handle, size, timeout())
            region.hide()
        except Failure as failure:
            region.close()
            if failure.code not in (Code.INVALID, Code.INTERNAL, Code.UNREACHABLE):
                raise
            raise BadInput(
                f"{self._url} cannot map this client's memory ({failure.words}). Both must be on "
                "one machine and share its memory (in Docker: --ipc=host), and Triton from 26.04 "
                "on wants --allow-client-shm=true; memory='wire' works everywhere"
            ) from failure
        except BaseException:
            region.close()
            raise
        with self._lock:
            self._every.append(region)
        return region

    def _unshare(self, region: Region, timeout_s: float) -> Plan[bool]:
        """Whether the server is done with the region."""
        try:
            yield lambda: self._transport.unshare(region.name, region.cuda, timeout_s)
        except Failure as failure:
            return IN_USE not in failure.words
        return True

    def _move(
        self, loan: Loan, shapes: Mapping[str, tuple[int, ...]], timeout: Callable[[], float]
    ) -> Plan[Loan]:
        """The same call in a region that the server, restarted meanwhile, knows."""
        call, region = loan.call, loan.region
        inputs = {  # not the caller's arrays, which may have changed
            name: region.read(call.places[name].offset, array.shape, array.dtype)
            for name, array in call.inputs.items()
        }
        return (yield from self.lend(replace(call, places={}, inputs=inputs), shapes, timeout))

    def _forget(self, region: Region) -> None:
        with self._lock, suppress(ValueError):
            self._every.remove(region)
        region.close()
