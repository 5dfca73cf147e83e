"""For whom a plan keeps its tenant's quota, and what that leaves others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from app.domain.policy import Room, TenantView
from app.domain.priority import PriorityClass
from app.domain.tenant import Usage
from scheduler.planner import Plan, QuotaHold, Running, Snapshot, Waiting, plan
from tests.unit.scheduler.planner.worlds import NOW, RULES, TENANTS, fabric, node, running, shape, waiting

FOREGROUND, BEST_EFFORT = PriorityClass.FOREGROUND, PriorityClass.BEST_EFFORT
MINE, OTHER = TENANTS[0], TENANTS[1]
OLD = NOW - 4000


def tenants(room: Room, quota: Room) -> dict[UUID, TenantView]:
    return {MINE: TenantView(room=room, quota=quota), OTHER: TenantView()}


def crowd(*jobs: Waiting | Running, left: int = 1, of: int = 4, **more: Any) -> Snapshot:
    """Two nodes with room for anything, and a tenant that may hold `left` more jobs of `of`."""
    return fabric(node("n1", 8), node("n2", 8), *jobs, tenants=tenants(Room(jobs=left), Room(jobs=of)), **more)


def planned(snapshot: Snapshot) -> Plan:
    return plan(snapshot, NOW, RULES)


def reason(made: Plan, number: int) -> str:
    return made.notes[UUID(int=number)].reason


def kept_for(made: Plan) -> list[int]:
    return [hold.job_id.int for hold in made.quota_holds]


def test_an_old_gang_without_quota_has_it_kept_and_stands_first() -> None:
    gang = waiting(1, members=4, waiting_since=OLD, cls=BEST_EFFORT)
    pair, small = waiting(2, members=2, cls=FOREGROUND), waiting(3, cls=FOREGROUND)
    made = planned(crowd(gang, pair, small))
    assert made.quota_holds == (QuotaHold(MINE, gang.job_id, Usage(4, 4000, 4 * 2**30, 4, 0)),)
    assert made.placements == made.reservations == ()
    assert made.notes[gang.job_id].reason == "quota_kept"
    assert made.notes[gang.job_id].numbers == {"limit": "jobs", "needs": 4, "left": 1}
    for job, needs in ((pair, 2), (small, 1)):
        assert made.notes[job.job_id].reason == "quota_behind"
        assert made.notes[job.job_id].numbers == {
            "limit": "jobs", "needs": needs, "left": 1, "kept": 4, "job": str(gang.job_id),
        }  # fmt: skip


def test_it_starts_when_its_quota_has_room_and_is_counted_once() -> None:
    gang = waiting(1, members=4, waiting_since=OLD)
    made = planned(crowd(gang, waiting(2, members=2), waiting(3, members=3), left=6, of=6))
    assert [(p.job_id.int, p.why) for p in made.placements] == [(1, "starved"), (2, "gang")]
    assert reason(made, 3) == "quota"
    # Until it runs it is kept: the placement comes after what is kept is written.
    assert kept_for(made) == [1]


def test_a_younger_gang_has_nothing_kept() -> None:
    made = planned(crowd(waiting(1, members=4), waiting(2)))
    assert (made.quota_holds, reason(made, 1), reason(made, 2)) == ((), "quota", "claim")


def test_other_tenants_are_not_touched() -> None:
    gang = waiting(1, members=4, waiting_since=OLD)
    theirs = [waiting(2, members=2, tenant_id=OTHER), waiting(3, tenant_id=OTHER, waiting_since=OLD)]
    alone, beside = planned(crowd(*theirs)), planned(crowd(gang, *theirs))
    assert kept_for(beside) == [1]
    assert (alone.placements, alone.reservations) == (beside.placements, beside.reservations)
    assert len(alone.placements) == 2


def test_a_gang_that_gathers_its_quota_uses_up_nothing_of_what_starved_jobs_may_hold() -> None:
    gang = waiting(1, gpus=2, members=8, waiting_since=OLD - 1)
    theirs = waiting(2, gpus=4, tenant_id=OTHER, waiting_since=OLD)
    made = planned(crowd(gang, theirs, left=1, of=8))
    assert [(p.job_id.int, p.why) for p in made.placements] == [(2, "starved")]


def test_what_is_beyond_the_whole_quota_or_the_empty_fabric_has_nothing_kept_and_the_next_has() -> None:
    beyond = waiting(1, members=5, waiting_since=OLD - 3)
    too_large = waiting(2, gpus=9, waiting_since=OLD - 2)
    gang, younger = waiting(3, members=3, waiting_since=OLD - 1), waiting(4, members=4, waiting_since=OLD)
    assert kept_for(planned(crowd(beyond, too_large, younger, gang))) == [3]


@pytest.mark.parametrize(
    ("others", "kept"),
    [
        ([], False),
        ([waiting(2), waiting(3)], False),
        ([waiting(2, gpus=2)], True),
        ([waiting(2, cls=FOREGROUND)], True),
        ([waiting(2, cls=BEST_EFFORT)], False),
        ([waiting(2, members=2)], False),
        ([waiting(2, tenant_id=OTHER, gpus=2)], False),
        ([running(2, "n1", ("n1-0",), tenant_id=MINE)], False),
        ([running(2, "n1", (), tenant_id=MINE)], True),
        ([running(2, "n1", ("n1-0",), tenant_id=MINE, priority_class=FOREGROUND, priority=1000)], True),
    ],
)
def test_a_plain_job_has_it_kept_if_claims_might_pass_it(others: list[Any], kept: bool) -> None:
    made = planned(crowd(waiting(1, waiting_since=OLD), *others, left=0))
    assert kept_for(made) == ([1] if kept else [])
    assert reason(made, 1) == ("quota_kept" if kept else "quota")


def test_a_plain_job_with_its_quota_kept_is_started_here_since_claims_leave_that_alone() -> None:
    large, small = waiting(1, gpus=4, waiting_since=OLD), waiting(2)
    used_up = [running(n, f"n{n}", tuple(f"n{n}-{i}" for i in range(4)), tenant_id=OTHER, waited_s=9e9) for n in (1, 2)]
    made = planned(crowd(large, small, *used_up))
    # As many as may have starved run already, so that it has its usual turn.
    assert [(p.job_id.int, p.why) for p in made.placements] == [(1, "quota_kept")]
    assert reason(made, 2) == "quota"


def test_only_what_the_quota_limits_is_kept() -> None:
    large, small = waiting(1, gpus=4, waiting_since=OLD), waiting(2, shape=shape(0, 8))
    snapshot = fabric(node("n1", 8), large, small, tenants=tenants(Room(gpus=1), Room(gpus=4)))
    made = planned(snapshot)
    assert (kept_for(made), reason(made, 1), reason(made, 2)) == ([1], "quota_kept", "claim")
    assert kept_for(planned(replace(snapshot, tenants={MINE: TenantView()}))) == []


def test_without_ageing_nothing_is_kept() -> None:
    gang = waiting(1, members=4, waiting_since=OLD)
    assert plan(crowd(gang), NOW, replace(RULES, starvation_s=0)).quota_holds == ()
