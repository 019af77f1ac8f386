"""EngineMetrics: what each run of the engine did, on Triton's /metrics; see docs/metrics.md.

The embedded Triton, 24.10, knows counters and gauges only, so a histogram is counters labelled
`le`, as Prometheus itself stores it. A counter's step is a message to tritonserver, and an
observation must cost next to nothing: observations are summed here, and a thread tells Triton once
a second what has changed.
"""

import threading
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Final

import triton_python_backend_utils as pb_utils  # provided by Triton's Python backend

from looprnn.batching import MOST_WASTE

SHOWN_EVERY_S: Final = 1.0
# Held by whoever speaks to Triton of metrics: tritonserver 2.51 aborts (lock_exception), one start
# in five on a busy machine, where a thread shows some while another makes others.
TELLING: Final = threading.Lock()
WASTE: Final = (0.0, 0.05, 0.1, 0.2, 0.3, MOST_WASTE)
SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Histogram:
    """NAME_bucket{le}, NAME_sum and NAME_count; bounds ascend, and +Inf follows the last."""

    def __init__(
        self, name: str, description: str, bounds: Sequence[float], labels: dict[str, str]
    ) -> None:
        self._bounds = list(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        counter = pb_utils.MetricFamily.COUNTER
        self._families = {  # Triton drops a metric whose family is gone
            part: pb_utils.MetricFamily(
                name=f"{name}_{part}", description=description, kind=counter
            )
            for part in ("bucket", "sum", "count")
        }
        les = [*(f"{bound:g}" for bound in bounds), "+Inf"]
        self._metrics: list[Any] = [
            *(self._families["bucket"].Metric(labels={**labels, "le": le}) for le in les),
            self._families["sum"].Metric(labels=labels),
            self._families["count"].Metric(labels=labels),
        ]
        self._shown = [0.0] * len(self._metrics)

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def show(self) -> None:
        """Bring /metrics up to date."""
        buckets = list(accumulate(self._counts))
        values = [*buckets, self._sum, buckets[-1]]
        for k, (metric, value) in enumerate(zip(self._metrics, values, strict=True)):
            if value != self._shown[k]:
                metric.increment(value - self._shown[k])
                self._shown[k] = value


class EngineMetrics:
    """labels: model, version and instance. most_rows: the profile's largest batch."""

    def __init__(self, labels: dict[str, str], engine: str, most_rows: int) -> None:
        powers = [2**k for k in range(most_rows.bit_length()) if 2**k < most_rows]
        self._rows = Histogram(
            "looprnn_batch_rows", "Rows in a run of the engine", [*powers, most_rows], labels
        )
        self._waste = Histogram(
            "looprnn_padding_waste",
            "Padding steps of a run of the engine / steps it computed",
            WASTE,
            labels,
        )
        self._seconds = Histogram(
            "looprnn_engine_seconds", "How long a run of the engine took", SECONDS, labels
        )
        self._family = pb_utils.MetricFamily(
            name="looprnn_engine_info",
            description="1 for the engine that serves",
            kind=pb_utils.MetricFamily.GAUGE,
        )
        self._info = self._family.Metric(labels={**labels, "engine": engine})
        self._info.set(1)

    def observe(self, *, rows: int, computed: int, useful: int, seconds: float) -> None:
        """One run: its rows, the steps it computed and those that its requests asked for."""
        self._rows.observe(rows)
        self._waste.observe((computed - useful) / computed)
        self._seconds.observe(seconds)

    def show(self) -> None:
        """Bring /metrics up to date."""
        with TELLING:
            for histogram in (self._rows, self._waste, self._seconds):
                histogram.show()
