"""Quotas and tiers at submit and at claim: what is refused, what waits, what counts in the queue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from uuid import UUID

import pytest

from app.domain.errors import NotFound, QuotaExceeded, Refused
from app.domain.resources import GIB, MIB
from app.services import tenants
from app.services.claim import PAGE, SMALL_PAGE, Claimer, claim
from app.services.inspect import job_detail
from app.storage import claims
from app.storage.database import Tx
from tests.factories import BEST_EFFORT, FOREGROUND, Fabric, Node, gpu, job, raw, share


@pytest.mark.parametrize(
    ("columns", "asked", "message"),
    [
        ({"quota_gpus": 4}, share(gpus=8), "The job asks for 8 GPUs; the quota of tenant lab is 4 GPUs."),
        ({"quota_jobs": 0}, share(), "asks for 1 job; the quota of tenant lab is 0 jobs"),
        ({"quota_cpus_milli": 1500}, share(2), "asks for 2 CPUs; the quota of tenant lab is 1.5 CPUs"),
        (
            {"quota_memory_bytes": 4 * GIB},
            share(1, 5000),
            "asks for 4.88 GiB of memory; the quota of tenant lab is 4 GiB",
        ),
        (
            {"quota_gpu_memory_bytes": 150 * 10**9},
            share(gpus=2, gpu_memory=80 * 10**9),
            "asks for 160 GB of GPU memory; the quota of tenant lab is 150 GB of GPU memory",
        ),
    ],
    ids=str,
)
def test_a_job_that_alone_exceeds_the_quota_is_refused_with_numbers(
    fabric: Fabric, columns: dict[str, int], asked: object, message: str
) -> None:
    tenant = fabric.add_tenant("lab", **columns)
    with pytest.raises(QuotaExceeded) as refusal:
        fabric.submit_one(tenant, resources=asked)
    assert message in refusal.value.message
    assert refusal.value.context["tenant"] == "lab"
    assert fabric.value("SELECT count(*) FROM job") == 0


def test_a_bulk_is_refused_as_a_whole_and_names_those_that_are_too_large(fabric: Fabric) -> None:
    tenant = fabric.add_tenant("lab", quota_gpus=4)
    with pytest.raises(QuotaExceeded) as refusal:
        fabric.submit(*[job(resources=share(gpus=n)) for n in (4, 1, 5, 0, 6)], tenant=tenant)
    assert refusal.value.message == (
        "Job [2] asks for 5 GPUs; the quota of tenant lab is 4 GPUs. None of the 5 jobs was submitted."
    )
    assert [one["index"] for one in refusal.value.context["errors"]] == [2, 4]
    assert fabric.value("SELECT count(*) FROM job") == 0


def test_a_job_that_fits_the_quota_exactly_runs_although_shares_are_rounded_up(fabric: Fabric, node: Node) -> None:
    tenant = fabric.add_tenant(quota_memory_bytes=5000 * MIB, quota_cpus_milli=4200)
    fabric.submit_one(tenant, resources=share(4.2, 5000))
    assert fabric.claim_one(node).resources == share(4.2, 5000)


def test_what_only_does_not_fit_now_waits(fabric: Fabric, node: Node) -> None:
    tenant = fabric.add_tenant(quota_cpus_milli=2000)
    fabric.submit(*[job(resources=share(2))] * 2, tenant=tenant)
    first = fabric.claim_one(node)
    assert fabric.claim(node) == []
    fabric.finish(first)
    fabric.claim_one(node)


def test_an_inactive_tenant_submits_nothing_and_what_it_runs_goes_on(fabric: Fabric, node: Node) -> None:
    tenant = fabric.add_tenant("gone")
    fabric.submit(job(), job(), tenant=tenant)
    held = fabric.claim_one(node)
    tenants.change(fabric.db, tenant, {"active": False})
    with pytest.raises(Refused, match="Tenant gone is inactive"):
        fabric.submit_one(tenant)
    assert fabric.claim(node) == []
    assert fabric.renew(node, held).renewed == {held.attempt_id}
    fabric.finish(held)
    tenants.change(fabric.db, tenant, {"active": True})
    fabric.claim_one(node)
    fabric.assert_in_order()


def test_nothing_is_submitted_for_a_tenant_that_does_not_exist(fabric: Fabric) -> None:
    with pytest.raises(NotFound, match="Tenant not found"):
        fabric.submit_one(UUID(int=7))


def test_a_tier_decides_where_a_job_stands_and_not_what_it_says(fabric: Fabric, node: Node) -> None:
    low, medium = fabric.add_tenant(tier="low"), fabric.add_tenant(tier="medium")
    capped = fabric.submit_one(low, priority_class=FOREGROUND, priority=4000)
    first = fabric.submit_one(medium, priority_class=FOREGROUND)
    detail = job_detail(fabric.db, low, capped)
    assert detail.job.priority_class == FOREGROUND
    assert (detail.spec.effective_class, detail.spec.effective_priority) == (BEST_EFFORT, 100)
    assert [taken.job_id for taken in (fabric.claim_one(node), fabric.claim_one(node))] == [first, capped]
    fabric.assert_in_order()


def test_a_retry_keeps_the_place_that_the_tier_gave_it(fabric: Fabric, node: Node) -> None:
    low = fabric.add_tenant(tier="low")
    job_id = fabric.submit_one(low, priority_class=FOREGROUND)
    taken = fabric.run(node)
    fabric.expire(taken)
    fabric.reap()
    other = fabric.submit_one(priority_class=FOREGROUND)
    assert [t.job_id for t in fabric.claim(node)] == [other, job_id]


def test_the_default_tenant_is_not_capped(fabric: Fabric) -> None:
    job_id = fabric.submit_one(priority_class=FOREGROUND, priority=5000)
    assert job_detail(fabric.db, fabric.tenant, job_id).spec.effective_priority == 5000


def test_a_quota_of_gpu_memory_counts_every_gpu(fabric: Fabric) -> None:
    tenant = fabric.add_tenant(quota_gpu_memory_bytes=200 * 10**9)
    node = fabric.add_node(gpus=[gpu(n) for n in range(8)])
    fabric.submit(*[job(resources=share(gpus=2, gpu_memory=40 * 10**9))] * 4, tenant=tenant)
    assert len(fabric.claim(node)) == 2


QUOTA_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('quota:' || %s::uuid, 71))"


def test_a_claim_says_when_it_passed_over_a_tenant_whose_quota_is_being_decided(
    fabric: Fabric, node: Node, database_url: str
) -> None:
    tenant = fabric.add_tenant(quota_jobs=5)
    fabric.submit(job(), tenant=tenant)
    who = Claimer(node.id, node.incarnation)
    with raw(database_url) as other:
        other.cursor().execute(QUOTA_LOCK, (str(tenant),))
        busy = claim(fabric.db, who, 4)
        assert (list(busy), busy.passed_over) == ([], True)
        own = fabric.submit_one()
        both = claim(fabric.db, who, 4)
        assert ([taken.job_id for taken in both], both.passed_over) == ([own], True)
        fabric.submit_one()
        assert not claim(fabric.db, who, 1).passed_over, "nothing was left for the tenant that was passed over"
        # Closing a connection frees its locks only some time later.
        other.rollback()
    free = claim(fabric.db, who, 4)
    assert (len(free), free.passed_over) == (1, False)


def test_a_quota_lowered_during_a_claim_counts_for_it(
    fabric: Fabric, node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim read the old quota without a lock; a change that was answered before it decided must hold."""
    tenant = fabric.add_tenant(quota_jobs=5)
    fabric.submit(*[job()] * 5, tenant=tenant)
    lock = claims.try_lock_tenants

    def change_first(tx: Tx, asked: Sequence[UUID]) -> set[UUID]:
        tenants.change(fabric.db, tenant, {"quota": {"jobs": 2}})
        return lock(tx, asked)

    monkeypatch.setattr(claims, "try_lock_tenants", change_first)
    assert len(fabric.claim(node)) == 2


