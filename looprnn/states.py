"""HostStates: the states of streams in host memory, around any session."""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from looprnn.engines import Arrays, KeepsStates, Session, States
from looprnn.spec import RNNSpec


def beside(session: Session, spec: RNNSpec, capacity: int) -> AbstractContextManager[States]:
    """Slots where the session computes if it keeps them itself, else here."""
    if isinstance(session, KeepsStates):
        return session.states(capacity)
    return nullcontext(HostStates(session, spec, capacity))


class HostStates:
    """See engines.States."""

    place = "host memory"

    def __init__(self, session: Session, spec: RNNSpec, capacity: int) -> None:
        self._session = session
        self._tables = {
            s: np.zeros((capacity + 1, *spec.state_dims(s)), np.float32) for s in spec.states
        }
        for s, table in self._tables.items():
            table[capacity] = getattr(spec, f"{s}_0")
        self.nbytes = sum(table.nbytes for table in self._tables.values())

    def run(
        self, inputs: Arrays, wanted: Collection[str], begin: Sequence[int], end: Sequence[int]
    ) -> dict[str, NDArray[np.float32]]:
        first = self._gather(inputs, begin)
        names = {*wanted, *(f"{s}_n" for s in self._tables)}
        outputs = self._session.run({**inputs, **first}, names)
        still = inputs["lengths"] == 0
        for s in self._tables:  # whatever the engine computes in
            outputs[f"{s}_n"][still] = first[f"{s}_0"][still]
        self._scatter(outputs, end)
        return outputs

    def _gather(self, inputs: Arrays, begin: Sequence[int]) -> dict[str, NDArray[Any]]:
        given = [b for b, slot in enumerate(begin) if slot < 0]
        found = {}
        for s, table in self._tables.items():
            found[f"{s}_0"] = table[begin]
            if given:
                found[f"{s}_0"][given] = inputs[f"{s}_0"][given]
        return found

    def _scatter(self, outputs: Arrays, end: Sequence[int]) -> None:
        rows = [b for b, slot in enumerate(end) if slot >= 0]
        slots = [end[b] for b in rows]
        for s, table in self._tables.items():
            table[slots] = outputs[f"{s}_n"][rows]
