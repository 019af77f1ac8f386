"""SlotTable: the streams that live here, and the slot of each. What lies in the slots is for an
engines.States to keep.

A chunk changes nothing before keep(): admit() reserves at most an empty slot.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from looprnn.errors import StreamRefused, StreamUnknown

StreamId = int | str  # 7 and "7" are two streams, as they are to Triton
AGAIN: Final = "Send START; with the h_0 and c_0 of its last exported state it goes on from there"


class SlotTable:
    """At most `capacity` live streams. One is live from its first kept chunk until its last, or
    until ttl_s seconds pass without any.

    expired, refused and reset count since the table was made.
    """

    def __init__(
        self, *, capacity: int, ttl_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.capacity, self.ttl_s = capacity, ttl_s
        self.expired = self.refused = self.reset = 0
        self._clock = clock
        self._free = list(range(capacity))
        self._live: OrderedDict[StreamId, tuple[int, float]] = OrderedDict()  # by age: slot, since
        self._gone: OrderedDict[StreamId, None] = OrderedDict()  # the last to expire, for their end

    def __len__(self) -> int:
        """The streams that live."""
        return len(self._live)

    def admit(self, stream: StreamId, *, start: bool, end: bool) -> int | None:
        """The slot for a chunk, to be handed to keep() or to drop(); None for a stream that is one
        chunk long and needs none.

        Raises StreamUnknown, or StreamRefused where no slot is free: no live stream gives way.
        """
        if stream in self._live:
            slot, _ = self._live[stream]
            self._touch(stream, slot)  # or a sweep for the next START could give its slot away
            return slot
        if not start:
            if stream in self._gone:
                raise StreamUnknown(
                    f"stream {stream!r}: expired after {self.ttl_s:g} s without a chunk. {AGAIN}"
                )
            raise StreamUnknown(
                f"stream {stream!r}: unknown: it never started, has ended, or the model was loaded "
                f"anew since. {AGAIN}"
            )
        if end:
            return None
        if not self._free:
            self.sweep()
        if not self._free:
            self.refused += 1
            raise StreamRefused(
                f"stream refused: capacity: {self.capacity} streams live here already. END one, "
                "try again later, or raise capacity in the variant's [stream]"
            )
        return self._free.pop()

    def keep(self, stream: StreamId, slot: int, *, start: bool) -> None:
        """The chunk is done and its state is in the slot: the stream lives on."""
        self.reset += start and stream in self._live
        self._gone.pop(stream, None)
        self._touch(stream, slot)

    def drop(self, stream: StreamId, slot: int | None) -> None:
        """The chunk came to nothing: a slot reserved for it is free again."""
        if slot is not None and stream not in self._live:
            self._free.append(slot)

    def end(self, stream: StreamId) -> None:
        """Free the stream's slot, if it has one."""
        if stream in self._live:
            self._free.append(self._live.pop(stream)[0])

    def sweep(self) -> None:
        """Free the slots of streams that sent nothing for ttl_s."""
        oldest = self._clock() - self.ttl_s
        while self._live:
            stream, (_, since) = next(iter(self._live.items()))
            if since >= oldest:
                return
            self.end(stream)
            self.expired += 1
            self._gone[stream] = None
            if len(self._gone) > self.capacity:
                self._gone.popitem(last=False)

    def _touch(self, stream: StreamId, slot: int) -> None:
        self._live[stream] = (slot, self._clock())
        self._live.move_to_end(stream)