def test_tenants_beyond_a_page_have_their_turn_although_the_first_of_them_never_fit(fabric: Fabric) -> None:
    """More tenants than one look shows, each with jobs that fit; and in front many whose only job does not fit."""
    node = fabric.add_node(slots=500, cpus=4)
    wide = [fabric.add_tenant() for _ in range(PAGE + SMALL_PAGE)]
    waiting = {fabric.submit(job(resources=share(0.1)), tenant=tenant)[0] for tenant in wide}
    for tenant in wide[::3]:
        fabric.submit(*[job(resources=share(8), priority=900)] * 2, tenant=tenant)
    got = set()
    while taken := fabric.claim(node, 3):
        got |= {one.job_id for one in taken}
        for one in taken:
            fabric.finish(one)
    assert got == waiting
    fabric.assert_in_order()


def test_tenants_that_always_have_jobs_do_not_keep_the_others_waiting(fabric: Fabric) -> None:
    """Nobody holds anything when the next claim comes, so that those who have waited longest come first."""
    node = fabric.add_node(slots=1)
    several = [fabric.add_tenant() for _ in range(3 * SMALL_PAGE)]
    for tenant in several:
        fabric.submit(*[job()] * 4, tenant=tenant)
    served = Counter[UUID]()
    for _ in range(2 * len(several)):
        taken = fabric.claim_one(node)
        served[taken.tenant_id] += 1
        fabric.finish(taken)
    assert len(served) >= 3, "one page of tenants got everything"
    assert {sorted(several).index(tenant) // SMALL_PAGE for tenant in served} == {0, 1, 2}


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({"active": False}, "inactive"),
        ({"quota": {"gpus": 1}}, "asks for 2 GPUs"),
        ({"quota": {"gpus": 2}}, None),
        ({"tier": "low"}, None),
    ],
    ids=str,
)
def test_what_a_process_remembers_of_a_tenant_never_decides(
    fabric: Fabric, change: dict[str, object], refused: str | None
) -> None:
    """Each change comes after this process has served a submit of the tenant, and so remembers it."""
    tenant = fabric.add_tenant(tier="high", quota_gpus=8)
    asked = job(priority_class=FOREGROUND, resources=share(gpus=2))
    fabric.submit(asked, tenant=tenant)
    tenants.change(fabric.db, tenant, change)
    if refused is not None:
        with pytest.raises(Refused, match=refused):
            fabric.submit(asked, tenant=tenant)
    else:
        (made,) = fabric.submit(asked, tenant=tenant)
        counts = BEST_EFFORT if "tier" in change else FOREGROUND
        assert job_detail(fabric.db, tenant, made).spec.effective_class == counts
    tenants.change(fabric.db, tenant, {"active": True, "quota": {"gpus": None}, "tier": "high"})
    (made,) = fabric.submit(asked, tenant=tenant)
    assert job_detail(fabric.db, tenant, made).spec.effective_class == FOREGROUND
    fabric.assert_in_order()
