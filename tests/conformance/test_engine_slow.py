"""Engines that are slow, or whose answers come too late: jobs end as they ended, and nothing is left behind."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.here import Here
from tests.conformance.lab import boottime, eventually
from tests.engine import TestEngine
from workers.containers import course
from workers.containers.engine import Engine, EngineAway

Open = Callable[..., Here]


@pytest.fixture
def here(node_directory: Path) -> Iterator[Open]:
    """Makes keepers with an engine each."""
    made: list[Here] = []

    def open_one(engine: Engine, name: str = "k", **more: Any) -> Here:
        made.append(Here(node_directory / name, engine, **more))
        return made[-1]

    yield open_one
    for one in made:
        one.close()


@pytest.mark.parametrize("due", ["time_limit_s", "deadline"])
def test_job_that_ended_in_time_has_ended_in_time_however_long_its_container_takes_to_go(
    here: Open, docker_engine: TestEngine, due: str
) -> None:
    gone = threading.Event()

    class Slow(Engine):
        def remove(self, container: str) -> None:
            if not container.startswith("cfab-"):
                gone.wait()
            super().remove(container)

    keeper = here(Slow(docker_engine.socket))
    keeper.start("a1", "true", **{due: boottime() + 300 if due == "deadline" else 300.0})
    attempt = keeper.jobs.attempts["a1"]
    eventually(attempt.over.is_set, "end of the program")
    with keeper.jobs.lock:
        # As if its time had passed since.
        attempt.deadline -= 1000.0 if due == "deadline" else 0.0
        attempt.record["started_boottime"] -= 1000.0
        keeper.jobs.tick()
    gone.set()
    record = keeper.ended("a1")
    assert (record["exit_code"], record["limit_hit"], record["lease_lost"]) == (0, None, False)


@pytest.mark.parametrize("late", [False, True], ids=["before", "after"])
def test_container_that_the_engine_makes_without_an_answer_is_removed(
    here: Open, docker_engine: TestEngine, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """Whether the engine makes it before or after somebody has looked for it."""
    monkeypatch.setattr(course, "LATE_S", (0.0, 0.1, 0.1))
    removed: list[str] = []

    class Slow(Engine):
        def create(self, name: str, config: Mapping[str, Any]) -> str:
            self.wanted = name, config
            if not late:
                super().create(name, config)
            raise EngineAway("the Docker Engine does not answer: timed out")

        def remove(self, container: str) -> None:
            super().remove(container)
            removed.append(container)
            if late and len(removed) == 2:
                super().create(*self.wanted)

    keeper = here(Slow(docker_engine.socket))
    assert "timed out" in keeper.run("a1", "true")["node_fault"]
    eventually(lambda: len(removed) == 4, "the last look")
    assert docker_engine.engine.labelled(f"cfab.node={keeper.jobs.name}") == []


def test_kill_that_is_asked_for_again_and_again_is_sent_by_one_thread(here: Open, docker_engine: TestEngine) -> None:
    """As a keeper that closes does while its engine is away."""
    back = threading.Event()

    class Away(Engine):
        def signal(self, container: str, name: str) -> None:
            if not back.is_set():
                raise EngineAway("the Docker Engine does not answer")
            super().signal(container, name)

    keeper = here(Away(docker_engine.socket))
    keeper.start("a1", "sleep", "1000")
    eventually(lambda: any(one["event"] == "started" for one in keeper.events), "start")
    with keeper.jobs.lock:
        # Else the kernel would end it at once.
        attempt = keeper.jobs.attempts["a1"]
        os.close(attempt.init_pidfd)
        attempt.init_pidfd = -1
    for _ in range(50):
        keeper.jobs.kill_all("keeper_shutdown")
    assert [thread.name for thread in threading.enumerate()].count("SIGKILL a1") == 1
    back.set()
    record = keeper.ended("a1")
    assert (record["signal"], record["stop_cause"]) == (9, "keeper_shutdown")
