"""Queue positions: what they foretell is what claims do; counted to a cap; never another tenant's."""

from __future__ import annotations

import random
from uuid import UUID

import pytest

from app.domain.errors import NotFound
from app.domain.job import DEFAULT_TENANT
from app.domain.policy import Ending
from app.services import queue, stop
from app.services.queue import Position, Rival, position, turns_before
from tests.factories import FOREGROUND, Fabric, Node, job, share


def where(fabric: Fabric, job_id: UUID, tenant: UUID = DEFAULT_TENANT) -> int:
    return position(fabric.db, tenant, job_id).position


def test_the_oldest_is_next_and_who_does_not_wait_is_at_zero(fabric: Fabric, node: Node) -> None:
    sent = fabric.submit(*[job() for _ in range(4)])
    assert [where(fabric, one) for one in sent] == [1, 2, 3, 4]
    assert position(fabric.db, DEFAULT_TENANT, sent[2]) == Position(3, True, 3, 4)
    taken = fabric.run(node)
    stop.cancel_pending(fabric.db, DEFAULT_TENANT, sent[1], by="me")
    assert [where(fabric, one) for one in sent] == [0, 0, 1, 2]
    fabric.finish(taken)
    assert where(fabric, sent[0]) == 0


def test_a_job_that_may_not_start_yet_is_not_waiting(fabric: Fabric, node: Node) -> None:
    job_id = fabric.submit_one(max_retries=1, backoff_s=60.0)
    fabric.finish(fabric.run(node), Ending(exit_code=1))
    assert where(fabric, job_id) == 0


def test_classes_are_queues_of_their_own(fabric: Fabric) -> None:
    background = fabric.submit(job(), job())
    foreground = fabric.submit_one(priority_class=FOREGROUND)
    assert [where(fabric, one) for one in (*background, foreground)] == [1, 2, 1]


def test_of_another_tenant_is_not_found(fabric: Fabric) -> None:
    job_id = fabric.submit_one()
    with pytest.raises(NotFound):
        position(fabric.db, fabric.add_tenant(), job_id)


def test_beyond_the_cap_it_is_the_least_it_can_be(fabric: Fabric, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "EXACT_TO", 5)
    sent = fabric.submit(*[job(resources=share(cpus=0.1 + n % 3)) for n in range(9)])
    told = [position(fabric.db, DEFAULT_TENANT, one) for one in sent]
    assert [(one.position, one.exact) for one in told] == [(n, True) for n in range(1, 6)] + [(6, False)] * 4
    assert {one.of for one in told} == {9}


def test_one_job_of_a_quiet_tenant_does_not_wait_behind_a_flood(fabric: Fabric) -> None:
    fabric.submit(*[job() for _ in range(50)])
    quiet = fabric.add_tenant()
    assert where(fabric, fabric.submit_one(tenant=quiet), quiet) == 2


def test_who_may_start_nothing_stands_before_nobody(fabric: Fabric) -> None:
    full, idle = fabric.add_tenant(), fabric.add_tenant()
    blocked, _unseen = fabric.submit_one(tenant=full), fabric.submit_one(tenant=idle)
    fabric.sql("UPDATE tenant SET quota_jobs = 0 WHERE id = %s", str(full))
    fabric.sql("UPDATE tenant SET active = false WHERE id = %s", str(idle))
    mine = fabric.submit_one()
    assert where(fabric, mine) == 1
    assert where(fabric, blocked, full) == 1


@pytest.mark.parametrize("seed", range(12))
def test_claims_start_jobs_in_the_foretold_order(fabric: Fabric, node: Node, seed: int) -> None:
    """Tenants of various weights, some running something already: a claim of so many takes so many first positions."""
    luck = random.Random(seed)
    # Sums of thirds would be no ties any more in floating point.
    tenants = [fabric.add_tenant(weight=luck.choice([1.0, 1.0, 2.0, 4.0, 0.5])) for _ in range(4)]
    running = share(cpus=1)
    for tenant in tenants[:2]:
        fabric.submit(*[job(resources=running, priority_class=FOREGROUND)] * luck.randint(1, 3), tenant=tenant)
    fabric.claim(node)
    waiting = [(tenant, n) for tenant in tenants for n in range(luck.randint(1, 8))]
    luck.shuffle(waiting)
    sent = {fabric.submit_one(tenant=tenant, resources=running): tenant for tenant, _n in waiting}
    foretold = {one: position(fabric.db, tenant, one) for one, tenant in sent.items()}
    assert sorted(one.position for one in foretold.values()) == list(range(1, len(sent) + 1))
    room = luck.randint(1, len(sent))
    started = {taken.job_id for taken in fabric.claim(node, room)}
    assert started == {one for one, told in foretold.items() if told.position <= room}


def test_a_greater_priority_goes_first_inside_a_tenant(fabric: Fabric, node: Node) -> None:
    low, high = fabric.submit_one(), fabric.submit_one()
    key = fabric.row(high).key_id
    fabric.sql("UPDATE job SET queue_seq = queue_seq + 100 WHERE id = %s", str(high))
    fabric.sql(
        """WITH k AS (INSERT INTO scheduling_key (tenant_id, class, priority, runner, external_ok, cpus_milli,
            memory_bytes, gpus, gpu_memory_bytes, gpu_model) SELECT tenant_id, class, priority + 1, runner, external_ok,
            cpus_milli, memory_bytes, gpus, gpu_memory_bytes, gpu_model FROM scheduling_key WHERE id = %s RETURNING id)
        UPDATE job SET key_id = k.id FROM k WHERE job.id = %s""",
        key, str(high),
    )  # fmt: skip
    assert (where(fabric, high), where(fabric, low)) == (1, 2)
    assert fabric.claim_one(node).job_id == high


class TestTurns:
    @pytest.mark.parametrize(
        ("nth", "rival", "expected"),
        [
            (0, Rival(0.0, 1.0, 1, 9), 1),
            (0, Rival(0.0, 1.0, 9, 9), 0),
            (0, Rival(5.0, 1.0, 1, 9), 0),
            (3, Rival(0.0, 1.0, 1, 9), 4),
            (3, Rival(0.0, 1.0, 9, 2), 2),
            (3, Rival(0.0, 2.0, 9, 99), 6),
            (3, Rival(1.5, 1.0, 9, 99), 2),
        ],
    )
    def test_a_rival_starts_what_its_share_allows(self, nth: int, rival: Rival, expected: int) -> None:
        assert turns_before(nth, Rival(0.0, 1.0, 5, 10), 1.0, [rival]) == expected
