"""The states of streams in the GPU's memory, between the runs of a fused session."""

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from looprnn import cuda
from looprnn.engines import Arrays
from looprnn.engines.fused_slots import FLOAT, widths
from looprnn.errors import CudaError, EngineError

if TYPE_CHECKING:
    from looprnn.engines.fused_session import FusedSession


class DeviceStates:
    """See engines.States. A session keeps one table at a time."""

    def __init__(self, session: "FusedSession", capacity: int) -> None:
        self.capacity, self.place = capacity, f"the memory of GPU {session.device}"
        self._session, self._widths = session, widths(session.spec)
        self.nbytes = (capacity + 1) * sum(self._widths.values()) * FLOAT

    def __enter__(self) -> Self:
        session = self._session
        if "table" in session.gpu:
            raise EngineError(f"{session.path}: the session keeps states already")
        with ExitStack() as opening:
            try:
                table = opening.enter_context(cuda.DeviceBuffer(self.nbytes))
            except CudaError as error:
                raise EngineError(
                    f"{session.path}: states of {self.capacity:,} streams take "
                    f"{self.nbytes / 2**20:,.0f} MiB of GPU memory, which cannot be had "
                    f"({error}). Lower capacity in the variant's [stream]"
                ) from error
            session.gpu["table"], session.addresses["table"] = table, table.address
            for names in (session.gpu, session.addresses):
                opening.callback(names.pop, "table")
            opening.callback(session.forget_graphs)  # they hold its address
            self._write_first(table)
            self._open = opening.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def run(
        self, inputs: Arrays, wanted: Collection[str], begin: Sequence[int], end: Sequence[int]
    ) -> dict[str, NDArray[np.float32]]:
        given = {**inputs, "slots": np.array((begin, end), np.int32)}
        return self._session.answer(given, wanted, "both" if min(begin) < 0 else "slots")

    def _write_first(self, table: cuda.DeviceBuffer) -> None:
        """0 in every slot; in the one after the last, what the spec begins with."""
        session = self._session
        values = [getattr(session.spec, f"{s}_0") for s in self._widths]
        row = np.repeat(np.array(values, np.float32), list(self._widths.values()))
        cuda.fill(table, 0, self.nbytes, session.stream)
        with cuda.PinnedBuffer(row.nbytes) as staging:
            np.copyto(staging.view(row.shape), row)
            at = self.capacity * row.nbytes
            cuda.copy_in(table, staging, row.nbytes, session.stream, at)
            session.stream.synchronize()
