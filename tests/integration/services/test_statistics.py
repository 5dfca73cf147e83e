"""Statistics count every event once, whatever happens to the scheduler in between."""

from __future__ import annotations

import pytest

from app.domain.histogram import bucket_of
from app.domain.policy import Ending
from app.domain.priority import PriorityClass
from app.services import recover, statistics, stop
from app.storage.statistics import COMPLETED, DISPATCHED
from tests.factories import BACKGROUND, FOREGROUND, Fabric


def sum_up(fabric: Fabric) -> statistics.Lately:
    while recover.sum_up(fabric.db).detail["events"]:
        pass
    return statistics.lately(fabric.db)


@pytest.fixture
def counting(fabric: Fabric) -> Fabric:
    """A fabric whose statistics have begun."""
    recover.sum_up(fabric.db)
    return fabric


def test_a_life_is_counted_by_what_became_of_it(counting: Fabric) -> None:
    fabric, node = counting, counting.add_node()
    for ending in (Ending(exit_code=0), Ending(exit_code=0), Ending(exit_code=1)):
        fabric.submit_one(priority_class=FOREGROUND)
        fabric.finish(fabric.run(node), ending)
    cancelled = fabric.submit_one()
    stop.cancel_pending(fabric.db, fabric.tenant, cancelled, by="test")
    lately = sum_up(fabric)
    assert (lately.day.submitted, lately.day.completed, lately.day.failed) == (4, 2, 1)
    assert lately.day.success_rate == pytest.approx(2 / 3)
    assert lately.hour == lately.day
    assert lately.hour_by_class[FOREGROUND].processed == 3
    assert lately.hour_by_class[BACKGROUND].submitted == 1
    assert lately.hour_by_class[BACKGROUND].processed == 0, "a job that never began was not processed"
    assert lately.hour_by_class[PriorityClass.BEST_EFFORT] == statistics.Totals()
    assert lately.peak_per_second >= 1
    assert lately.day.dispatch_p50_s is not None
    assert lately.day.run_mean_s is not None


def test_nothing_is_counted_twice_or_left_out(counting: Fabric) -> None:
    fabric = counting
    for _ in range(3):
        fabric.submit_one()
        recover.sum_up(fabric.db)
        recover.sum_up(fabric.db)
    assert sum_up(fabric).day.submitted == 3


def test_a_job_that_ran_twice_was_dispatched_once(counting: Fabric) -> None:
    fabric, node = counting, counting.add_node()
    fabric.submit_one(max_retries=1)
    fabric.finish(fabric.run(node), Ending(exit_code=1))
    fabric.due()
    recover.promote(fabric.db)
    fabric.finish(fabric.run(node), Ending(exit_code=0))
    sum_up(fabric)
    assert fabric.value("SELECT sum(n) FROM job_statistic WHERE kind = %s", DISPATCHED) == 1
    assert fabric.value("SELECT sum(n) FROM job_statistic WHERE kind = %s", COMPLETED) == 1


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.0012, 0.5, 3.0, 86_400.0])
def test_the_database_uses_the_same_buckets(counting: Fabric, seconds: float) -> None:
    fabric, node = counting, counting.add_node()
    job_id = fabric.submit_one()
    taken = fabric.run(node)
    fabric.sql("ALTER TABLE job DISABLE TRIGGER job_changed")
    fabric.sql("UPDATE job SET started_at = now() - make_interval(secs => %s) WHERE id = %s", seconds + 60, job_id)
    fabric.sql("ALTER TABLE job ENABLE TRIGGER job_changed")
    fabric.finish(taken)
    fabric.sql("UPDATE job SET finished_at = started_at + make_interval(secs => %s) WHERE id = %s", seconds, job_id)
    sum_up(fabric)
    assert fabric.value("SELECT bucket FROM job_statistic WHERE kind = %s", COMPLETED) == bucket_of(seconds)


def test_what_no_window_reaches_is_removed(counting: Fabric) -> None:
    fabric = counting
    fabric.submit_one()
    sum_up(fabric)
    fabric.sql("UPDATE job_statistic SET minute = minute - interval '3 days'")
    recover.retain(fabric.db, fabric.settings)
    assert fabric.value("SELECT count(*) FROM job_statistic") == 0
