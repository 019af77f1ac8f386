"""Every: something done again and again beside the requests."""

import threading
from collections.abc import Callable


class Every:
    """Calls `do` every so many seconds, from a thread of its own, until stop()."""

    def __init__(self, seconds: float, do: Callable[[], None]) -> None:
        self._seconds, self._do, self._stopped = seconds, do, threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _loop(self) -> None:
        while not self._stopped.wait(self._seconds):
            self._do()
