"""What is gathered or made free for a job is not lost to others between the steps of a plan, or to a better class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from app.domain.policy import Ending
from app.domain.states import JobState
from app.services.passes import Pass
from scheduler import plan as applied
from tests.factories import BACKGROUND, BEST_EFFORT, FOREGROUND, Fabric, gpu, job, make_fabric, share

RULES: dict[str, Any] = {"min_runtime_s": 0.0, "reserve_after_s": 0.0}


@pytest.fixture
def fabric(database_url: str) -> Iterator[Fabric]:
    """A fabric whose planner waits for nothing."""
    fabric = make_fabric(database_url, **RULES)
    yield fabric
    fabric.db.close()


def _plan(fabric: Fabric, **settings: Any) -> Pass:
    """One cycle, however long the last one took."""
    fabric.sql("UPDATE task_run SET detail = detail - 'at' WHERE name = 'plan'")
    return applied.run_plan(fabric.db, replace(fabric.settings, **settings))


def test_a_claim_between_two_steps_of_a_plan_takes_nothing_of_what_was_gathered(
    fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = fabric.add_node(cpus=4, runners=("process", "gang-process"))
    fabric.submit(*[job(resources=share(cpus=2)) for _ in range(2)])
    running = fabric.claim(node)
    fabric.start(*running)
    gang = fabric.submit(job(members=2, resources=share(cpus=2)))[0]
    _plan(fabric)
    assert fabric.value("SELECT count(*) FROM reservation") == 2
    for one in running:
        fabric.finish(one)
    fabric.submit(job(resources=share(cpus=1)))
    place = applied._place
    stolen: list[int] = []

    def late(*args: Any) -> Any:
        stolen.append(len(fabric.claim(node)))
        return place(*args)

    monkeypatch.setattr(applied, "_place", late)
    _plan(fabric)
    assert stolen == [0]
    assert fabric.state(gang) == JobState.STARTING


def test_what_victims_give_back_is_the_preemptors_before_a_better_class(fabric: Fabric) -> None:
    victims = fabric.add_tenant(tier="low")
    high = fabric.add_tenant(tier="critical", can_preempt_others=True)
    other = fabric.add_tenant(tier="critical")
    node = fabric.add_node(cpus=2, gpus=[gpu(0), gpu(1)])
    fabric.submit(*[job(priority_class=BEST_EFFORT, resources=share(gpus=1)) for _ in range(2)], tenant=victims)
    a, b = fabric.run(node), fabric.run(node)
    urgent = fabric.submit(job(priority_class=BACKGROUND, resources=share(gpus=1)), tenant=high)[0]
    done = _plan(fabric)
    assert done.detail["preempted"] == 1
    told = next(one for one in (a, b) if one.attempt_id in fabric.renew(node, a, b).stops)
    fabric.submit(job(priority_class=FOREGROUND, resources=share(gpus=1)), tenant=other)
    assert _plan(fabric).detail["preempted"] == 0
    fabric.finish(told, Ending(signal=15, stopped=True))
    assert fabric.claim(node) == []
    assert _plan(fabric).detail["preempted"] == 0
    assert [one.job_id for one in fabric.claim(node)] == [urgent]
