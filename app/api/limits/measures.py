"""What Prometheus sees of the limits: refusals by contract and group, and whether Redis counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from threading import Lock

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.api.limits.counters import SharedCounters


class Measures(Collector):
    """Counts the refusals of this process. Labels come from the table, never from a request."""

    def __init__(self, counters: SharedCounters) -> None:
        self._counters = counters
        self._refused: Counter[tuple[str, str]] = Counter()
        self._lock = Lock()

    def refused(self, contract: str, group: str) -> None:
        """Counts a refusal."""
        with self._lock:
            self._refused[contract, group] += 1

    def collect(self) -> Iterator[Metric]:
        """The families of one scrape."""
        refused = CounterMetricFamily(
            "cfab_rate_limited", "Requests of this process refused with 429.", labels=["contract", "group"]
        )
        with self._lock:
            for (contract, group), number in sorted(self._refused.items()):
                refused.add_metric([contract, group], number)
        yield refused
        shared = self._counters.shared
        if shared is not None:
            yield GaugeMetricFamily(
                "cfab_rate_limits_redis_up", "Whether limits are counted in Redis; 0: by each process alone.", shared
            )
