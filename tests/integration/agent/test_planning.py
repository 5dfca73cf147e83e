"""The planner with real agents, simulated GPUs and a scheduler beside them: preemption, reservations, holes, shares."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

from app.bells import Ringer
from app.domain.states import JobState
from app.services import recover
from app.services.stop import cancel_pending
from scheduler.plan import run_plan
from scheduler.tasks import Task
from scheduler.ticker import Ticker
from tests.factories import BACKGROUND, BEST_EFFORT, FOREGROUND, Fabric, job, make_fabric, share, until
from tests.integration.agent.conftest import Site

PATIENCE_S = 45.0
SAVES = """trap 'echo saved; exit 0' TERM
echo begun
while true; do sleep 0.05; done"""


@pytest.fixture
def fabric(database_url: str) -> Iterator[Fabric]:
    fabric = make_fabric(database_url, min_runtime_s=0.0, reserve_after_s=0.0, lease_s=20.0, plan_s=0.1)
    yield fabric
    fabric.db.close()


class Scheduler:
    """A scheduler's ticker in a thread, with the tasks that matter here."""

    def __init__(self, fabric: Fabric) -> None:
        settings, db = fabric.settings, fabric.db
        tasks = {
            task.name: task
            for task in (
                Task("reap", 0.1, lambda: recover.reap(db, settings)),
                Task("promote", 0.1, lambda: recover.promote(db)),
                Task("plan", 0.05, lambda: run_plan(db, settings)),
            )
        }
        self._ticker = Ticker(db, tasks, Ringer(settings), 0.05)
        self._thread = threading.Thread(target=self._ticker.run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._ticker.stopped.set()
        self._thread.join(timeout=30)


@pytest.fixture
def scheduler(fabric: Fabric) -> Iterator[Scheduler]:
    running = Scheduler(fabric)
    yield running
    running.stop()


def fake(runs_s: float | None = None, **changes: Any) -> Any:
    """A job that the fake runner plays, for so long or until it is told to end."""
    plays = {"FAKE_DURATION_S": "forever" if runs_s is None else str(runs_s)}
    return job(environment=plays, grace_s=0.2, **changes)


def until_state(fabric: Fabric, job_id: UUID, *states: JobState) -> None:
    until(lambda: fabric.state(job_id) in states, PATIENCE_S)


def node_of(fabric: Fabric, job_id: UUID) -> str:
    return str(fabric.row(job_id).node_id)


def test_a_preempted_job_saves_its_work_and_runs_again_uncharged(site: Site, scheduler: Scheduler) -> None:
    fabric = site.fabric
    high = fabric.add_tenant("high", tier="critical", can_preempt_others=True)
    site.agent(runner=site.processes(), simulate_gpus="1xA100-80GB")
    (low,) = fabric.submit(job(script=SAVES, grace_s=20, priority_class=BEST_EFFORT, resources=share(gpus=1)))
    until(lambda: b"begun" in site.output(low), PATIENCE_S)
    more = fabric.submit(job(script="true", priority_class=BEST_EFFORT, resources=share(gpus=1)))
    (urgent,) = fabric.submit(job(script="sleep 0.2", priority_class=FOREGROUND, resources=share(gpus=1)), tenant=high)
    until_state(fabric, urgent, JobState.COMPLETED)
    first = fabric.attempts(low)[0]
    # It was told and not killed; its room went to the preemptor, though others waited for longer.
    assert (first.outcome, first.stopped_by, first.exit_code) == ("preempted", "scheduler", 0)
    assert fabric.attempts(urgent)[0].claimed_at < fabric.value(
        "SELECT COALESCE(min(claimed_at), 'infinity') FROM attempt WHERE job_id = %s", more[0]
    )
    until(lambda: fabric.row(low).attempt == 2 and fabric.state(low) == JobState.RUNNING, PATIENCE_S)
    assert fabric.row(low).failures == 0
    assert fabric.all("SELECT * FROM reservation") == []


def test_a_large_job_gets_its_room_from_a_stream_of_small_ones(site: Site, scheduler: Scheduler) -> None:
    fabric = site.fabric
    site.agent("n1", simulate_gpus="4xA100-80GB")
    small = fabric.submit(*[fake(0.3, resources=share(gpus=1)) for _ in range(8)])
    (large,) = fabric.submit(fake(0.1, resources=share(gpus=4)))
    stream = [*small]
    while fabric.state(large) in {JobState.PENDING} and len(stream) < 400:
        stream += fabric.submit(fake(0.3, resources=share(gpus=1)))
        until(lambda: fabric.value("SELECT count(*) FROM job WHERE state = 0 AND id <> %s", large) <= 4, PATIENCE_S)
    until_state(fabric, large, JobState.COMPLETED)
    site.until_ended(*stream, within_s=PATIENCE_S)
    assert len(stream) < 400
    fabric.assert_in_order()


def test_a_short_job_runs_in_the_hole_and_a_long_one_does_not(site: Site, scheduler: Scheduler) -> None:
    fabric = site.fabric
    site.agent("n1", simulate_gpus="4xA100-80GB")
    (busy,) = fabric.submit(fake(resources=share(gpus=3), time_limit_s=600))
    until_state(fabric, busy, JobState.RUNNING)
    # Another waits that needs less than the large one, so that this must gather its room.
    large, other = fabric.submit(fake(resources=share(gpus=4)), fake(resources=share(gpus=2)))
    until(lambda: fabric.value("SELECT count(*) FROM reservation WHERE job_id = %s", large) == 1, PATIENCE_S)
    late, short = fabric.submit(
        fake(resources=share(gpus=1), time_limit_s=5000), fake(0.1, resources=share(gpus=1), time_limit_s=30)
    )
    until_state(fabric, short, JobState.COMPLETED)
    assert {fabric.state(one) for one in (large, other, late)} == {JobState.PENDING}


def test_two_tenants_share_over_time(site: Site, scheduler: Scheduler) -> None:
    fabric = site.fabric
    site.agent("n1", slots=1)
    first = fabric.add_tenant("first", tier="critical")
    second = fabric.add_tenant("second", tier="critical", weight=3.0)
    # The first has used the fabric alone until now.
    fabric.sql("INSERT INTO tenant_share (tenant_id, average) VALUES (%s, 0.2)", first)
    mine = fabric.submit(*[fake(0.05) for _ in range(10)], tenant=first)
    theirs = fabric.submit(*[fake(0.05) for _ in range(10)], tenant=second)
    site.until_ended(*mine, *theirs, within_s=PATIENCE_S)
    order = [row.tenant_id for row in fabric.all(
        "SELECT j.tenant_id FROM attempt a JOIN job j ON j.id = a.job_id ORDER BY a.claimed_at, a.id"
    )]  # fmt: skip
    # Whoever was claimed before the other had submitted aside, the second had its turns first.
    assert order[1:9].count(second) >= 6


def test_an_old_job_of_the_lowest_class_is_not_starved(site: Site, fabric: Fabric) -> None:
    scheduler = Scheduler(make_fabric(fabric.settings.database_url, starvation_s=1.0, plan_s=0.1, reserve_after_s=0.0))
    try:
        site.agent("n1", slots=1)
        (old,) = fabric.submit(fake(0.05, priority_class=BEST_EFFORT))
        fabric.sql("UPDATE job SET created_at = now() - interval '1 minute' WHERE id = %s", old)
        stream = fabric.submit(*[fake(0.05, priority_class=FOREGROUND) for _ in range(10)])
        while fabric.state(old) == JobState.PENDING and len(stream) < 400:
            stream += fabric.submit(fake(0.05, priority_class=FOREGROUND))
            until(lambda: fabric.value("SELECT count(*) FROM job WHERE state = 0") <= 8, PATIENCE_S)
        until_state(fabric, old, JobState.COMPLETED)
        assert len(stream) < 400
    finally:
        scheduler.stop()


def test_a_cancelled_preemptor_leaves_its_room_to_others(site: Site, scheduler: Scheduler) -> None:
    fabric = site.fabric
    high = fabric.add_tenant("high", tier="critical", can_preempt_others=True)
    site.agent(runner=site.processes(), simulate_gpus="1xA100-80GB")
    (low,) = fabric.submit(
        job(
            script="trap 'sleep 1; exit 0' TERM; echo begun; while true; do sleep 0.05; done",
            grace_s=30, priority_class=BEST_EFFORT, resources=share(gpus=1),
        )
    )  # fmt: skip
    until(lambda: b"begun" in site.output(low), PATIENCE_S)
    (urgent,) = fabric.submit(fake(priority_class=FOREGROUND, resources=share(gpus=1)), tenant=high)
    until_state(fabric, low, JobState.STOPPING)
    cancel_pending(fabric.db, high, urgent)
    until(lambda: fabric.row(low).attempt == 2 and fabric.state(low) == JobState.RUNNING, PATIENCE_S)
    until(lambda: fabric.all("SELECT * FROM reservation") == [], PATIENCE_S)


def test_a_dead_scheduler_holds_nothing_for_ever(site: Site, scheduler: Scheduler) -> None:
    fabric = site.fabric
    site.agent("n1", simulate_gpus="4xA100-80GB")
    (busy,) = fabric.submit(fake(resources=share(gpus=3)))
    until_state(fabric, busy, JobState.RUNNING)
    large, _other = fabric.submit(fake(resources=share(gpus=4)), fake(resources=share(gpus=2)))
    until(lambda: fabric.value("SELECT count(*) FROM reservation") == 1, PATIENCE_S)
    scheduler.stop()
    (small,) = fabric.submit(fake(0.05, resources=share(gpus=1)))
    fabric.sql("UPDATE reservation SET expires_at = clock_timestamp() + interval '0.2 seconds'")
    until_state(fabric, small, JobState.COMPLETED)
    assert fabric.state(large) == JobState.PENDING


def test_what_a_killed_node_never_fetched_runs_elsewhere(site: Site, scheduler: Scheduler) -> None:
    fabric = site.fabric
    # A node that was registered and is silent from then on, with room for the large job alone.
    dead = fabric.add_node("dead", cpus=64, runners=("process", "gang-process"))
    (gang,) = fabric.submit(fake(0.05, members=2, resources=share(cpus=0.1)))
    until(lambda: fabric.state(gang) == JobState.STARTING, PATIENCE_S)
    site.agent("n1")
    fabric.sql("UPDATE node SET last_seen_at = now() - interval '1 hour' WHERE id = %s", dead.id)
    fabric.sql("UPDATE lease SET expires_at = now() - interval '1 second' WHERE node_id = %s", dead.id)
    fabric.reap()
    until_state(fabric, gang, JobState.COMPLETED)
    assert {row.node_id for row in fabric.attempts(gang) if row.number > 1} == {"n1"}
    assert fabric.row(gang).failures == 0


def test_a_gang_gathers_its_nodes_beside_small_jobs(site: Site, scheduler: Scheduler) -> None:
    fabric = site.fabric
    for name in ("n1", "n2"):
        site.agent(name, simulate_gpus="2xA100-80GB")
    stream = [*fabric.submit(*[fake(0.3, resources=share(gpus=1), priority_class=BACKGROUND) for _ in range(8)])]
    (gang,) = fabric.submit(fake(0.1, members=2, resources=share(gpus=2)))
    while fabric.state(gang) == JobState.PENDING and len(stream) < 400:
        stream += fabric.submit(fake(0.3, resources=share(gpus=1)))
        until(lambda: fabric.value("SELECT count(*) FROM job WHERE state = 0 AND id <> %s", gang) <= 4, PATIENCE_S)
    until_state(fabric, gang, JobState.COMPLETED)
    assert {row.node_id for row in fabric.attempts(gang)} == {"n1", "n2"}
    assert len(stream) < 400
