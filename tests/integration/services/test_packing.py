"""Claims leave fresh GPU jobs to the node that they fill best, for a moment, and wait for nobody else."""

from __future__ import annotations

from app.services.claim import Claimed, Claimer, claim
from app.services.packing import Packing
from tests.factories import Fabric, Node, gpu, job, share

ONE = share(gpus=1)


def host(fabric: Fabric, place: int, gpus: int) -> Node:
    return fabric.add_node(f"host-{place}", gpus=[gpu(10 * place + n) for n in range(gpus)])


def ask(fabric: Fabric, node: Node, delay_s: float = 60.0, limit: int = 8) -> Claimed:
    """A claim by an agent that has not looked at others yet."""
    return claim(fabric.db, Claimer(node.id, node.incarnation, node.runners, packing=Packing(delay_s)), limit)


def test_a_job_is_left_to_the_node_that_it_fills_and_that_node_is_named(fabric: Fabric) -> None:
    whole, small = host(fabric, 1, 8), host(fabric, 2, 1)
    waiting = fabric.submit_one(resources=ONE)
    left = ask(fabric, whole)
    assert (list(left), left.better, left.more) == ([], (small.id,), True)
    assert left.put_off_s is not None and 0 < left.put_off_s <= 60
    (taken,) = ask(fabric, small)
    assert taken.job_id == waiting


def test_it_is_taken_when_the_delay_is_over_or_none_is_set(fabric: Fabric) -> None:
    whole, _small = host(fabric, 1, 8), host(fabric, 2, 1)
    fabric.submit_one(resources=ONE)
    assert len(ask(fabric, whole, delay_s=0.0)) == 1
    fabric.submit_one(resources=ONE)
    fabric.sql("UPDATE job SET created_at = created_at - interval '5 s'")
    assert len(ask(fabric, whole, delay_s=5.0)) == 1


def test_a_job_that_only_this_node_could_run_is_not_put_off(fabric: Fabric) -> None:
    whole, small = host(fabric, 1, 8), host(fabric, 2, 1)
    fabric.submit_one(resources=share(gpus=2))
    (taken,) = ask(fabric, whole)
    assert len(taken.gpu_uuids) == 2
    fabric.submit_one(resources=ONE)
    fabric.sql("UPDATE node SET state = 'draining' WHERE id = %s", small.id)
    assert len(ask(fabric, whole)) == 1


def test_what_the_tighter_node_has_no_room_for_is_taken_at_once(fabric: Fabric) -> None:
    whole, small = host(fabric, 1, 8), host(fabric, 2, 1)
    fabric.submit(*[job(resources=ONE)] * 3)
    assert len(ask(fabric, whole)) == 2
    assert len(ask(fabric, small)) == 1


def test_a_job_that_is_put_off_hides_nothing_behind_it(fabric: Fabric) -> None:
    whole, _small = host(fabric, 1, 8), host(fabric, 2, 1)
    fabric.submit(*[job(resources=share(cpus=c, gpus=1), priority=500) for c in range(1, 12)])
    plain = fabric.submit_one(priority=1)
    taken = [one.job_id for one in ask(fabric, whole, limit=2)]
    assert taken == [plain]


def test_other_nodes_are_looked_at_now_and_then_only(fabric: Fabric) -> None:
    whole, small = host(fabric, 1, 8), host(fabric, 2, 1)
    now = [0.0]
    packing = Packing(60.0, lambda: now[0])
    who = Claimer(whole.id, whole.incarnation, whole.runners, packing=packing)
    fabric.submit_one(resources=ONE)
    assert claim(fabric.db, who, 1).better == (small.id,)
    fabric.sql("UPDATE node SET state = 'draining' WHERE id = %s", small.id)
    assert claim(fabric.db, who, 1).better == (small.id,)
    now[0] = 60.0
    assert len(claim(fabric.db, who, 1)) == 1
