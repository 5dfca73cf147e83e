"""What a plan decides, on fabrics small enough to follow by hand."""

from __future__ import annotations

import ast
import gc
import sys
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import scheduler.planner
from app.domain.policy import Room, TenantView
from app.domain.priority import PriorityClass
from app.domain.resources import GIB, Resources
from app.domain.tenant import Tier
from scheduler.planner import Plan, Rules, Snapshot, plan
from tests.unit.scheduler.planner.worlds import NOW, RULES, SMALL, TENANTS, fabric, node, running, waiting

FOREGROUND, BEST_EFFORT = PriorityClass.FOREGROUND, PriorityClass.BEST_EFFORT


def planned(snapshot: Snapshot, now: float = NOW, rules: Rules = RULES) -> Plan:
    return plan(snapshot, now, rules)


def all_of(name: str, count: int = 4) -> tuple[str, ...]:
    return tuple(f"{name}-{i}" for i in range(count))


def reason(made: Plan, number: int) -> str:
    return made.notes[UUID(int=number)].reason


def nodes_of(made: Plan, number: int) -> list[str]:
    return [held.node_id for held in made.reservations if held.job_id == UUID(int=number)]


def test_nothing_waits_nothing_is_planned() -> None:
    assert planned(fabric(node())) == Plan()


def test_a_plan_leaves_nothing_to_the_collector_of_cycles() -> None:
    full = running(2, "n1", all_of("n1"), started_at=NOW - 5000, preemptible=True)
    urgent = waiting(1, gpus=2, cls=FOREGROUND, tier=Tier.HIGH, can_preempt=True)
    snapshot = fabric(node("n1"), node("n2", 2), full, urgent, waiting(3, gpus=2, members=2), waiting(4, gpus=4))
    assert planned(snapshot).reservations and gc.isenabled()
    # What other tests of this process have left, and what becomes garbage only when that has gone.
    for _ in range(10):
        if not gc.collect():
            break
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        planned(snapshot)
        assert not gc.isenabled()
        gc.collect()
        kinds = {type(one).__qualname__ for one in gc.garbage if type(one).__module__.startswith("scheduler.planner")}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert kinds == set()


def test_a_gang_that_fits_starts_whole_on_as_few_nodes_as_it_can() -> None:
    made = planned(fabric(node("n1", 1), node("n2", 2), node("n3", 4), waiting(1, gpus=1, members=3)))
    (placement,) = made.placements
    assert [seat.node_id for seat in placement.members] == ["n3"] * 3
    assert len({uuid for seat in placement.members for uuid in seat.gpu_uuids}) == 3


def test_a_gang_stays_within_one_cluster_that_has_the_room() -> None:
    nodes = [
        node("a1", 4, cluster="a"),
        node("a2", 2, cluster="a"),
        node("b1", 2, cluster="b"),
        node("b2", 2, cluster="b"),
    ]
    (placement,) = planned(fabric(*nodes, waiting(1, gpus=2, members=2))).placements
    assert [seat.node_id for seat in placement.members] in (["b1", "b2"], ["b2", "b1"])


def test_a_gang_that_does_not_fit_is_told_when_it_will() -> None:
    busy = running(1, "n1", all_of("n1"), started_at=NOW - 500, limit_s=900)
    made = planned(fabric(node("n1"), node("n2"), busy, waiting(1, gpus=4, members=2)))
    assert made.placements == () and sorted(nodes_of(made, 1)) == ["n1", "n2"]
    # 400 s of its limit are left, and 10 s of grace.
    assert {held.starts_at for held in made.reservations} == {NOW + 410}
    assert made.notes[UUID(int=1)].numbers == {"members": 2, "nodes": 2, "members_that_fit": 1, "starts_in_s": 410}


def test_a_gpu_that_was_taken_out_frees_no_room_when_its_job_ends() -> None:
    busy = [running(n, "n1", (f"n1-{n}",), started_at=NOW - 500, limit_s=900) for n in range(3)]
    late = running(3, "n2", all_of("n2", 1), started_at=NOW - 500, limit_s=1900)
    made = planned(fabric(node("n1", 3, sick=1), node("n2", 1), *busy, late, waiting(1, gpus=1, members=3)))
    assert sorted(held.gpu_uuids for held in made.reservations) == [("n1-0",), ("n1-2",), ("n2-0",)]
    assert {held.starts_at for held in made.reservations} == {NOW + 1410}


