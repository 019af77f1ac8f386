"""bench/serving.py's picture: throughput of each system at each concurrency, and its p99 above."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

COLORS = {"looprnn": "#0072b2", "plain": "#8c8c8c", "pytriton": "#b5b5b5", "fastapi": "#d9d9d9"}
NAMES = {"plain": "plain model.py", "pytriton": "PyTriton", "fastapi": "FastAPI"}
TITLES = {"equal": "every sequence 32 steps", "ragged": "sequences of 8 to 64 steps"}


def draw(rows: Sequence[dict[str, Any]], foot: str) -> Figure:
    """rows: those of serving.json. A panel for each traffic, with one scale."""
    kinds = list(dict.fromkeys(row["traffic"] for row in rows))
    figure = Figure(figsize=(5.2 * len(kinds) + 1.6, 4.6), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(kinds), sharey=True))
    for axes, kind in zip(panels, kinds, strict=True):
        _panel(axes, [row for row in rows if row["traffic"] == kind])
        axes.set_title(TITLES[kind], loc="left", fontsize=10, color="#444444")
    panels[0].set_ylabel("requests per second")
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, frameon=False, fontsize=9, loc="outside right upper")
    figure.suptitle("One LSTM, served four ways", x=0.01, ha="left", fontsize=13, weight="bold")
    figure.supxlabel(
        f"LSTM 64→256, B=1, the same ONNX file; above each bar its p99 in ms. {foot}",
        x=0.01, ha="left", fontsize=8, color="#666666",
    )  # fmt: skip
    return figure


def _panel(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    levels = list(dict.fromkeys(row["concurrency"] for row in rows))
    systems = list(dict.fromkeys(row["system"] for row in rows))
    width = 0.8 / len(systems)
    for k, system in enumerate(systems):
        own = {row["concurrency"]: row for row in rows if row["system"] == system}
        at = np.arange(len(levels)) + (k - (len(systems) - 1) / 2) * width
        rates = [own[level]["throughput_rps"] for level in levels]
        bars = axes.bar(
            at, rates, width * 0.92, color=COLORS[system], label=NAMES.get(system, system)
        )
        axes.bar_label(bars, [f"{own[n]['p99_ms']:.0f}" for n in levels], fontsize=7, padding=2)
    axes.set_xticks(range(len(levels)), [f"{n} in flight" for n in levels])
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y", color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
