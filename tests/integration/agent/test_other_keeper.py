"""A keeper that was started with other settings, or is older, gives up its place as soon as nothing runs under it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.domain.job import DEFAULT_TENANT
from app.domain.states import JobState
from app.services import nodes, operate
from app.services.stop import request_stop
from tests.conformance.lab import boottime
from tests.engine import missing
from tests.factories import until
from tests.integration.agent.conftest import Site
from workers.runners.base import Runner, RunSpec, StartRefused
from workers.runners.keeper_client import KeeperOptions
from workers.runners.process import ProcessRunner
from workers.sandbox.detect import detect

Open = Callable[..., ProcessRunner]
BASE = 410_000


@pytest.fixture
def opened(directory: Path) -> Iterator[Open]:
    """Opens runners on one keeper's directory, each as a worker under its own settings would."""
    runners: list[ProcessRunner] = []

    def runner(**options: Any) -> ProcessRunner:
        runners.append(ProcessRunner(KeeperOptions(directory / "other", **{"cgroups": "off", **options})))
        return runners[-1]

    yield runner
    for one in runners[:-1]:
        one.close()
    runners[-1].shutdown_keeper(kill=True)


@pytest.fixture
def users() -> int:
    """The first user of jobs."""
    if os.geteuid() != 0:
        missing("jobs get users of their own only when the tests run as root")
    return BASE


def spec(attempt_id: str, script: str, **more: Any) -> RunSpec:
    return RunSpec(attempt_id, ["/bin/sh", "-c", script], {"PATH": "/usr/bin:/bin"}, boottime() + 300, **more)


def node_of(site: Site) -> operate.NodeDetail:
    return operate.get_node(site.fabric.db, "n1")


def test_an_idle_keeper_without_users_of_its_own_is_replaced_before_anything_starts(
    site: Site, opened: Open, users: int
) -> None:
    opened().close()
    runner = opened(uid_base=users)
    site.agent(runner=runner)
    job_id = site.fabric.submit_one(script="id -u")
    site.until_ended(job_id)
    assert int(site.output(job_id)) >= users
    assert runner.obstacle() is None


def test_an_idle_keeper_without_a_sandbox_is_replaced_when_one_is_wanted(opened: Open) -> None:
    bwrap = detect("preferred").bwrap
    if bwrap is None:
        missing("bubblewrap does not work here")
    opened().close()
    runner = opened(bwrap=bwrap)
    assert runner.start(spec("a1", "exit 0", sandbox="bubblewrap"))


def test_a_keeper_as_wanted_stays(opened: Open, users: int) -> None:
    first = opened(uid_base=users)
    first.close()
    assert opened(uid_base=users).hello["pid"] == first.hello["pid"]


def test_nothing_is_claimed_till_a_keeper_of_other_settings_is_idle_and_replaced(
    site: Site, opened: Open, users: int
) -> None:
    fabric = site.fabric
    before = site.agent(runner=opened())
    running = fabric.submit_one(script="exec sleep 600")
    until(lambda: fabric.state(running) == JobState.RUNNING)
    before.stop()
    runner = opened(uid_base=users)
    agent = site.agent(runner=runner)
    waiting = fabric.submit_one(script="id -u")
    until(lambda: node_of(site).drain is not None)
    drain = node_of(site).drain
    assert drain is not None and drain.by == nodes.ITSELF
    assert f"jobs run as the worker's own user, not as users from {users} on" in drain.reason
    for _ in range(5):
        agent.bell()
    assert (fabric.state(running), fabric.state(waiting)) == (JobState.RUNNING, JobState.PENDING)
    request_stop(fabric.db, DEFAULT_TENANT, running, "ann")
    agent.wake()
    site.until_ended(running, waiting)
    assert int(site.output(waiting)) >= users
    assert [a.outcome for a in fabric.attempts(waiting)] == ["completed"]
    assert [a.outcome for a in fabric.attempts(running)] == ["cancelled"]
    until(lambda: node_of(site).drain is None)


def test_what_was_claimed_before_is_not_started_by_a_keeper_of_other_settings(opened: Open, users: int) -> None:
    first = opened()
    first.start(spec("a1", "exec sleep 600"))
    first.close()
    runner = opened(uid_base=users)
    (answer,) = runner.start_many([spec("a2", "exit 0")])
    assert isinstance(answer, StartRefused) and answer.code == "keeper"
    assert [held.attempt_id for held in runner.attach()] == ["a1"]


def test_an_operators_drain_is_left_alone(site: Site, opened: Open, users: int) -> None:
    first = opened()
    first.start(spec("00000000-0000-0000-0000-000000000001", "exec sleep 600"))
    first.close()
    agent = site.agent()
    agent.stop()
    operate.drain(site.fabric.db, "n1", "new driver", "olga", None)
    site.agent(runner=opened(uid_base=users))
    # The agent ends what has no lease here; then the keeper is idle and gives up its place.
    runner: Runner = site.agents[-1]._runner
    until(lambda: runner.obstacle() is None)
    drain = node_of(site).drain
    assert drain is not None and drain.by == "olga"


def test_an_older_keeper_that_cannot_start_a_job_is_replaced_when_it_is_idle(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = opened()
    pid = runner.hello["pid"]
    runner.start(spec("a1", "exec sleep 600"))
    until(lambda: any(held.running for held in runner.attach()))
    runner._client.hello["version"] = 1
    (answer,) = runner.start_many([spec("a2", "exit 0", files={"a": "x"})])
    assert isinstance(answer, StartRefused) and answer.code == "old"
    assert "older than its agent" in (runner.obstacle() or "")
    runner.kill("a1", "enough")
    until(lambda: runner.hello["pid"] != pid and runner.obstacle() is None)
    assert runner.start(spec("a2", "exit 0", files={"a": "x"}))