def test_small_jobs_that_end_in_time_run_in_the_hole_and_longer_ones_wait() -> None:
    busy = running(1, "n1", all_of("n1"), started_at=NOW - 500, limit_s=900)
    gang = waiting(1, gpus=4, members=2)
    short, long, endless = waiting(2, limit_s=400.0), waiting(3, limit_s=401.0), waiting(4, limit_s=None)
    made = planned(fabric(node("n1"), node("n2"), busy, gang, short, long, endless))
    assert [(p.job_id.int, p.why) for p in made.placements] == [(2, "backfill")]
    assert reason(made, 3) == reason(made, 4) == "no_room"


def test_a_better_class_passes_the_reservations_of_others() -> None:
    busy = running(1, "n1", all_of("n1"))
    gang = waiting(1, gpus=4, members=2, cls=BEST_EFFORT)
    first = fabric(node("n1"), node("n2"), busy, gang)
    held = planned(first).reservations
    made = planned(replace(first, waiting=(gang, waiting(2, gpus=4, members=1, cls=FOREGROUND)), reserved=held))
    assert reason(made, 2) == "claim" and made.notes[UUID(int=2)].numbers == {"node": "n2"}


def test_a_reservation_stays_where_room_was_gathered() -> None:
    gang = waiting(1, gpus=4, members=2)
    busy = [running(n, f"n{n}", all_of(f"n{n}"), started_at=NOW - 500 + n, limit_s=900) for n in range(1, 4)]
    snapshot = fabric(*(node(f"n{n}") for n in range(1, 4)), *busy, gang)
    first = planned(snapshot)
    later = planned(replace(snapshot, reserved=first.reservations), NOW + 5)
    assert sorted(nodes_of(later, 1)) == sorted(nodes_of(first, 1)) == ["n1", "n2"]
    assert {held.made_at for held in later.reservations} == {NOW}


def test_a_large_plain_job_gathers_room_once_it_has_waited_long_enough() -> None:
    busy = [running(n, "n1", (f"n1-{n}",)) for n in range(4)]
    large, small = waiting(1, gpus=4), waiting(2, gpus=1)
    assert planned(fabric(node("n1"), *busy, large, small)).reservations == ()
    old = replace(large, waiting_since=NOW - 31)
    made = planned(fabric(node("n1"), *busy, old, replace(small, waiting_since=NOW - 31)))
    assert nodes_of(made, 1) == ["n1"] and nodes_of(made, 2) == []
    freed = planned(Snapshot((node("n1"),), (), (old, small), made.reservations))
    assert [(p.job_id.int, p.why) for p in freed.placements] == [(1, "reserved")]


def test_the_cheapest_victims_go_and_are_told_once() -> None:
    young = running(1, "n1", ("n1-0", "n1-1"), started_at=NOW - 100, preemptible=True)
    old = running(2, "n1", ("n1-2", "n1-3"), started_at=NOW - 5000, preemptible=True, limit_s=None)
    saved = running(
        3, "n2", all_of("n2"), started_at=NOW - 5000, checkpoint_at=NOW - 20, preemptible=True, limit_s=None
    )
    urgent = waiting(1, gpus=2, cls=FOREGROUND, tier=Tier.HIGH, can_preempt=True)
    snapshot = fabric(node("n1"), node("n2"), young, old, saved, urgent)
    made = planned(snapshot)
    # 2 GPUs for 20 s are less than 4 for 20 s or 2 for 100 s: young loses 200 GPU-seconds, saved 80.
    assert [(v.victim_attempt, v.lost_gpu_s) for v in made.preemptions] == [(saved.attempt_id, 80.0)]
    assert nodes_of(made, 1) == ["n2"] and made.notes[UUID(int=1)].numbers["victims"] == 1
    again = planned(replace(snapshot, running=(young, old, replace(saved, stopping=True)), reserved=made.reservations))
    assert again.preemptions == () and nodes_of(again, 1) == ["n2"]


def test_what_is_kept_for_somebody_behind_a_job_without_a_limit_does_not_lie_idle() -> None:
    endless = running(1, "n1", all_of("n1"), limit_s=None)
    gang, short = waiting(1, gpus=4, members=2), waiting(2, gpus=1, limit_s=600.0)
    long, unlimited = waiting(3, gpus=1, limit_s=6000.0), waiting(4, gpus=1, limit_s=None)
    made = planned(fabric(node("n1"), node("n2"), endless, gang, short, long, unlimited))
    assert sorted(nodes_of(made, 1)) == ["n1", "n2"] and {held.starts_at for held in made.reservations} == {None}
    assert [(p.job_id.int, p.why) for p in made.placements] == [(2, "backfill")]


