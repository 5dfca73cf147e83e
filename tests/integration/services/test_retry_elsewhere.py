"""Retries go to other nodes first: for a while no node on which a job failed takes it, if another could run it."""

from __future__ import annotations

from typing import Any

import pytest

from app.domain.job import DEFAULT_TENANT
from app.domain.policy import Ending
from app.services import recover
from app.services.explain import explain
from tests.factories import Fabric, Node, gpu, job, share

FAILED, FAULT = Ending(exit_code=1), Ending(node_fault=True)


def _fail(fabric: Fabric, node: Node, ending: Ending = FAILED, elsewhere_s: float = 60.0) -> Any:
    """The job that the node has next fails there and its backoff is over; the pass that promoted it."""
    fabric.finish(fabric.run(node), ending)
    fabric.due()
    return recover.promote(fabric.db, elsewhere_s)


@pytest.mark.parametrize("ending", [FAILED, Ending(oom=True, exit_code=137), FAULT, Ending(limit_hit="time")])
def test_another_node_has_it_first(fabric: Fabric, ending: Ending) -> None:
    bad, good = fabric.add_node("bad"), fabric.add_node("good")
    job_id = fabric.submit_one(max_retries=1)
    done = _fail(fabric, bad, ending)
    assert done.wake == {"good"}
    assert fabric.claim(bad) == []
    assert fabric.claim_one(good).job_id == job_id
    fabric.assert_in_order()


def test_what_is_behind_it_is_not_held_up(fabric: Fabric) -> None:
    bad = fabric.add_node("bad")
    fabric.add_node("good")
    fabric.submit_one(max_retries=1)
    _fail(fabric, bad)
    later = fabric.submit(*[job(max_retries=1)] * 8)
    assert {one.job_id for one in fabric.claim(bad, 8)} == set(later)


def test_the_node_has_it_again_when_the_others_had_their_time(fabric: Fabric) -> None:
    bad = fabric.add_node("bad")
    fabric.add_node("good")
    job_id = fabric.submit_one(max_retries=1)
    _fail(fabric, bad)
    fabric.sql("UPDATE retry_elsewhere SET until = now() - interval '1 second'")
    assert fabric.claim_one(bad).job_id == job_id
    recover.sweep(fabric.db)
    assert fabric.value("SELECT count(*) FROM retry_elsewhere") == 0


def test_a_job_that_failed_on_all_nodes_is_kept_from_none(fabric: Fabric) -> None:
    one, two = fabric.add_node("one"), fabric.add_node("two")
    fabric.submit_one(max_retries=2)
    _fail(fabric, one)
    done = _fail(fabric, two)
    assert done.wake == frozenset()
    assert fabric.claim_one(two).attempt == 3


@pytest.mark.parametrize(
    "other",
    [
        {"cpus": 1},
        {"gpus": []},
        {"gpus": [gpu(7, memory_gb=8)]},
        {"runners": ("container",)},
        {"state": "draining"},
    ],
    ids=["too few CPUs", "no GPU", "a GPU too small", "another runner", "draining"],
)
def test_nobody_waits_for_a_node_that_could_not_run_it(fabric: Fabric, other: dict[str, Any]) -> None:
    bad = fabric.add_node("bad", cpus=4, gpus=[gpu(0)])
    state = other.pop("state", "ready")
    fabric.add_node("other", **{"cpus": 4, "gpus": [gpu(1)], **other})
    fabric.sql("UPDATE node SET state = %s WHERE id = 'other'", state)
    fabric.submit_one(max_retries=1, resources=share(2, 64, gpus=1, gpu_memory=16 * 10**9))
    assert _fail(fabric, bad).wake == frozenset()
    assert fabric.claim_one(bad).attempt == 2


def test_without_the_setting_any_node_takes_it_at_once(fabric: Fabric) -> None:
    bad = fabric.add_node("bad")
    fabric.add_node("good")
    fabric.submit_one(max_retries=1)
    _fail(fabric, bad, elsewhere_s=0.0)
    assert fabric.claim_one(bad).attempt == 2


def test_explanations_know_it(fabric: Fabric) -> None:
    bad = fabric.add_node("bad")
    fabric.add_node("good")
    job_id = fabric.submit_one(max_retries=1)
    _fail(fabric, bad)
    told = explain(fabric.db, fabric.settings, DEFAULT_TENANT, job_id)
    assert [node.id for node, _fit in told.nodes] == ["good"]
