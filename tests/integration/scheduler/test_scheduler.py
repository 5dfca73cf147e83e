"""The ticker does what beat has not done in time; two schedulers do no harm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest

from app.bells import Ringer
from app.domain.priority import PriorityClass
from app.domain.states import JobState
from app.storage.faults import Fault, FaultPlan
from scheduler.tasks import make_tasks, perform
from scheduler.ticker import Ticker
from tests.factories import BACKGROUND, Fabric, at_once, in_thread, make_fabric, until

NAMES = {"reap", "drain", "promote", "sweep", "stats", "statistics", "audit", "jobs", "keys", "retain"}


class Bells(Ringer):
    """Keeps what was rung."""

    def __init__(self, fabric: Fabric) -> None:
        super().__init__(fabric.settings)
        self.rung: set[PriorityClass] = set()

    def ring_all(self, classes: Iterable[PriorityClass]) -> None:
        self.rung |= set(classes)


@pytest.fixture
def fabric(database_url: str) -> Iterator[Fabric]:
    fabric = make_fabric(database_url)
    yield fabric
    fabric.db.close()


def ticker(fabric: Fabric, bells: Bells | None = None) -> Ticker:
    return Ticker(fabric.db, make_tasks(fabric.db, fabric.settings), bells or Bells(fabric), 0.05)


def test_the_first_tick_runs_everything_and_the_next_nothing_again(fabric: Fabric) -> None:
    assert set(ticker(fabric).tick()) >= NAMES
    assert not {"audit", "retain"} & set(ticker(fabric).tick())


def test_what_is_overdue_by_its_last_run_is_run_whoever_ran_it_last(fabric: Fabric) -> None:
    ticker(fabric).tick()
    fabric.sql("UPDATE task_run SET last_run_at = now() + interval '1 hour'")
    fabric.sql("UPDATE task_run SET last_run_at = now() - interval '1 hour' WHERE name = 'audit'")
    assert ticker(fabric).tick() == ["audit"]


def test_bells_ring_for_what_waits(fabric: Fabric) -> None:
    bells = Bells(fabric)
    fabric.submit_one()
    ticker(fabric, bells).tick()
    assert bells.rung == {BACKGROUND}


def test_one_failing_task_holds_up_no_other(fabric: Fabric) -> None:
    fabric.db.faults = FaultPlan([Fault("reap", "before")])
    assert set(ticker(fabric).tick()) >= NAMES - {"reap"}


def test_two_schedulers_at_once_do_no_harm(fabric: Fabric) -> None:
    fabric.submit_one()
    at_once(4, lambda _: ticker(fabric).tick())
    fabric.assert_in_order()


def test_the_loop_recovers_a_lost_job_and_stops_when_told(fabric: Fabric) -> None:
    fabric.settings = replace(fabric.settings, lease_s=0.3, tick_s=0.05)
    fabric.submit_one()
    taken = fabric.run(fabric.add_node())
    fabric.expire()
    loop = ticker(fabric)
    with in_thread(loop.run) as running:
        until(lambda: fabric.state(taken.job_id) == JobState.PENDING)
        loop.stopped.set()
        running.result(10)
    fabric.assert_in_order()


def test_planted_drift_is_told_loudly(fabric: Fabric, caplog: pytest.LogCaptureFixture) -> None:
    fabric.submit_one()
    fabric.claim_one(fabric.add_node())
    fabric.sql("UPDATE usage SET jobs = 5")
    perform(make_tasks(fabric.db, fabric.settings)["audit"], Bells(fabric))
    assert "5 counted, 1 held" in caplog.text
