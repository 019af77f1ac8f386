"""Two plots of a bench: latency by percentile, and throughput over time; each as SVG and PNG."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from looprnn_client.commands.live import EXTRA
from looprnn_client.commands.load import Report
from looprnn_client.errors import BadInput

try:
    from matplotlib.figure import Figure
except ImportError as error:
    raise BadInput(
        f"--output draws plots, for which matplotlib is missing here ({error}). Type: {EXTRA}"
    ) from error

FAINT = "#dddddd"
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe and Ito's
TICKS = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 99.999)


def write(reports: Sequence[Report], title: str, target: Path) -> Iterator[Path]:
    """NAME-latency and NAME-throughput, each as .svg and .png; their paths."""
    for name, figure in (
        ("latency", latency(reports, title)),
        ("throughput", throughput(reports, title)),
    ):
        for kind in ("svg", "png"):
            path = target.with_name(f"{target.name}-{name}.{kind}")
            figure.savefig(path, dpi=150)
            yield path


def latency(reports: Sequence[Report], title: str) -> Figure:
    """The time within which a share of the requests was answered; the axis stretches the tail."""
    figure, axes = _paper("Latency by percentile", title)
    most = 0.0
    for report, color in zip(reports, _colors(reports), strict=True):
        if report.curve:
            at, ms = np.array(report.curve).T
            axes.plot(_nines(at), ms, color=color, linewidth=1.8, label=str(report.level))
            most = max(most, float(_nines(at)[-1]))
    ticks = [t for t in TICKS if _nines(np.array(t)) <= most] or [0.0]
    axes.set_xticks([float(_nines(np.array(t))) for t in ticks], [f"{t:g} %" for t in ticks])
    axes.set_xlabel("share of requests answered within")
    axes.set_ylabel("latency, ms")
    _finish(figure, axes)
    return figure


def throughput(reports: Sequence[Report], title: str) -> Figure:
    """Requests answered in each second."""
    figure, axes = _paper("Throughput over time", title)
    for report, color in zip(reports, _colors(reports), strict=True):
        if report.timeline:
            second, rate = np.array(report.timeline).T
            label = f"{report.level},\nmean {report.throughput_rps:.0f}/s"
            axes.plot(second, rate, color=color, linewidth=1.8, marker="o", ms=3, label=label)
    axes.set_xlabel("seconds after the warm-up")
    axes.set_ylabel("requests answered per second")
    axes.set_xlim(left=0)
    _finish(figure, axes)
    return figure


def _paper(what: str, title: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(what, loc="left", fontsize=13, fontweight="bold", pad=20)
    axes.annotate(
        title, (0, 1), (0, 6), "axes fraction", textcoords="offset points", color="#555555"
    )
    axes.grid(axis="y", color=FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _finish(figure: Figure, axes: Any) -> None:
    axes.set_ylim(bottom=0)
    if axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside right upper", frameon=False, fontsize=9)


def _colors(reports: Sequence[Report]) -> list[str]:
    return [COLORS[k % len(COLORS)] for k in range(len(reports))]


def _nines(percent: Any) -> Any:
    """0 % → 0, 90 % → 1, 99 % → 2: an axis on which each nine is as wide as the last."""
    return -np.log10(1 - np.asarray(percent) / 100)
