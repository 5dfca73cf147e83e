"""A claim takes what fits in the order of the one rule, and never over-commits, whatever runs beside it."""

from __future__ import annotations

from collections import Counter
from threading import Barrier
from uuid import uuid4

import pytest

from app.domain.errors import StaleIncarnation
from app.domain.resources import GIB, MIB
from app.domain.states import JobState
from app.services.claim import Claimer, claim
from app.services.nodes import set_draining
from tests.factories import (
    BACKGROUND,
    BEST_EFFORT,
    FOREGROUND,
    Fabric,
    Node,
    at_once,
    gpu,
    job,
    raw,
    share,
)


def test_an_empty_fabric_gives_nothing(fabric: Fabric, node: Node) -> None:
    assert fabric.claim(node) == []


def test_a_claimed_job_is_starting_on_the_node_under_a_lease(fabric: Fabric, node: Node) -> None:
    job_id = fabric.submit_one(environment={"A": "1"}, arguments=("x", "y"), time_limit_s=5.0, grace_s=2.0)
    taken = fabric.claim_one(node)
    assert (taken.job_id, taken.attempt, taken.environment) == (job_id, 1, {"A": "1"})
    assert (taken.arguments, taken.time_limit_s, taken.grace_s) == (("x", "y"), 5.0, 2.0)
    row = fabric.row(job_id)
    assert (row.state, row.attempt_id, row.node_id) == (JobState.STARTING, taken.attempt_id, node.id)
    assert fabric.value("SELECT expires_at > now() FROM lease WHERE token = %s", taken.token)
    fabric.assert_in_order()


def test_classes_are_served_in_order_and_each_oldest_first(fabric: Fabric, node: Node) -> None:
    waiting = {cls: fabric.submit(*[job(priority_class=cls)] * 3) for cls in (BEST_EFFORT, BACKGROUND, FOREGROUND)}
    wanted = [*waiting[FOREGROUND], *waiting[BACKGROUND], *waiting[BEST_EFFORT]]
    assert [fabric.claim_one(node).job_id for _ in wanted] == wanted


def test_one_claim_of_many_has_the_same_order(fabric: Fabric, node: Node) -> None:
    low, high = fabric.submit(*[job()] * 3), fabric.submit(*[job(priority=900)] * 3)
    assert [taken.job_id for taken in fabric.claim(node)] == [*high, *low]


@pytest.mark.parametrize(
    ("shape", "fits"),
    [
        (share(4, 1024), True),
        (share(4.5, 1024), False),
        (share(1, 4096), True),
        (share(1, 4097), False),
        (share(1, 64, 2), True),
        (share(1, 64, 3), False),
        (share(1, 64, 1, 40 * 10**9), True),
        (share(1, 64, 1, 41 * 10**9), False),
        (share(1, 64, 1, 0, "a100"), True),
        (share(1, 64, 2, 0, "a100"), False),
        (share(1, 64, 1, 0, "h100"), False),
    ],
    ids=str,
)
def test_a_job_runs_only_where_all_of_it_fits(fabric: Fabric, shape: object, fits: bool) -> None:
    node = fabric.add_node(cpus=4, memory=4096 * MIB, gpus=(gpu(1, "NVIDIA T4", 16), gpu(2, "NVIDIA A100", 40)))
    fabric.submit_one(resources=shape)
    taken = fabric.claim(node)
    assert len(taken) == fits
    assert not fits or len(taken[0].gpu_uuids) == shape.gpus  # type: ignore[attr-defined]


def test_a_node_gets_only_what_it_can_run(fabric: Fabric) -> None:
    fabric.submit_one(runner="container", image="busybox")
    assert fabric.claim(fabric.add_node()) == []
    assert len(fabric.claim(fabric.add_node(runners=("process", "container")))) == 1


@pytest.mark.parametrize(
    ("columns", "blocked"),
    [
        ({}, share(gpus=1, model="A100")),
        ({}, share(gpus=1, gpu_memory=40 * 10**9)),
        ({"quota_gpus": 0}, share(gpus=1)),
        ({"quota_cpus_milli": 500}, share(1)),
        ({"quota_memory_bytes": 128 * MIB}, share(0.1, 512)),
    ],
    ids=str,
)
def test_however_many_shapes_are_blocked_the_next_that_fits_is_taken(
    fabric: Fabric, columns: dict[str, int], blocked: object
) -> None:
    tenant = fabric.add_tenant()
    node = fabric.add_node(gpus=(gpu(1, "NVIDIA T4", 16),))
    fabric.submit(*[job(priority=900 + n, resources=blocked) for n in range(12)], tenant=tenant)
    for name, limit in columns.items():
        fabric.sql(f"UPDATE tenant SET {name} = %s WHERE id = %s", limit, tenant)
    small = fabric.submit(job(), tenant=tenant)
    assert [taken.job_id for taken in fabric.claim(node)] == small


