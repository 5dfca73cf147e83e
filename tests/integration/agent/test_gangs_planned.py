"""Gangs from submit to end: planned by the real planner, run by real agents and keepers; a host that dies mid-run."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.bells import Ringer
from app.domain.states import JobState
from app.services import recover
from scheduler.plan import run_plan
from scheduler.tasks import Task
from scheduler.ticker import Ticker
from tests.factories import Fabric, job, make_fabric, share, until
from tests.integration.agent.conftest import Site
from tests.integration.agent.test_gangs import rendezvous, rows, said, started
from workers.runners.process import ProcessRunner

PATIENCE_S = 90.0
WITNESS = r"""
import os, signal, sys, time
path = os.path.join(sys.argv[1], f"{os.environ['CFAB_ATTEMPT']}.{os.environ['RANK']}.{os.getpid()}")
# SIGTERM does not end it at once, as a training that saves: so an overlap would be seen.
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.3), os._exit(1)))
with open(path, "w") as out:
    while True:
        out.seek(0, 2); out.write(f"{time.clock_gettime(time.CLOCK_BOOTTIME)}\n"); out.flush()
        time.sleep(0.02)
"""
"""A member that writes down that it lives, all the time it does, in a file of its attempt and rank."""


@pytest.fixture
def fabric(database_url: str) -> Iterator[Fabric]:
    fabric = make_fabric(database_url, lease_s=4.0, fence_margin_s=1.0, plan_s=0.1)
    yield fabric
    fabric.db.close()


@pytest.fixture
def scheduler(fabric: Fabric) -> Iterator[None]:
    """What the scheduler does: reaps, promotes, plans."""
    db, settings = fabric.db, fabric.settings
    tasks = [
        Task("reap", 0.1, lambda: recover.reap(db, settings)),
        Task("promote", 0.1, lambda: recover.promote(db)),
        Task("plan", 0.1, lambda: run_plan(db, settings)),
    ]
    ticker = Ticker(db, {task.name: task for task in tasks}, Ringer(settings), 0.05)
    thread = threading.Thread(target=ticker.run, daemon=True)
    thread.start()
    yield
    ticker.stopped.set()
    thread.join(timeout=30)


@pytest.fixture
def keepers(site: Site) -> dict[str, ProcessRunner]:
    """Hosts with real processes."""
    return {name: site.host(name) for name in "abc"}


def test_a_gang_finds_its_places_meets_and_completes(
    site: Site, keepers: dict[str, ProcessRunner], scheduler: None
) -> None:
    for name in "ab":
        site.agent(name, runner=keepers[name], slots=2, simulate_gpus="2xA100-80GB", lease_s=20.0)
    big, small = site.fabric.submit(rendezvous(4, resources=share(gpus=1)), rendezvous(2, resources=share(gpus=1)))
    site.until_ended(big, small, within_s=PATIENCE_S)
    for job_id, total in ((big, 1111), (small, 11)):
        assert site.fabric.state(job_id) == JobState.COMPLETED, site.fabric.row(job_id).message
        members = rows(site.fabric, job_id)
        assert [said(site.fabric, job_id, row.member)["sum"] for row in members] == [total] * len(members)
    assert {row.node_id for row in rows(site.fabric, big)} == {"a", "b"}
    site.fabric.assert_in_order()


def test_a_host_that_dies_takes_the_gang_with_it_and_no_two_attempts_live_at_once(
    site: Site, keepers: dict[str, ProcessRunner], scheduler: None
) -> None:
    """The host's agent is gone and nobody renews; its keeper must have killed the member before another takes over."""
    lives = site.directory / "lives"
    lives.mkdir()
    lives.chmod(0o777)
    agents = {
        name: site.agent(name, runner=keepers[name], slots=1, lease_s=4.0, fence_margin_s=1.0, renew_s=0.3)
        for name in "abc"
    }
    script = f'exec {sys.executable} -c "$PROGRAM" {lives}'
    (job_id,) = site.fabric.submit(job(script=script, members=2, environment={"PROGRAM": WITNESS}, grace_s=2.0))
    until(lambda: started(site.fabric, job_id), PATIENCE_S)
    until(lambda: len(beats(lives, 1)) == 2, PATIENCE_S)
    victim = rows(site.fabric, job_id)[1].node_id
    agents[victim].stop()
    until(lambda: started(site.fabric, job_id, 2), PATIENCE_S)
    until(lambda: len(beats(lives, 2)) == 2, PATIENCE_S)
    last = max(times[-1] for times in beats(lives, 1).values())
    first = min(times[0] for times in beats(lives, 2).values())
    assert last < first, f"a member of attempt 1 lived {last - first:.3f} s into attempt 2"
    ends = {row.member: row.outcome for row in rows(site.fabric, job_id)}
    assert ends == {0: "cancelled", 1: "lost"}
    assert {row.node_id for row in rows(site.fabric, job_id, 2)} == set("abc") - {victim}
    assert (site.fabric.row(job_id).failures, site.fabric.row(job_id).attempt) == (0, 2)
    site.fabric.assert_in_order()


def beats(lives: Path, attempt: int) -> dict[str, list[float]]:
    """When each member of an attempt was alive, by member."""
    found = {}
    for path in lives.glob(f"{attempt}.*"):
        times = [float(line) for line in path.read_text().splitlines()[:-1] if line]
        if times:
            found[path.name] = times
    return found
