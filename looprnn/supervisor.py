"""Keeps a tritonserver serving: Triton starts no model process anew that died (24.10, measured).

A request in flight at a dead process is answered with an error within a second, and so is every
later one. So the processes are watched from here. One that died, that a signal stopped or that its
watchdog ended (see watchdog.py) costs a restart of the whole server, on the same ports.
"""

import os
import signal
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from looprnn.errors import ServerError
from looprnn.server import Server

LOOK_EVERY_S: Final = 0.25
STOPPED_FOR_S: Final = 2.0  # then a stopped process is taken for hung
MOST_RESTARTS, WITHIN_S = 5, 60.0


def keep_serving(server: Server, say: Callable[[str], None]) -> NoReturn:
    """Start it anew whenever it or a model's process has ended; `say` is told why.

    Raises ServerError if it does not come back, or ends again and again.
    """
    restarts: deque[float] = deque(maxlen=MOST_RESTARTS)
    while True:
        reason = trouble(server)
        now = time.monotonic()
        if len(restarts) == MOST_RESTARTS and now - restarts[0] < WITHIN_S:
            raise ServerError(
                f"{reason}, after {MOST_RESTARTS} restarts within {WITHIN_S:g} s. Type --log FILE "
                "and see what it says there"
            )
        restarts.append(now)
        say(f"{reason}; starting the server anew")
        server.restart()
        say("serving again")


def trouble(server: Server) -> str:
    """Wait for it, in words."""
    names: dict[int, str] = {}
    stopped: dict[int, float] = {}
    while True:
        if (status := server.process.poll()) is not None:
            return f"tritonserver ended by itself with status {status}"
        for pid, state in children(server.process.pid).items():
            names.setdefault(pid, model_of(pid))
            if state == "Z":
                return f"the process of {names[pid]} died"
            if state != "T":
                stopped.pop(pid, None)
            elif time.monotonic() - stopped.setdefault(pid, time.monotonic()) > STOPPED_FOR_S:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                return f"the process of {names[pid]} was stopped"
        time.sleep(LOOK_EVERY_S)


def children(parent: int) -> dict[int, str]:
    """The processes that a process started, and the state of each: R, S, D, Z dead, T stopped."""
    found = {}
    for task in Path(f"/proc/{parent}/task").glob("*/children"):
        with suppress(OSError):  # what ends while we look
            for word in task.read_text().split():
                stat = Path(f"/proc/{word}/stat").read_text()
                found[int(word)] = stat.rsplit(")", 1)[1].split()[0]
    return found


def model_of(pid: int) -> str:
    """The model that a stub runs, from its command: … repository/NAME/VERSION/model.py …"""
    with suppress(OSError, UnicodeDecodeError):
        for word in Path(f"/proc/{pid}/cmdline").read_text().split("\0"):
            if word.endswith("/model.py"):
                return Path(word).parts[-3]
    return "a model"