def test_jobs_that_others_hold_at_this_moment_do_not_hide_the_rest(
    fabric: Fabric, node: Node, database_url: str
) -> None:
    held = fabric.submit(*[job(priority=900 + n) for n in range(12)])
    free = fabric.submit_one()
    with raw(database_url) as other:
        other.cursor().execute("SELECT 1 FROM job WHERE id = ANY(%s::uuid[]) FOR UPDATE", (list(map(str, held)),))
        assert [taken.job_id for taken in fabric.claim(node)] == [free]


def test_the_sum_of_a_batch_fits_the_node(fabric: Fabric) -> None:
    node = fabric.add_node(slots=10, cpus=4, memory=2 * GIB + 256 * MIB)
    fabric.submit(*[job(resources=share(1, 1024))] * 9, *[job(resources=share(0.5, 64))] * 9)
    taken = fabric.claim(node)
    assert sum(t.resources.cpus_milli for t in taken) <= 4000
    assert sum(t.resources.memory_bytes for t in taken) <= 2 * GIB + 256 * MIB
    assert Counter(t.resources.cpus_milli for t in taken) == {1000: 2, 500: 4}
    assert fabric.claim(node) == []


def test_a_slot_each_and_no_more(fabric: Fabric) -> None:
    node = fabric.add_node(slots=3)
    fabric.submit(*[job()] * 5)
    first = fabric.claim(node)
    assert len(first) == 3
    assert fabric.claim(node) == []
    fabric.finish(first[0])
    assert len(fabric.claim(node)) == 1


def test_the_limit_of_a_claim_is_kept(fabric: Fabric, node: Node) -> None:
    fabric.submit(*[job(priority=n) for n in range(9)])
    assert len(fabric.claim(node, limit=4)) == 4


def test_a_gpu_has_one_holder_until_it_is_given_back(fabric: Fabric) -> None:
    node = fabric.add_node(gpus=(gpu(1), gpu(2)))
    fabric.submit(*[job(resources=share(gpus=1))] * 3)
    taken = fabric.claim(node)
    assert sorted(t.gpu_uuids for t in taken) == [("GPU-1",), ("GPU-2",)]
    fabric.finish(taken[0])
    assert fabric.claim_one(node).gpu_uuids == taken[0].gpu_uuids
    assert fabric.attempts(taken[0].job_id)[0].gpu_uuids == list(taken[0].gpu_uuids)
    fabric.assert_in_order()


def test_gpus_of_different_kinds_go_to_the_jobs_that_need_them(fabric: Fabric) -> None:
    """Two tenants in turns, one takes any card: its second job must not get the T4 that the other was promised."""
    node = fabric.add_node(gpus=(gpu(1, "K80", 12), gpu(2, "T4", 16), gpu(3, "A100", 40)))
    ann, bob = fabric.add_tenant(), fabric.add_tenant()
    fabric.submit(*[job(resources=share(gpus=1))] * 2, tenant=ann)
    picky = fabric.submit(job(resources=share(gpus=1, model="T4")), tenant=bob)
    taken = fabric.claim(node)
    assert {t.job_id: t.gpu_uuids for t in taken}[picky[0]] == ("GPU-2",)
    assert sorted(t.gpu_uuids for t in taken) == [("GPU-1",), ("GPU-2",), ("GPU-3",)]
    fabric.assert_in_order()


def test_a_gpu_that_two_nodes_name_is_given_once(fabric: Fabric) -> None:
    one = fabric.add_node(gpus=(gpu(1),))
    # Silent for a while, as when its host got another name; it may still be there.
    fabric.sql("UPDATE node SET last_seen_at = now() - interval '1 hour'")
    two = fabric.add_node(gpus=(gpu(1),))
    fabric.submit(*[job(resources=share(gpus=1))] * 2)
    assert len(fabric.claim(one)) == 1
    assert fabric.claim(two) == []


def test_eight_claimers_never_exceed_a_quota(fabric: Fabric) -> None:
    """Four limits at once, each decisive for one tenant; every round some jobs end."""
    tenants = [
        fabric.add_tenant(quota_jobs=3),
        fabric.add_tenant(quota_cpus_milli=2500),
        fabric.add_tenant(quota_memory_bytes=4 * GIB),
        fabric.add_tenant(quota_gpus=2),
    ]
    machines = [fabric.add_node(gpus=(gpu(n),)) for n in range(8)]
    for tenant in tenants:
        fabric.submit(*[job(resources=share(1, 1024, n % 2)) for n in range(20)], tenant=tenant)
    barrier = Barrier(8)

    def work(place: int) -> None:
        for _ in range(6):
            barrier.wait(30)
            for taken in fabric.claim(machines[place], 4)[::2]:
                fabric.finish(taken)
            barrier.wait(30)
            if place == 0:
                _assert_within_quotas(fabric)

    at_once(8, work)
    _assert_within_quotas(fabric)
    fabric.assert_in_order()


