"""Prometheus text: this process's requests through the exporter, and the fabric's numbers, read at each scrape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

from flask import Flask, Request, Response, current_app, request
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_flask_exporter import PrometheusMetrics

from app.api.stream_budget import StreamBudget
from app.domain.errors import Unavailable
from app.services import inspect, plans
from app.services.views import Gauges
from app.storage.database import Database


class FabricCollector(Collector):
    """Reads the gauges at each scrape; with the database away only `cfab_database_up 0` is left of them."""

    def __init__(self, db: Database, streams: StreamBudget) -> None:
        self._db = db
        self._streams = streams

    def collect(self) -> Iterator[Metric]:
        """All families of one scrape."""
        yield GaugeMetricFamily("cfab_streams_open", "Open log streams of this process.", self._streams.open_count)
        up = GaugeMetricFamily("cfab_database_up", "Whether PostgreSQL answers.")
        try:
            gauges = inspect.gauges(self._db)
        except Unavailable:
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield from _families(gauges)

    def describe(self) -> list[Metric]:
        """Nothing: the registry must not ask the database when the server starts."""
        return []


def _families(gauges: Gauges) -> Iterator[Metric]:
    jobs = GaugeMetricFamily("cfab_jobs", "Jobs by state and priority class.", labels=["state", "priority"])
    for (state, priority), number in sorted(gauges.jobs.items()):
        jobs.add_metric([state, priority], number)
    yield jobs
    executors = GaugeMetricFamily("cfab_executors", "Executors by state.", labels=["state"])
    for state, number in sorted(gauges.executors.items()):
        executors.add_metric([state], number)
    yield executors
    ages = GaugeMetricFamily("cfab_task_age_seconds", "Seconds since each upkeep task last ran.", labels=["task"])
    for task, age_s in sorted(gauges.tasks_age_s.items()):
        ages.add_metric([task], age_s)
    yield ages
    never = gauges.task_detail.get("unrunnable", {}).get("jobs", 0)
    yield GaugeMetricFamily("cfab_unrunnable_jobs", "Waiting jobs that no registered node could ever run.", never)
    yield from _plan_families(gauges)


def _plan_families(gauges: Gauges) -> Iterator[Metric]:
    """The planner's: the last cycle, what is reserved, and what its cycles added up to since the database was made."""
    detail = gauges.task_detail.get("plan", {})
    took_s, sums = float(detail.get("took_s", 0.0)), plans.totals(detail)
    yield GaugeMetricFamily("cfab_plan_cycle_seconds", "How long the planner's last cycle took.", took_s)
    yield GaugeMetricFamily("cfab_plan_reserved_jobs", "Jobs for which capacity is reserved.", gauges.reserved_jobs)
    for name, told, number in (
        ("cycles", "Cycles of the planner.", sums.cycles),
        ("busy_seconds", "Seconds that cycles of the planner took.", sums.seconds),
        ("placements", "Jobs that the planner placed.", sums.placed),
        ("refused_placements", "Placements that no longer fitted when they were made.", sums.refused),
        ("preemptions", "Jobs that were told to make room.", sums.preempted),
    ):
        yield CounterMetricFamily(f"cfab_plan_{name}", told, number)


class Exporter:
    """Counts every request of an app by method, route and status; `render` gives the text."""

    def __init__(self, app: Flask, db: Database, streams: StreamBudget) -> None:
        registry = CollectorRegistry()
        self._metrics = PrometheusMetrics(
            app, path=None, group_by=route, defaults_prefix="cfab", registry=registry, buckets=_BUCKETS_S
        )
        registry.register(FabricCollector(db, streams))
        self._registry = registry

    def add(self, collector: Collector) -> None:
        """Shows the families of `collector` too."""
        self._registry.register(collector)

    def render(self) -> Response:
        """The current request's answer, in the format its Accept header asks for."""
        names = request.args.getlist("name[]") or None
        text, kind = self._metrics.generate_metrics(request.headers.get("Accept"), names)
        return Response(text, content_type=kind)


def exporter() -> Exporter:
    """The exporter of the current application."""
    return cast(Exporter, current_app.extensions["cfab_exporter"])


_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


def route(asked: Request) -> str:
    """The label of a request: its rule, never its path, so that callers cannot make series."""
    return asked.url_rule.rule if asked.url_rule is not None else "unknown"
