"""`/metrics` of the hpc contract: exactly the documented families, read from the database at each scrape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from flask import Response
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.api.auth import OPERATOR, needs, public
from app.api.hpc.blueprint import beside
from app.api.hpc.schemas import STATES
from app.api.hpc.translate import WORD
from app.api.hub import hub
from app.services.observed import Overview, Running, overview

# Always this format: in OpenMetrics the counter and the gauge of states would have other names.
TEXT = "text/plain; version=0.0.4; charset=utf-8"

_OF_RUNNING: Sequence[tuple[str, str, Callable[[Running], float | None]]] = (
    ("hpc_job_runtime_seconds", "Runtime of the job in seconds", lambda one: one.runtime_s),
    ("hpc_job_cpu_usage_percent", "Current CPU usage of the job", lambda one: one.cpu_percent),
    ("hpc_job_memory_usage_bytes", "Current memory usage of the job in bytes", lambda one: one.memory_bytes),
    ("hpc_job_gpu_usage_percent", "Current GPU usage of the job", lambda one: one.gpu_percent),
)


class _Families(Collector):
    """The families of one scrape."""

    def __init__(self, seen: Overview) -> None:
        self._seen = seen

    def collect(self) -> Iterator[Metric]:
        """All six, also when there is no job."""
        for name, words, read in _OF_RUNNING:
            gauge = GaugeMetricFamily(name, words, labels=["job_id", "node", "user"])
            for one in self._seen.running:
                value = read(one)
                if value is not None:
                    gauge.add_metric([one.job_id, one.node, one.user], value)
            yield gauge
        states = GaugeMetricFamily("hpc_job_state_total", "Number of jobs in each state", labels=["state"])
        by_word = dict.fromkeys(STATES, 0)
        for state, number in self._seen.by_state.items():
            by_word[WORD[state]] += number
        for word, number in by_word.items():
            states.add_metric([word], number)
        yield states
        yield CounterMetricFamily("hpc_job_total", "Total number of jobs created", value=self._seen.ever_made)


@beside.route("/metrics", methods=["GET"])
@public(lambda settings: settings.metrics_open)
@needs(OPERATOR)
def show_metrics() -> Response:
    """Jobs that run now with what they use, jobs by state, and all jobs ever made; over all tenants."""
    registry = CollectorRegistry()
    registry.register(_Families(overview(hub().db)))
    return Response(generate_latest(registry), content_type=TEXT)