def _assert_within_quotas(fabric: Fabric) -> None:
    over = """SELECT t.name, sum(u.jobs) FROM tenant t JOIN usage u ON u.tenant_id = t.id GROUP BY t.id
        HAVING sum(u.jobs) > t.quota_jobs OR sum(u.cpus_milli) > t.quota_cpus_milli
            OR sum(u.memory_bytes) > t.quota_memory_bytes OR sum(u.gpus) > t.quota_gpus"""
    assert fabric.all(over) == []


def test_a_quota_is_used_up_to_the_last_job(fabric: Fabric, node: Node) -> None:
    tenant = fabric.add_tenant(quota_jobs=3)
    fabric.submit(*[job()] * 5, tenant=tenant)
    assert len(fabric.claim(node)) == 3
    assert fabric.claim(node) == []


def test_an_inactive_tenant_waits(fabric: Fabric, node: Node) -> None:
    tenant = fabric.add_tenant()
    fabric.submit(job(), tenant=tenant)
    fabric.sql("UPDATE tenant SET active = false WHERE id = %s", tenant)
    assert fabric.claim(node) == []


def test_two_claimers_never_get_the_same_job(fabric: Fabric) -> None:
    machines = [fabric.add_node(slots=200) for _ in range(4)]
    waiting = fabric.submit(*[job(priority=n % 7) for n in range(120)])

    def work(place: int) -> list[object]:
        mine: list[object] = []
        while taken := fabric.claim(machines[place], 3):
            mine += [t.job_id for t in taken]
        return mine

    got = [job_id for mine in at_once(4, work) for job_id in mine]
    assert Counter(got) == Counter(waiting)
    fabric.assert_in_order()


def test_two_claims_of_one_node_at_once_fit_it_together(fabric: Fabric) -> None:
    node = fabric.add_node(slots=5)
    fabric.submit(*[job()] * 20)
    assert sum(len(taken) for taken in at_once(4, lambda _: fabric.claim(node))) == 5


def test_an_agent_of_an_older_incarnation_gets_nothing(fabric: Fabric) -> None:
    old = fabric.add_node("host")
    new = fabric.add_node("host")
    fabric.submit_one()
    with pytest.raises(StaleIncarnation):
        fabric.claim(old)
    assert len(fabric.claim(new)) == 1


def test_an_unknown_node_gets_nothing(fabric: Fabric) -> None:
    with pytest.raises(StaleIncarnation):
        claim(fabric.db, Claimer("nobody", uuid4()), 1)


def test_a_draining_node_gets_nothing_until_it_is_ready_again(fabric: Fabric, node: Node) -> None:
    fabric.submit_one()
    set_draining(fabric.db, node.id, True)
    assert fabric.claim(node) == []
    set_draining(fabric.db, node.id, False)
    assert len(fabric.claim(node)) == 1


def test_tenants_take_turns_by_what_they_hold(fabric: Fabric, node: Node) -> None:
    ann, bob = fabric.add_tenant(), fabric.add_tenant(weight=2)
    fabric.submit(*[job()] * 12, tenant=ann)
    fabric.submit(*[job()] * 12, tenant=bob)
    got = Counter(fabric.claim_one(node).tenant_id for _ in range(9))
    assert got == {ann: 3, bob: 6}


def test_a_claim_looks_at_no_more_jobs_when_more_wait(new_fabric: Fabric) -> None:
    """Its cost must not grow with the backlog, not even when the head of the queue cannot run."""
    fabric = new_fabric
    node = fabric.add_node()
    fabric.submit(*[job(priority_class=FOREGROUND, resources=share(100))] * 3000)
    fabric.submit(*[job()] * 3000)

    def rows_read() -> int:
        fabric.sql("SELECT pg_stat_force_next_flush()")
        return int(
            fabric.value("SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'job'") or 0
        )

    fabric.sql("ANALYZE")
    before = rows_read()
    for _ in range(10):
        fabric.claim_one(node)
    assert rows_read() - before < 10 * 30


def test_the_longest_wait_of_equals_ends_first_even_with_many_shapes(fabric: Fabric, node: Node) -> None:
    first = fabric.submit_one(resources=share(0.1, 64))
    fabric.submit(*[job(resources=share(0.1, 128 * n)) for n in range(2, 14)])
    assert fabric.claim_one(node).job_id == first
