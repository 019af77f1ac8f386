"""bench/soak.py's picture: memory over time, a panel each for the server, engines and segments."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

TITLES = {
    "server": "tritonserver, private memory",
    "engines": "engine processes, private memory",
    "shared": "segments in /dev/shm",
}


def draw(samples: Sequence[dict[str, float]], verdicts: dict[str, Any], foot: str) -> Figure:
    """samples and verdicts: those of soak.json. The band is what the last fifth may be."""
    figure = Figure(figsize=(8, 6.6), layout="constrained")
    minutes = np.array([s["second"] for s in samples]) / 60
    end = float(minutes[-1])
    panels = figure.subplots(len(TITLES), 1, sharex=True)
    for axes, (name, title) in zip(panels, TITLES.items(), strict=True):
        found = verdicts[name]
        top = found["before_mb"] + found["allowed_mb"]
        axes.fill_between([0.8 * end, end], 0, top, color="#009e73", alpha=0.15, linewidth=0)
        axes.hlines(found["before_mb"], 0.2 * end, 0.4 * end, color="#888888", linewidth=1.5)
        axes.plot(minutes, [s[name] for s in samples], color="#0072b2", linewidth=1.4)
        axes.set_title(
            f"{title}: {found['before_mb']:.1f} → {found['after_mb']:.1f} MB, "
            f"{'flat' if found['flat'] else 'not flat'}",
            loc="left", fontsize=10, color="#444444",
        )  # fmt: skip
        axes.set_ylabel("MB")
        axes.set_ylim(0, 1.25 * max(top, *(s[name] for s in samples)))
        axes.set_xlim(0, end)
        axes.grid(axis="y", color="#dddddd", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("minutes")
    figure.suptitle("Memory under mixed traffic", x=0.01, ha="left", fontsize=13, weight="bold")
    figure.supxlabel(
        "grey: median of the second fifth; green: where the last fifth's median may lie. " + foot,
        x=0.01, ha="left", fontsize=8, color="#666666",
    )  # fmt: skip
    return figure
