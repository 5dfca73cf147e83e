"""Placing a job: all of it or nothing, never on what others hold or are promised; its nodes fetch it by claims."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from uuid import UUID, uuid4

import pytest

from app.domain.errors import Unavailable
from app.domain.job import DEFAULT_TENANT, Assignment
from app.domain.policy import Ending
from app.domain.states import JobState, Outcome, StopCause
from app.services.claim import Claimer, claim
from app.services.nodes import set_draining
from app.services.place import Placed, Spot, place, place_in
from app.services.planning import Victim, Wanted, keep
from app.services.recover import check_usage, hand_back
from app.services.stop import cancel_pending, request_stop
from app.storage.claims import try_lock_tenants
from app.storage.database import Database
from app.storage.faults import parse_faults
from tests.factories import BACKGROUND, BEST_EFFORT, FOREGROUND, Fabric, Node, at_once, gpu, job, share, until
from tests.servers import TestServers


def _place(fabric: Fabric, job_id: UUID, *spots: Spot, counts_as: object = BACKGROUND) -> Placed:
    return place(fabric.db, job_id, spots, counts_as, 60.0)  # type: ignore[arg-type]


def _gang(fabric: Fabric, members: int, **changes: object) -> UUID:
    return fabric.submit_one(members=members, **changes)


def _nodes(fabric: Fabric, count: int, **changes: object) -> list[Node]:
    runners = ("process", "gang-process")
    return [fabric.add_node(f"n{i}", runners=runners, **changes) for i in range(count)]  # type: ignore[arg-type]


def _wanted(job_id: UUID, node: Node, cpus: float = 0, **changes: object) -> Wanted:
    one = Wanted(job_id, 0, node.id, BACKGROUND, 1, round(cpus * 1000), 0, (), None, (), "large")
    return replace(one, **changes)  # type: ignore[arg-type]


def test_a_placed_job_is_the_nodes_and_comes_with_its_next_claim(fabric: Fabric, node: Node) -> None:
    one, other = fabric.submit(job(), job())
    assert _place(fabric, other, Spot(node.id)).nodes == {node.id}
    assert fabric.state(other) == JobState.STARTING
    assert fabric.renew(node).placed
    assert fabric.renew(node).orphans == []
    got = fabric.claim(node)
    assert {a.job_id for a in got} == {one, other}
    assert not fabric.renew(node, *got).placed
    for assignment in got:
        fabric.start(assignment)
        fabric.finish(assignment)
    assert fabric.state(other) == JobState.COMPLETED
    fabric.assert_in_order()


def test_members_start_together_on_their_nodes(fabric: Fabric) -> None:
    runners = ("process", "gang-process")
    nodes = [fabric.add_node(f"n{i}", gpus=[gpu(i)], runners=runners) for i in range(2)]
    gang = _gang(fabric, 2, resources=share(gpus=1))
    done = _place(fabric, gang, Spot("n0", ("GPU-0",)), Spot("n1", ("GPU-1",)))
    assert done.nodes == {"n0", "n1"}
    got = [one for node in nodes for one in fabric.claim(node)]
    assert [(a.gang.member, a.gang.size, a.gpu_uuids) for a in got if a.gang] == [
        (0, 2, ("GPU-0",)),
        (1, 2, ("GPU-1",)),
    ]
    assert {a.gang.leader_id for a in got if a.gang} == {got[0].attempt_id}
    assert fabric.row(gang).attempt_id == got[0].attempt_id


def test_no_claim_takes_a_job_of_several_members(fabric: Fabric) -> None:
    (node,) = _nodes(fabric, 1)
    _gang(fabric, 2)
    assert fabric.claim(node) == []


@pytest.mark.parametrize("spoil", ["room", "gpu", "state", "cancelled", "runner", "quota", "inactive"])
def test_a_gang_gets_all_its_seats_or_none(fabric: Fabric, spoil: str) -> None:
    first, second = _nodes(fabric, 2, slots=1)
    tenant = fabric.add_tenant(quota_jobs=2, tier="critical")
    gang = fabric.submit(job(members=2, resources=share(cpus=1)), tenant=tenant)[0]
    spots = [Spot(first.id), Spot(second.id)]
    match spoil:
        case "room":
            fabric.submit_one()
            fabric.claim_one(second)
        case "gpu":
            spots[1] = Spot(second.id, ("GPU-9",))
        case "state":
            set_draining(fabric.db, second.id, True)
        case "cancelled":
            cancel_pending(fabric.db, tenant, gang)
        case "runner":
            fabric.sql("UPDATE node SET capabilities = '{fake}' WHERE id = 'n1'")
        case "quota":
            fabric.sql("UPDATE tenant SET quota_jobs = 1 WHERE id = %s", tenant)
        case "inactive":
            fabric.sql("UPDATE tenant SET active = false WHERE id = %s", tenant)
    answer = _place(fabric, gang, *spots)
    assert answer.refusal and not answer.nodes
    assert fabric.attempts(gang) == []
    assert fabric.value("SELECT count(*) FROM lease WHERE NOT delivered") == 0
    fabric.assert_in_order()


def test_two_members_on_one_node_count_together(fabric: Fabric) -> None:
    (node,) = _nodes(fabric, 1, cpus=3)
    gang = _gang(fabric, 2, resources=share(cpus=2))
    assert "no room" in _place(fabric, gang, Spot(node.id), Spot(node.id)).refusal
    small = _gang(fabric, 2, resources=share(cpus=1))
    assert _place(fabric, small, Spot(node.id), Spot(node.id)).nodes == {node.id}
    assert len(fabric.claim(node)) == 2


def test_what_no_node_fetches_goes_back_uncharged(fabric: Fabric, node: Node) -> None:
    one = fabric.submit_one()
    _place(fabric, one, Spot(node.id))
    fabric.expire()
    fabric.reap()
    row = fabric.row(one)
    assert (row.state, row.ready, row.failures, row.lost_nodes) == (0, True, 0, [])
    fabric.assert_in_order()
    assert fabric.claim_one(node).attempt == 2


def test_fetching_begins_the_lease_anew(fabric: Fabric, node: Node) -> None:
    one = fabric.submit_one()
    _place(fabric, one, Spot(node.id))
    fabric.sql("UPDATE lease SET expires_at = clock_timestamp() + interval '1 second'")
    fabric.claim_one(node)
    assert fabric.value("SELECT expires_at > now() + interval '50 seconds' FROM lease")


def test_a_draining_node_still_fetches_what_is_its_own(fabric: Fabric, node: Node) -> None:
    one = fabric.submit(job(), job())[0]
    _place(fabric, one, Spot(node.id))
    set_draining(fabric.db, node.id, True)
    assert [a.job_id for a in fabric.claim(node)] == [one]


def test_no_more_is_fetched_than_the_node_has_slots_for(fabric: Fabric, node: Node) -> None:
    jobs = fabric.submit(*[job() for _ in range(3)])
    for one in jobs:
        _place(fabric, one, Spot(node.id))
    assert len(fabric.claim(node, 2)) == 2
    assert fabric.renew(node).placed
    assert len(fabric.claim(node, 2)) == 1


@pytest.mark.parametrize("cause", StopCause, ids=lambda cause: cause.word)
def test_what_is_stopped_before_it_was_fetched_is_handed_back(fabric: Fabric, node: Node, cause: StopCause) -> None:
    one = fabric.submit_one()
    _place(fabric, one, Spot(node.id))
    request_stop(fabric.db, DEFAULT_TENANT, one, "user", cause=cause)
    assert fabric.claim(node) == []
    answer = fabric.renew(node)
    assert not answer.placed and len(answer.orphans) == 1
    hand_back(fabric.db, answer.orphans, "it was never started")
    assert fabric.state(one) == (JobState.CANCELLED if cause == StopCause.CANCEL else JobState.PENDING)
    fabric.assert_in_order()


def test_a_member_whose_gang_is_requeued_before_it_was_fetched_is_handed_back(fabric: Fabric) -> None:
    first, second = _nodes(fabric, 2)
    gang = _gang(fabric, 2)
    _place(fabric, gang, Spot("n0"), Spot("n1"))
    fetched = fabric.claim(first)
    request_stop(fabric.db, DEFAULT_TENANT, gang, "user", cause=StopCause.REQUEUE)
    assert set(fabric.renew(first, *fetched).stops) == {one.attempt_id for one in fetched}
    assert not (answer := fabric.renew(second)).placed and len(answer.orphans) == 1


def test_a_newer_agent_of_the_node_fetches_it(fabric: Fabric, node: Node) -> None:
    one = fabric.submit_one()
    _place(fabric, one, Spot(node.id))
    again = fabric.add_node(node.id)
    assert [a.job_id for a in fabric.claim(again)] == [one]


def test_external_executors_fetch_nothing_and_are_no_seats(fabric: Fabric, node: Node) -> None:
    one = fabric.submit_one()
    fabric.sql("UPDATE node SET kind = 'external'")
    assert _place(fabric, one, Spot(node.id)).refusal


def test_claims_leave_reserved_capacity_alone(fabric: Fabric) -> None:
    node = fabric.add_node(cpus=4)
    large, *small = fabric.submit(job(resources=share(cpus=3)), *[job(resources=share(cpus=1)) for _ in range(3)])
    keep(fabric.db, [_wanted(large, node, cpus=3)], [], 60.0)
    assert [a.job_id for a in fabric.claim(node)] == small[:1]
    assert _place(fabric, large, Spot(node.id)).nodes
    assert fabric.value("SELECT count(*) FROM reservation") == 0


def test_a_higher_class_is_not_held_up_by_a_lower_ones_reservation(fabric: Fabric) -> None:
    node = fabric.add_node(cpus=2)
    large = fabric.submit_one(resources=share(cpus=2))
    keep(fabric.db, [_wanted(large, node, cpus=2)], [], 60.0)
    fabric.submit(job(priority_class=BEST_EFFORT, resources=share(cpus=1)))
    assert fabric.claim(node) == []
    urgent = fabric.submit_one(priority_class=FOREGROUND, resources=share(cpus=1))
    assert [a.job_id for a in fabric.claim(node)] == [urgent]


def test_reserved_gpus_are_not_given_to_others(fabric: Fabric) -> None:
    node = fabric.add_node(gpus=[gpu(1), gpu(2)])
    large, small = fabric.submit(job(resources=share(gpus=2)), job(resources=share(gpus=1)))
    keep(fabric.db, [_wanted(large, node, gpu_uuids=("GPU-1",))], [], 60.0)
    got = fabric.claim(node)
    assert [(a.job_id, a.gpu_uuids) for a in got] == [(small, ("GPU-2",))]


def test_what_an_awaited_job_gives_back_is_not_lost_to_others(fabric: Fabric) -> None:
    node = fabric.add_node(cpus=4)
    fabric.submit(job(resources=share(cpus=2)))
    runs = fabric.run(node)
    large = fabric.submit_one(resources=share(cpus=3))
    fabric.submit(*[job(resources=share(cpus=1)) for _ in range(3)])
    keep(fabric.db, [_wanted(large, node, cpus=3, awaited=(runs.attempt_id,))], [], 60.0)
    # 2 CPUs are free, 2 are to come, 3 are promised: one may be used meanwhile.
    assert len(fabric.claim(node)) == 1
    fabric.finish(runs)
    assert fabric.claim(node) == []
    assert _place(fabric, large, Spot(node.id)).nodes


@pytest.mark.parametrize("end", ["cancelled", "started", "expired"])
def test_a_reservation_counts_only_while_its_job_waits(fabric: Fabric, end: str) -> None:
    node = fabric.add_node(cpus=2)
    other = fabric.add_node("other")
    large = fabric.submit_one(resources=share(cpus=2))
    keep(fabric.db, [_wanted(large, node, cpus=2)], [], 60.0)
    if end == "cancelled":
        cancel_pending(fabric.db, DEFAULT_TENANT, large)
    elif end == "started":
        assert fabric.claim_one(other).job_id == large
    else:
        fabric.sql("UPDATE reservation SET expires_at = now()")
    small = fabric.submit_one(resources=share(cpus=1.5))
    assert small in {a.job_id for a in fabric.claim(node)} or end == "expired"
    if end == "expired":
        assert fabric.attempts(large) or fabric.attempts(small)
    keep(fabric.db, [], [], 60.0)
    assert fabric.value("SELECT count(*) FROM reservation") == 0


def test_a_short_job_may_fill_the_hole_before_a_reservation(fabric: Fabric) -> None:
    node = fabric.add_node(cpus=2)
    large, short, long = fabric.submit(
        job(resources=share(cpus=2)),
        job(resources=share(cpus=1), time_limit_s=10, grace_s=5),
        job(resources=share(cpus=1), time_limit_s=1000),
    )
    starts_at = fabric.value("SELECT extract(epoch FROM now() + interval '60 seconds')::float8")
    keep(fabric.db, [_wanted(large, node, cpus=2, starts_at=starts_at)], [], 60.0)
    assert _place(fabric, long, Spot(node.id)).refusal
    assert _place(fabric, short, Spot(node.id)).nodes == {node.id}


def test_a_reservation_is_kept_again_without_being_written_again(fabric: Fabric, node: Node) -> None:
    large = fabric.submit_one()
    wanted = [_wanted(large, node, cpus=2)]
    assert keep(fabric.db, wanted, [], 60.0).changed == 1
    assert keep(fabric.db, wanted, [], 60.0).changed == 0
    fabric.sql("UPDATE reservation SET expires_at = now() + interval '10 seconds'")
    assert keep(fabric.db, wanted, [], 60.0).changed == 1


def test_victims_are_told_with_the_reservation_and_wait_again_uncharged(fabric: Fabric) -> None:
    node = fabric.add_node(cpus=2)
    fabric.submit(job(resources=share(cpus=2)))
    low = fabric.run(node)
    high = fabric.submit_one(priority_class=FOREGROUND, resources=share(cpus=2))
    wanted = _wanted(high, node, cpus=2, awaited=(low.attempt_id,), priority_class=FOREGROUND)
    kept = keep(fabric.db, [wanted], [Victim(low.attempt_id, high, "makes room")], 60.0)
    assert (kept.preempted, kept.nodes) == ({low.job_id}, {node.id})
    assert fabric.renew(node, low).stops == {low.attempt_id: (StopCause.PREEMPT, low.grace_s)}
    fabric.finish(low, Ending(signal=15, stopped=True))
    row = fabric.row(low.job_id)
    assert (row.state, row.ready, row.reason, row.failures) == (0, True, "preempted", 0)
    assert fabric.attempts(low.job_id)[0].outcome == Outcome.PREEMPTED
    # Its own victim is first in line again, and yet the room is the preemptor's.
    assert fabric.claim(node) == []
    assert _place(fabric, high, Spot(node.id), counts_as=FOREGROUND).nodes


def test_nobody_is_told_to_make_room_for_a_job_that_does_not_wait(fabric: Fabric, node: Node) -> None:
    fabric.submit()
    low = fabric.run(node)
    gone = fabric.submit_one()
    cancel_pending(fabric.db, DEFAULT_TENANT, gone)
    kept = keep(fabric.db, [_wanted(gone, node)], [Victim(low.attempt_id, gone, "makes room")], 60.0)
    assert (kept.preempted, fabric.state(low.job_id)) == (frozenset(), JobState.RUNNING)
    assert fabric.value("SELECT count(*) FROM reservation") == 0
    waits = fabric.submit_one()
    keep(fabric.db, [], [Victim(uuid4(), waits, "an attempt that is over")], 60.0)
    assert fabric.state(low.job_id) == JobState.RUNNING


def test_placing_and_claiming_at_once_never_give_anything_twice(fabric: Fabric) -> None:
    nodes = [fabric.add_node(f"n{i}", cpus=2, gpus=[gpu(10 * i), gpu(10 * i + 1)]) for i in range(2)]
    jobs = fabric.submit(*[job(resources=share(cpus=1, gpus=1)) for _ in range(12)])

    def work(number: int) -> list[Assignment]:
        if number < 2:
            return fabric.claim(nodes[number])
        for i, one in enumerate(jobs[number::2]):
            _place(fabric, one, Spot(f"n{i % 2}", (f"GPU-{10 * (i % 2) + i % 2}",)))
        return []

    at_once(4, work)
    fabric.assert_in_order()
    used = "SELECT max(used) FROM (SELECT sum(cpus_milli) AS used FROM allocation GROUP BY node_id) u"
    assert fabric.value(used) <= 2000
    assert fabric.value("SELECT count(*) FROM allocation") == 4


def test_a_quota_is_never_exceeded_by_placements_beside_claims(fabric: Fabric) -> None:
    tenant = fabric.add_tenant(quota_jobs=3, tier="critical")
    nodes = [fabric.add_node(f"n{i}") for i in range(2)]
    jobs = fabric.submit(*[job() for _ in range(20)], tenant=tenant)

    def work(number: int) -> None:
        if number < 2:
            for one in jobs[10 + number :: 2]:
                _place(fabric, one, Spot(f"n{number}"))
        else:
            fabric.claim(nodes[number - 2], 2)

    at_once(4, work)
    assert fabric.value("SELECT count(*) FROM allocation") <= 3
    fabric.assert_in_order()


def _waiting(fabric: Fabric) -> int:
    return int(fabric.value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"))


def test_a_placement_waits_for_its_tenants_quota(fabric: Fabric, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.services.place.WAIT_FOR_TENANT_S", 14.0)
    tenant = fabric.add_tenant(quota_jobs=3, tier="critical")
    _nodes(fabric, 2)
    gang = fabric.submit(job(members=2), tenant=tenant)[0]
    with ThreadPoolExecutor(1) as pool:
        with fabric.db.transaction() as claims_of_others:
            assert try_lock_tenants(claims_of_others, [tenant])
            placed = pool.submit(_place, fabric, gang, Spot("n0"), Spot("n1"))
            until(lambda: placed.done() or _waiting(fabric))
            # Who waits comes before those that only try: the next claims of the tenant leave it to them.
            with fabric.db.transaction() as next_claim:
                assert not try_lock_tenants(next_claim, [tenant])
        assert placed.result().nodes == {"n0", "n1"}
    fabric.assert_in_order()


def test_a_placement_does_not_wait_for_long(fabric: Fabric, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.services.place.WAIT_FOR_TENANT_S", 0.05)
    tenant = fabric.add_tenant(quota_jobs=3, tier="critical")
    _nodes(fabric, 1)
    one = fabric.submit(job(), tenant=tenant)[0]
    with fabric.db.transaction() as claims_of_others:
        assert try_lock_tenants(claims_of_others, [tenant])
        with fabric.db.transaction() as tx:
            usual = tx.value("SHOW lock_timeout")
            answer = place_in(tx, one, [Spot("n0")], BACKGROUND, 60.0)
            assert answer.refusal == "its tenant's quota is being decided elsewhere"
            assert tx.value("SHOW lock_timeout") == usual
    with fabric.db.transaction() as tx:
        assert place_in(tx, one, [Spot("n0")], BACKGROUND, 60.0).nodes == {"n0"}
        assert tx.value("SHOW lock_timeout") == usual


def test_the_agents_login_fetches(servers: TestServers, fabric: Fabric, node: Node) -> None:
    agent = Database(servers.agent_url(fabric.settings.database_url), pool_size=1)
    try:
        one, large = fabric.submit(job(), job())
        _place(fabric, one, Spot(node.id))
        keep(fabric.db, [_wanted(large, node)], [], 60.0)
        assert [a.job_id for a in claim(agent, Claimer(node.id, node.incarnation), 1)] == [one]
    finally:
        agent.close()


@pytest.mark.parametrize("point", ["before", "after"])
def test_a_crash_around_the_commit_leaves_all_of_it_or_nothing(new_fabric: Fabric, point: str) -> None:
    node = new_fabric.add_node(runners=("process", "gang-process"))
    gang = new_fabric.submit_one(members=3)
    new_fabric.db.faults = parse_faults(f"place:{point}:1.0")
    with pytest.raises(Unavailable):
        _place(new_fabric, gang, *[Spot(node.id)] * 3)
    new_fabric.db.faults = None
    assert len(new_fabric.claim(node)) == (3 if point == "after" else 0)
    assert check_usage(new_fabric.db) == []
