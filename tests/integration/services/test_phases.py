"""The schema's phases and scale are those of the domain, and totals by them are exact."""

from __future__ import annotations

from itertools import product

import pytest

from app.domain.phase import Phase, phase_of
from app.domain.priority import MAX_PRIORITY, to_percent
from app.domain.states import JobState, Reason, StopCause
from app.services import inspect, recover, stop
from app.services.inspect import JobFilter
from tests.factories import Fabric


def test_the_schema_tells_the_same_phases(fabric: Fabric) -> None:
    for state, ready, reason, cause in product(JobState, (True, False), (None, *Reason), (None, *StopCause)):
        told = fabric.value(
            "SELECT job_phase(%s::smallint, %s, %s, %s::smallint)", int(state), ready, reason, cause and int(cause)
        )
        assert told == phase_of(state, ready, reason, cause)


def test_the_schema_has_the_same_scale(fabric: Fabric) -> None:
    told = fabric.all("SELECT p, job_percent(p) FROM generate_series(0, %s) p", MAX_PRIORITY)
    assert [tuple(row) for row in told] == [(p, to_percent(p)) for p in range(MAX_PRIORITY + 1)]


@pytest.mark.parametrize("folded", [False, True])
def test_totals_by_phase_and_priority_are_exact(fabric: Fabric, folded: bool) -> None:
    node = fabric.add_node()
    fabric.submit_one(priority=900)
    fabric.run(node)
    backing_off = fabric.submit_one(priority=600)
    fabric.sql("UPDATE job SET ready = false, not_before = now(), reason = 'backoff' WHERE id = %s", backing_off)
    cancelled = fabric.submit_one(priority=500)
    stop.cancel_pending(fabric.db, fabric.tenant, cancelled)
    fabric.submit_one(priority=999)
    if folded:
        recover.fold_stats(fabric.db)
    expected = {Phase.RUNNING: 1, Phase.WAITING: 1, Phase.CANCELLED: 1, Phase.READY: 1}
    assert inspect.phase_counts(fabric.db, fabric.tenant) == dict.fromkeys(Phase, 0) | expected
    for phase in Phase:
        for priority in (0, 500, 600, 900, 999, 1000):
            wanted = JobFilter(phases=frozenset({phase}), least_percent=to_percent(priority))
            listed, total = inspect.list_jobs(fabric.db, fabric.tenant, wanted, 10, 0)
            assert total == len(listed)
            assert all(job.phase == phase and to_percent(job.priority) >= to_percent(priority) for job in listed)
    fabric.assert_in_order()
