"""Which of several engines answers a typical request soonest, on the GPU at hand."""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from looprnn import engines, parity
from looprnn.card import Cards

WARMUPS: Final = 3
RUNS: Final = 15


def timed(cards: Cards, folder: Path, names: Sequence[str], device: int) -> dict[str, float | str]:
    """Engine → the median seconds of a request of the profile's typical B and T, or why it cannot
    answer.
    """
    found: dict[str, float | str] = {}
    size = cards.spec.profile.batch.opt, cards.spec.profile.time.opt
    inputs = parity.draw_inputs(cards.spec, *size)
    for name in names:
        try:
            path = cards.engines[name].check_file(folder)
            with engines.get(name).session(path, cards.spec, device) as session:
                for _ in range(WARMUPS):
                    session.run(inputs)
                found[name] = statistics.median(_seconds(session, inputs) for _ in range(RUNS))
        except Exception as error:  # one that cannot load must not take the others along
            found[name] = str(error)
    return found


def _seconds(session: engines.Session, inputs: engines.Arrays) -> float:
    begin = time.perf_counter()
    session.run(inputs)
    return time.perf_counter() - begin


def table(cards: Cards, found: dict[str, float | str]) -> str:
    """One line for the log."""
    size = cards.spec.profile.batch.opt, cards.spec.profile.time.opt
    words = [
        f"{name} {value * 1e6:.0f} µs" if isinstance(value, float) else f"{name} failed: {value}"
        for name, value in found.items()
    ]
    return f"{cards.spec.name}: B = {size[0]}, T = {size[1]}: {', '.join(words)}"
