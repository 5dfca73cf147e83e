"""A worker that starts while its Docker Engine is away: processes go on, and the engine's return is noticed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import pytest

from app.domain.states import JobState
from app.local.keepers import end_keepers
from app.services import operate
from tests.chaos.process import Process
from tests.engine import TEST_IMAGE, TestEngine
from tests.factories import Fabric, until
from tests.integration.agent.conftest import OutlivingRunner, Site
from tests.integration.agent.test_agent import fake
from tests.integration.agent.test_containers import submitted
from workers.runners.base import Held, RunnerUnavailable, RunSpec, StartRefused
from workers.runners.composite import Runners


class Unreachable(OutlivingRunner):
    """The runner of containers, which does not answer."""

    away = False

    def attach(self) -> list[Held]:
        if self.away:
            raise RunnerUnavailable("no answer")
        return super().attach()

    def start_many(self, specs: Sequence[RunSpec]) -> list[bool | StartRefused]:
        names = [one.name for one in fields(RunSpec)]
        return super().start_many([RunSpec(**{name: getattr(spec, name) for name in names}) for spec in specs])


def test_processes_are_taken_up_while_the_containers_keeper_does_not_answer(site: Site, directory: Path) -> None:
    fabric = site.fabric
    processes, containers = OutlivingRunner(directory / "p"), Unreachable(directory / "c")
    both = Runners(processes, containers)
    first = site.agent(runner=both, runners=("process", "container"), container_network="none", lease_s=60.0)
    (process,) = fabric.submit(fake(duration_s="forever"))
    contained = submitted(fabric, "some/image:1", "sleep", environment={"FAKE_DURATION_S": "forever"})
    until(lambda: {fabric.state(process), fabric.state(contained)} == {JobState.RUNNING})
    first.stop()
    containers.away = True
    agent = site.agent(runner=both, runners=("process", "container"), container_network="none", lease_s=60.0)
    assert agent.unseen == {"container"}
    assert [str(entry.job_id) for entry in agent.registry.all()] == [str(process)]
    before = fabric.value("SELECT expires_at FROM lease WHERE attempt_id = %s", fabric.row(process).attempt_id)
    until(
        lambda: (
            fabric.value("SELECT expires_at FROM lease WHERE attempt_id = %s", fabric.row(process).attempt_id) > before
        )
    )
    assert fabric.state(contained) == JobState.RUNNING, "left to its lease"
    agent.stop()
    containers.away = False
    again = site.agent(runner=both, runners=("process", "container"), container_network="none", lease_s=60.0)
    assert {entry.job_id for entry in again.registry.all()} == {process, contained}
    assert [fabric.row(one).attempt for one in (process, contained)] == [1, 1]
    processes.end()
    containers.end()


@pytest.fixture
def worker(
    fabric: Fabric, directory: Path, docker_engine: TestEngine, request: pytest.FixtureRequest
) -> Iterator[Process]:
    plain = {key: value for key, value in os.environ.items() if not key.startswith("CFAB_")}
    own = {
        "CFAB_DATABASE_URL": fabric.settings.database_url, "CFAB_BROKER_URL": request.param, "CFAB_NODE_NAME": "n1",
        "CFAB_WORK_DIR": str(directory / "work"), "CFAB_SANDBOX": "off", "CFAB_JOB_UID_BASE": "540000",
        "CFAB_DOCKER_HOST": f"unix://{docker_engine.socket}", "CFAB_CONTAINER_PULL": "never",
        "CFAB_CONTAINER_NETWORK": "none", "CFAB_POLL_S": "1", "CFAB_RENEW_S": "1", "CFAB_MEMORY_MIB": "4096",
        "CFAB_CPUS_MILLI": "4000", "CFAB_SLOTS": "4",
    }  # fmt: skip
    process = Process("n1", [sys.executable, "-m", "app.cli.main", "worker"], {**plain, **own}, directory / "log")
    yield process
    process.end()
    end_keepers(directory / "work")


@pytest.mark.parametrize("worker", ["", "redis://127.0.0.1:1/0"], ids=["no broker", "with Celery"], indirect=True)
def test_a_worker_serves_processes_till_the_engine_is_back(
    fabric: Fabric, worker: Process, docker_engine: TestEngine, directory: Path
) -> None:
    def runners() -> set[str]:
        return {name for name in operate.get_node(fabric.db, "n1").runners if not name.startswith("gang-")}

    worker.start()
    process = fabric.submit_one(script="exec sleep 600")
    contained = submitted(fabric, TEST_IMAGE, "sleep", "600")
    until(lambda: {fabric.state(process), fabric.state(contained)} == {JobState.RUNNING}, 60)
    worker.kill()
    docker_engine.stop_engine()
    try:
        worker.start()
        until(lambda: runners() == {"process"}, 60)
        assert (fabric.state(process), fabric.row(process).attempt) == (JobState.RUNNING, 1)
    finally:
        docker_engine.start_engine()
    until(lambda: runners() == {"process", "container"}, 60)
    assert worker.alive
    late = fabric.submit_one(script="echo hello")
    until(lambda: fabric.state(late) == JobState.COMPLETED, 60)
    assert (fabric.state(process), fabric.row(process).attempt) == (JobState.RUNNING, 1)
    assert fabric.value("SELECT count(*) FROM attempt WHERE outcome = 'lost' AND job_id = %s", process) == 0
