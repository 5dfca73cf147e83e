"""An agent whose database goes away at the worst moment, or whose jobs end while it takes over, goes on working."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest

from app.bells import Ringer
from app.domain.job import DEFAULT_TENANT, JobRequest
from app.domain.priority import PriorityClass
from app.domain.states import JobState
from app.services import inspect
from app.services.submit import submit
from app.storage.database import Database
from app.storage.faults import Fault, FaultPlan
from config.settings import Settings
from workers.agent.agent import Agent
from workers.agent.confinement import Confinement
from workers.artifacts import ArtifactCache, FetchPolicy
from workers.runners.base import Held, Runner
from workers.runners.fake import FakeRunner

PATIENCE_S = 20.0


def eventually(condition: Callable[[], object], what: str) -> None:
    until = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < until, f"no {what} within {PATIENCE_S} s"
        threading.Event().wait(0.01)


class EndsDuringAdoption(FakeRunner):
    """Ends its attempts just after the first list of them was made, so that the list is out of date at once."""

    def attach(self) -> list[Held]:
        held = super().attach()
        if any(one.running for one in held):
            for one in held:
                self.kill(one.attempt_id, "by the test")
            eventually(lambda: all(not one.running for one in FakeRunner.attach(self)), "end of the attempts")
        return held


class Bench:
    """Makes agents of one node on one database; ends them all."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings = replace(settings, node_name="bench", slots=4, poll_s=0.05, work_dir=folder)
        self.folder = folder
        self.agents: list[Agent] = []

    def agent(self, runner: Runner, faults: FaultPlan | None = None) -> Agent:
        db = Database(self.settings.database_url, pool_size=2, faults=faults)
        cache = ArtifactCache(
            self.folder / f"cache{len(self.agents)}", 10**6, FetchPolicy(max_bytes=10**6, timeout_s=5)
        )
        agent = Agent(db, self.settings, runner, cache, Ringer(self.settings), Confinement(), "this host")
        self.agents.append(agent)
        return agent

    def close(self) -> None:
        for agent in self.agents:
            agent.stop()


@pytest.fixture
def bench(settings: Settings, tmp_path: Path) -> Iterator[Bench]:
    made = Bench(settings, tmp_path)
    yield made
    made.close()


def submit_fake(db: Database, settings: Settings, duration: str = "0") -> UUID:
    request = JobRequest(
        type="test", priority_class=PriorityClass.BACKGROUND, script="-", environment={"FAKE_DURATION_S": duration}
    )
    return submit(db, settings, DEFAULT_TENANT, [request]).jobs[0].id


def test_a_poll_during_an_outage_does_not_end_the_claiming(bench: Bench, db: Database, tmp_path: Path) -> None:
    """The poll's last resort asks the database outside of any claim; it failed there and the agent went deaf."""
    outage = FaultPlan([Fault("read", "before", times=3)])
    agent = bench.agent(FakeRunner(tmp_path / "fake"), outage)
    agent.start()
    eventually(lambda: len(outage.fired) == 3, "outage")
    job_id = submit_fake(db, bench.settings)
    eventually(lambda: inspect.get_job(db, DEFAULT_TENANT, job_id).state == JobState.COMPLETED, "end of the job")


@pytest.mark.parametrize("point", ["before", "after"])
def test_taking_over_is_tried_again_when_the_database_fails(
    bench: Bench, db: Database, tmp_path: Path, point: str
) -> None:
    faults = FaultPlan([Fault("register", point, times=1), Fault("renew", point, times=2)])
    agent = bench.agent(FakeRunner(tmp_path / "fake"), faults)
    agent.start()
    job_id = submit_fake(db, bench.settings)
    eventually(lambda: inspect.get_job(db, DEFAULT_TENANT, job_id).state == JobState.COMPLETED, "end of the job")


def test_an_end_during_adoption_is_told(bench: Bench, db: Database, tmp_path: Path) -> None:
    """An attempt that ended between the keeper's list and its entry was forgotten untold: its job ran for ever."""
    runner = EndsDuringAdoption(tmp_path / "fake")
    first = bench.agent(runner)
    first.start()
    job_id = submit_fake(db, bench.settings, "forever")
    eventually(lambda: inspect.get_job(db, DEFAULT_TENANT, job_id).state == JobState.RUNNING, "running job")
    runner.close = lambda: None  # type: ignore[method-assign]  # As a keeper, it outlives the agent.
    first.stop()
    bench.agents.remove(first)
    bench.agent(runner).start()
    eventually(lambda: inspect.job_detail(db, DEFAULT_TENANT, job_id).attempts[0].ended_at, "end of the attempt")
    FakeRunner.close(runner)