def test_those_who_wait_for_ends_keep_nobody_from_preempting() -> None:
    hosts = [node(f"n{i}") for i in range(8)]
    runs = [running(i, f"n{i}", all_of(f"n{i}"), preemptible=i < 6) for i in range(8)]
    gangs = [waiting(i, gpus=4, members=2, cls=FOREGROUND, key_id=1) for i in range(1, 6)]
    urgent = [
        waiting(i, gpus=4, cls=FOREGROUND, tier=Tier.HIGH, can_preempt=True, tenant_id=TENANTS[2])
        for i in range(10, 16)
    ]
    rules = replace(RULES, max_reservations=1)
    made = planned(fabric(*hosts, *runs, *gangs, *urgent), rules=rules)
    assert len(made.preemptions) == 4, "the first gang holds two of the six nodes with a victim"
    held = {one.job_id.int for one in made.reservations}
    assert len(held & set(range(1, 6))) == 1 and len(held & set(range(10, 16))) == 4


def test_a_reservation_of_a_lower_tier_bars_nobody_who_could_preempt_it() -> None:
    endless = running(1, "n1", all_of("n1"), limit_s=None, preemptible=True)
    gang = waiting(1, gpus=4, members=2)
    first = fabric(node("n1"), node("n2"), endless, gang)
    held = planned(first).reservations
    assert {one.node_id for one in held} == {"n1", "n2"}
    urgent = waiting(2, gpus=4, members=2, tier=Tier.CRITICAL, can_preempt=True, tenant_id=TENANTS[2])
    made = planned(replace(first, waiting=(gang, urgent), reserved=held))
    assert [v.victim_attempt for v in made.preemptions] == [endless.attempt_id]
    assert sorted(nodes_of(made, 2)) == ["n1", "n2"]
    # Of its own tier it stands behind, and one that may not preempt does so in any tier.
    for equal in (replace(urgent, tier=Tier.MEDIUM), replace(urgent, can_preempt=False)):
        made = planned(replace(first, waiting=(gang, equal), reserved=held))
        assert made.preemptions == () and nodes_of(made, 2) == []


def test_a_gang_goes_whole_and_nobody_above_does() -> None:
    pair = [
        running(n, f"n{n}", all_of(f"n{n}"), leader=UUID(int=20_001), preemptible=True, job_id=UUID(int=9))
        for n in (1, 2)
    ]
    urgent = waiting(1, gpus=4, cls=FOREGROUND, tier=Tier.HIGH, can_preempt=True)
    made = planned(fabric(node("n1"), node("n2"), *pair, urgent))
    assert [v.victim_attempt for v in made.preemptions] == [UUID(int=20_001)] and made.preemptions[0].lost_gpu_s == 4000
    above = [replace(run, tier=Tier.CRITICAL, priority_class=FOREGROUND) for run in pair]
    assert planned(fabric(node("n1"), node("n2"), *above, urgent)).preemptions == ()
    asks_not = replace(urgent, can_preempt=False)
    assert planned(fabric(node("n1"), node("n2"), *pair, asks_not)).preemptions == ()


def test_a_starved_job_goes_first_but_takes_no_more_than_its_part() -> None:
    nodes = [node(f"n{n}") for n in range(5)]
    old = [
        waiting(n, gpus=4, members=2, cls=BEST_EFFORT, waiting_since=NOW - 4000 + n, limit_s=600.0 * n) for n in (1, 2)
    ]
    new = waiting(3, gpus=4, members=4, cls=FOREGROUND)
    made = planned(fabric(*nodes, *old, new))
    # The oldest may always go; 8 of 20 GPUs are more than the part already, so the next one stands behind the new job.
    assert [p.job_id.int for p in made.placements] == [1] and nodes_of(made, 3) and reason(made, 2) == "behind"
    never = planned(fabric(*nodes, *old, new), rules=replace(RULES, starvation_s=0))
    assert [p.job_id.int for p in never.placements] == [3]


