"""Watchdog: an engine that never answers, or whose GPU is lost, ends its process.

The kernel does it, since Python cannot while a library holds it: the alarm's signal writes every
thread's place into Triton's log and ends the process. Triton answers what was in flight with an
error, and whoever watches starts the model anew (see supervisor.py).
"""

import faulthandler
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from looprnn.errors import CudaLost
from looprnn.spec import RNNSpec

PATIENCE_S: Final = 60.0
LAST_S: Final = 1.0  # after a run that lost the GPU, for its answer to leave
SLOWEST: Final = 1e9  # multiply-adds a second: a hundredth of what one core does


class Watchdog:
    """Gives a run of the engine PATIENCE_S, and the time its work takes at SLOWEST."""

    def __init__(self, spec: RNNSpec) -> None:
        work = sum(
            len(layer.directions)
            * len(layer.gates)
            * layer.hidden_size
            * (spec.layer_input(k) + layer.hidden_size)
            for k, layer in enumerate(spec.layers)
        )
        self._step_s = work / SLOWEST
        self._lost = False
        faulthandler.enable()  # a crash leaves its place in the log too
        faulthandler.register(signal.SIGALRM, chain=True)

    @contextmanager
    def over(self, steps: int) -> Iterator[None]:
        """Around a run of so many steps, B·T."""
        if self._lost:  # the alarm is set
            yield
            return
        signal.setitimer(signal.ITIMER_REAL, PATIENCE_S + steps * self._step_s)
        try:
            yield
        except CudaLost:
            self._lost = True
            raise
        finally:
            signal.setitimer(signal.ITIMER_REAL, LAST_S if self._lost else 0)
