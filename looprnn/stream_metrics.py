"""StreamMetrics: what the slot table counts, on Triton's /metrics."""

from typing import Any, Final

import triton_python_backend_utils as pb_utils  # provided by Triton's Python backend

from looprnn.metrics import TELLING
from looprnn.slots import SlotTable

FAMILIES: Final = {
    "live": ("looprnn_streams_live", "Streams that live at this moment"),
    "expired": ("looprnn_streams_expired_total", "Streams that sent nothing for too long"),
    "refused": ("looprnn_streams_refused_total", "STARTs refused since every slot was taken"),
    "reset": ("looprnn_streams_reset_total", "STARTs of a stream that lived already"),
}


class StreamMetrics:
    """One gauge and three counters. A value that stays is not sent: each costs a message to
    tritonserver.
    """

    def __init__(self, labels: dict[str, str]) -> None:
        kinds = pb_utils.MetricFamily
        self._families = []  # Triton drops a metric whose family is gone
        self._metrics: dict[str, Any] = {}
        with TELLING:
            for key, (name, description) in FAMILIES.items():
                kind = kinds.GAUGE if key == "live" else kinds.COUNTER
                family = pb_utils.MetricFamily(name=name, description=description, kind=kind)
                self._families.append(family)
                self._metrics[key] = family.Metric(labels=labels)
        self._shown = dict.fromkeys(FAMILIES, 0)

    def show(self, table: SlotTable) -> None:
        """Bring /metrics up to date."""
        now = {k: len(table) if k == "live" else getattr(table, k) for k in self._shown}
        if now == self._shown:
            return
        with TELLING:
            for key, value in now.items():
                if value != self._shown[key]:
                    self._metrics[key].increment(value - self._shown[key])  # a gauge's may be < 0
        self._shown = now