def test_quota_size_and_number_of_reservations_keep_jobs_waiting_with_numbers() -> None:
    full = [running(n, f"n{n}", all_of(f"n{n}")) for n in (1, 2)]
    jobs = [waiting(n, gpus=4, members=2) for n in (1, 2)]
    more = replace(waiting(3, gpus=4, members=2), tenant_id=TENANTS[1])
    tenants = {TENANTS[1]: TenantView(room=Room(gpus=7)), TENANTS[2]: TenantView(room=None)}
    locked = replace(waiting(4), tenant_id=TENANTS[2])
    huge = waiting(5, gpus=4, members=3)
    snapshot = fabric(node("n1"), node("n2"), *full, *jobs, more, locked, huge, tenants=tenants)
    made = planned(snapshot, rules=replace(RULES, max_reservations=1))
    assert [reason(made, n) for n in range(1, 6)] == [
        "reserved",
        "reservations_used",
        "quota",
        "undecided",
        "too_large",
    ]
    assert made.notes[UUID(int=3)].numbers == {"limit": "gpus", "needs": 8, "left": 7}
    assert made.notes[UUID(int=5)].numbers == {"members": 3, "empty_fabric_holds": 2}


def test_slices_share_a_gpu_that_nobody_then_gets_whole() -> None:
    card = replace(node("n1", 1).gpus[0], sharing=True)
    host = replace(node("n1", 1), gpus=(card,))
    part = Resources(1000, GIB, 1, SMALL, gpu_shared=True)
    slice_ = running(1, "n1", (card.uuid,), shape=part, limit_s=100.0, started_at=NOW)
    other = running(
        2, "n1", (card.uuid,), shape=replace(part, gpu_memory_bytes=SMALL // 2), limit_s=900.0, started_at=NOW
    )
    asks = [waiting(1, shape=replace(part, gpu_memory_bytes=SMALL // 2)), waiting(2, gpus=1)]
    made = planned(fabric(host, slice_, other, *asks))
    assert reason(made, 1) == "claim" and reason(made, 2) == "no_room"
    whole = waiting(3, gpus=1, waiting_since=NOW - 5000)
    (held,) = planned(fabric(host, slice_, other, whole)).reservations
    assert held.starts_at == NOW + 910, "the GPU is whole again when its last slice is gone"


def test_the_planner_imports_the_standard_library_and_the_domain_only() -> None:
    for path in Path(scheduler.planner.__file__).parent.glob("*.py"):
        for found in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in found.names] if isinstance(found, ast.Import) else []
            names += [found.module or ""] if isinstance(found, ast.ImportFrom) else []
            for name in names:
                known = name.split(".")[0] in sys.stdlib_module_names
                assert known or name.startswith(("app.domain", "scheduler.planner")), f"{path.name} imports {name}"


def test_a_job_preempts_on_a_node_where_it_failed_if_no_other_has_the_room() -> None:
    failed, other = (
        running(n, f"n{n}", all_of(f"n{n}", 2), started_at=NOW - 100 * n, preemptible=True, limit_s=None)
        for n in (1, 2)
    )
    urgent = waiting(1, gpus=2, cls=FOREGROUND, tier=Tier.HIGH, can_preempt=True, avoid=frozenset({"n1"}))
    two = planned(fabric(node("n1", 2), node("n2", 2), failed, other, urgent))
    assert [one.victim_job for one in two.preemptions] == [other.job_id]
    one = planned(fabric(node("n1", 2), failed, urgent))
    assert [one.victim_job for one in one.preemptions] == [failed.job_id]


def test_what_came_to_its_turn_by_its_age_is_no_victim() -> None:
    starved = running(1, "n1", all_of("n1"), preemptible=True, limit_s=None, waited_s=RULES.starvation_s)
    urgent = waiting(1, gpus=4, cls=FOREGROUND, tier=Tier.HIGH, can_preempt=True)
    assert planned(fabric(node("n1"), starved, urgent)).preemptions == ()
    usual = replace(starved, waited_s=RULES.starvation_s - 1)
    assert [one.victim_job for one in planned(fabric(node("n1"), usual, urgent)).preemptions] == [usual.job_id]
    assert planned(fabric(node("n1"), starved, urgent), rules=replace(RULES, starvation_s=0)).preemptions


def test_a_large_job_gathers_room_from_small_ones_that_never_wait() -> None:
    busy = [running(n, "n1", (f"n1-{n}",)) for n in range(2)]
    made = planned(fabric(node("n1"), *busy, waiting(1, gpus=4, waiting_since=NOW - 31, cls=BEST_EFFORT)))
    assert nodes_of(made, 1) == ["n1"]
    alike = running(3, "n1", all_of("n1"))
    assert (
        planned(fabric(node("n1"), alike, waiting(1, gpus=4, waiting_since=NOW - 31, cls=BEST_EFFORT))).reservations
        == ()
    )
