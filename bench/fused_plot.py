"""bench/fused.py's picture: µs a step of each layer, the fused engine beside cuDNN's better."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure


def draw(rows: Sequence[dict[str, Any]], foot: str) -> Figure:
    """rows: those of fused.json."""
    figure = Figure(figsize=(8.4, 0.42 * len(rows) + 1.4), layout="constrained")
    axes = figure.subplots()
    at = range(len(rows), 0, -1)
    names = [
        f"{'bi' * row['bidirectional']}{row['cell'].upper()} B{row['B']} T{row['T']} "
        f"H{row['H']} {row['dtype']}"
        for row in rows
    ]
    cudnn = [min(r["cudnn_graph_us_per_step"], r["cudnn_eager_us_per_step"]) for r in rows]
    ours = [row["us_per_step"] for row in rows]
    axes.barh([y + 0.2 for y in at], cudnn, 0.38, color="#c4c4c4", label="cuDNN")
    bars = axes.barh([y - 0.2 for y in at], ours, 0.38, color="#0072b2", label="looprnn fused")
    ratios = [f"{us:.2f}   {other / us:.1f}×" for us, other in zip(ours, cudnn, strict=True)]
    axes.bar_label(bars, ratios, fontsize=7, padding=3)
    axes.plot(
        [row["target_us_per_step"] for row in rows], [y - 0.2 for y in at], "|", color="#d55e00",
        markersize=10, label="target",
    )  # fmt: skip
    axes.set_yticks(list(at), names, fontsize=8)
    axes.set_xlabel(f"µs a step, input projection included. {foot}", fontsize=8, color="#444444")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    axes.set_title("A recurrent layer on the GPU", loc="left", fontsize=12, weight="bold")
    return figure
