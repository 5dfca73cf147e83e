"""Members of gangs that start, end, are lost, stopped and told twice in any order, at the same time as others."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.domain.errors import StateConflict
from app.domain.job import Assignment
from app.domain.policy import Ending
from app.domain.states import TERMINAL, JobState, Outcome, StopCause
from app.services import recover
from app.services.gangs import miss_barrier
from app.services.nodes import Orphan
from app.services.stop import request_stop
from tests.factories import Fabric, at_once, finished
from tests.gangs import assemble, gang_node, leader_of, prepare

ENDS = {
    "done": Ending(exit_code=0),
    "failed": Ending(exit_code=1),
    "killed": Ending(signal=9),
    "stopped": Ending(signal=15, stopped=True),
    "out of memory": Ending(exit_code=137, oom=True),
    "refused": Ending(started=False, refused=True),
    "node fault": Ending(started=False, node_fault=True),
    "lost": Ending(lost=True),
}
STEPS = [*ENDS, "prepared", "started", "handed back", "expired", "cancelled", "preempted", "missed", "again"]


def act(fabric: Fabric, members: list[Assignment], what: str, which: int) -> None:
    """One step of the world, whether or not it makes sense by now."""
    one = members[which % len(members)]
    if what in ENDS:
        fabric.finish(one, ENDS[what])
    elif what == "prepared":
        prepare(fabric, one)
    elif what == "started":
        fabric.start(one)
    elif what == "handed back":
        recover.hand_back(fabric.db, [Orphan(one.attempt_id, one.token, True)], "not here", uncharged=False)
    elif what == "expired":
        fabric.expire(one)
        fabric.reap()
    elif what in {"cancelled", "preempted"}:
        stop(fabric, one, StopCause.CANCEL if what == "cancelled" else StopCause.PREEMPT)
    elif what == "missed":
        miss_barrier(fabric.db, [leader_of(members)], 0.0)
    else:
        fabric.finish_all(*[finished(member, Ending(exit_code=0)) for member in members])


def stop(fabric: Fabric, one: Assignment, cause: StopCause) -> None:
    if fabric.state(one.job_id) not in TERMINAL and (
        cause == StopCause.CANCEL or fabric.state(one.job_id) != JobState.PENDING
    ):
        request_stop(fabric.db, fabric.tenant, one.job_id, "test", cause=cause)


def check(fabric: Fabric, members: list[Assignment]) -> None:
    """The job is over exactly when all members are; it says what the gravest of them says; all is given back."""
    fabric.assert_in_order()
    row = fabric.row(members[0].job_id)
    ends = {r.member: r.outcome for r in fabric.all("SELECT * FROM attempt WHERE job_id = %s AND number = 1", row.id)}
    assert len(ends) == len(members)
    over = all(outcome is not None for outcome in ends.values())
    if not over:
        assert row.state in {JobState.STARTING, JobState.RUNNING, JobState.STOPPING}
        return
    told = set(ends.values())
    assert row.attempt_id is None or row.attempt > 1
    if row.state == JobState.COMPLETED:
        assert told == {"completed"}
    if told == {"completed"}:
        assert row.state in {JobState.COMPLETED, JobState.CANCELLED}
    if row.state == JobState.FAILED:
        assert told & {Outcome.FAILED, Outcome.OUT_OF_MEMORY, Outcome.REFUSED, Outcome.TIMED_OUT}
        assert Outcome.REFUSED in told or Outcome.LOST not in told, "a lost host is charged to nobody"
    assert (
        fabric.all("SELECT 1 FROM allocation WHERE attempt_id = ANY(%s::uuid[])", [m.attempt_id for m in members]) == []
    )


@pytest.mark.parametrize("size", [2, 3])
def test_in_any_order_all_is_accounted_once(fabric: Fabric, size: int) -> None:
    nodes = [gang_node(fabric, name) for name in "abc"[:size]]

    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None)
    @given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, size - 1)), min_size=1, max_size=8))
    def play(steps: list[tuple[str, int]]) -> None:
        members = assemble(fabric, *nodes)
        for what, which in steps:
            act(fabric, members, what, which)
            check(fabric, members)
        act(fabric, members, "again", 0)
        check(fabric, members)
        end_for_good(fabric, members[0].job_id)

    play()


@pytest.mark.parametrize("seed", range(12))
def test_at_the_same_time_all_is_accounted_once(fabric: Fabric, seed: int) -> None:
    chance = random.Random(seed)
    nodes = [gang_node(fabric, name) for name in "abcd"]
    members = assemble(fabric, *nodes)
    steps: list[tuple[str, int]] = [(chance.choice(STEPS), chance.randrange(4)) for _ in range(16)]

    def some(turn: int) -> None:
        for what, which in steps[turn::4]:
            quietly(fabric, members, what, which)

    at_once(4, some)
    check(fabric, members)
    act(fabric, members, "again", 0)
    check(fabric, members)
    assert fabric.state(members[0].job_id) not in {JobState.STARTING, JobState.RUNNING, JobState.STOPPING}


def quietly(fabric: Fabric, members: list[Assignment], what: str, which: int) -> None:
    """A stop that comes when the job has just ended is refused, and that is well."""
    try:
        act(fabric, members, what, which)
    except StateConflict:
        assert what in {"cancelled", "preempted"}


def end_for_good(fabric: Fabric, job_id: Any) -> None:
    if fabric.state(job_id) not in TERMINAL:
        request_stop(fabric.db, fabric.tenant, job_id, "test")
