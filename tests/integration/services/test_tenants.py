"""Tenants are found by name or id, made once, changed field by field; nothing that runs is touched by a change."""

from __future__ import annotations

import unicodedata
from uuid import UUID, uuid4

import pytest

from app.domain.errors import Invalid, NotFound
from app.domain.job import DEFAULT_TENANT
from app.services import tenants
from app.services.tenants import NewTenant, Quota, Tier, Usage
from tests.factories import Fabric, Node, at_once, gpu, job, share


def test_a_new_tenant_is_medium_active_and_unlimited(fabric: Fabric) -> None:
    made = tenants.create(fabric.db, NewTenant("research"))
    assert (made.tier, made.weight, made.quota, made.active) == (Tier.MEDIUM, 1.0, Quota(), True)
    assert tenants.get(fabric.db, made.id) == made


def test_it_is_found_by_its_name_and_by_its_id(fabric: Fabric) -> None:
    made = tenants.create(fabric.db, NewTenant("équipe", email="a@example.com", quota=Quota(gpus=4)))
    for text in ("équipe", unicodedata.normalize("NFD", "équipe"), str(made.id), str(made.id).upper(), made.id.hex):
        assert tenants.find(fabric.db, text) == made


@pytest.mark.parametrize(
    "text", ["", "no-such", "a\0b", "\ud800", "x" * 5000, "a b", "a/b", str(UUID(int=77)), "Default"]
)
def test_any_other_text_finds_nothing(fabric: Fabric, text: str) -> None:
    assert tenants.find(fabric.db, text) is None


def test_the_default_tenant_is_critical(fabric: Fabric) -> None:
    found = tenants.find(fabric.db, "default")
    assert found is not None
    assert (found.id, found.tier) == (DEFAULT_TENANT, Tier.CRITICAL)


def test_a_name_is_given_once_however_many_ask_at_once(fabric: Fabric) -> None:
    def ask(_place: int) -> bool:
        try:
            tenants.create(fabric.db, NewTenant("twice"))
            return True
        except Invalid as exc:
            assert exc.problems[0].field == "name"
            return False

    assert sum(at_once(8, ask)) == 1


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        (NewTenant(""), "name"),
        (NewTenant("x" * 64), "name"),
        (NewTenant("a b"), "name"),
        (NewTenant("a/b"), "name"),
        (NewTenant(".."), "name"),
        (NewTenant("6f0f2a52-6a30-4a8f-8f0b-3f0f3ad2b111"), "name"),
        (NewTenant("6f0f2a526a304a8f8f0b3f0f3ad2b111"), "name"),
        (NewTenant("a", tier="best"), "tier"),
        (NewTenant("a", weight=0), "weight"),
        (NewTenant("a", weight=float("nan")), "weight"),
        (NewTenant("a", quota=Quota(gpus=-1)), "quota.gpus"),
        (NewTenant("a", quota=Quota(memory_bytes=2**70)), "quota.memory_bytes"),
        (NewTenant("a", email="a\0b"), "email"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_name(fabric: Fabric, asked: NewTenant, field: str) -> None:
    with pytest.raises(Invalid) as refusal:
        tenants.create(fabric.db, asked)
    assert [problem.field for problem in refusal.value.problems] == [field]
    assert tenants.list_tenants(fabric.db)[1] == 1


def test_a_change_sets_what_it_names_and_nothing_else(fabric: Fabric) -> None:
    made = tenants.create(fabric.db, NewTenant("a", quota=Quota(jobs=3, gpus=4), organization="lab"))
    changed = tenants.change(fabric.db, made.id, {"quota": {"gpus": None, "cpus_milli": 500}, "tier": "high"})
    assert (changed.quota, changed.tier) == (Quota(jobs=3, cpus_milli=500), Tier.HIGH)
    assert (changed.organization, changed.created_at) == ("lab", made.created_at)
    assert tenants.change(fabric.db, made.id, {}) == changed


@pytest.mark.parametrize("changes", [{"name": "b"}, {"tier": "x"}, {"weight": -1}, {"quota": {"disks": 1}}], ids=str)
def test_a_change_that_cannot_be_changes_nothing(fabric: Fabric, changes: dict[str, object]) -> None:
    made = tenants.create(fabric.db, NewTenant("a"))
    with pytest.raises(Invalid):
        tenants.change(fabric.db, made.id, {"organization": "lab", **changes})
    assert tenants.get(fabric.db, made.id) == made


def test_an_unknown_tenant_is_not_found(fabric: Fabric) -> None:
    with pytest.raises(NotFound):
        tenants.get(fabric.db, uuid4())
    with pytest.raises(NotFound):
        tenants.change(fabric.db, uuid4(), {"weight": 2})


def test_they_are_listed_by_name_page_by_page(fabric: Fabric) -> None:
    for name in ("b", "c", "a"):
        tenants.create(fabric.db, NewTenant(name))
    listed, total = tenants.list_tenants(fabric.db, limit=2, offset=1)
    assert ([one.name for one in listed], total) == (["b", "c"], 4)


def test_usage_is_the_sum_over_all_nodes(fabric: Fabric) -> None:
    tenant = fabric.add_tenant()
    fabric.submit(*[job(resources=share(1, 1024, 1, 10**9))] * 2, tenant=tenant)
    assert tenants.usage_of(fabric.db, tenant) == Usage()
    first = fabric.claim_one(fabric.add_node(gpus=(gpu(1),)))
    fabric.claim_one(fabric.add_node(gpus=(gpu(2),)))
    assert tenants.usage_of(fabric.db, tenant) == Usage(2, 2000, 2 * 2**30, 2, 2 * 10**9)
    fabric.finish(first)
    assert tenants.usage_of(fabric.db, tenant) == Usage(1, 1000, 2**30, 1, 10**9)


def test_a_lowered_quota_ends_nothing_and_lets_nothing_more_start(fabric: Fabric, node: Node) -> None:
    tenant = fabric.add_tenant(quota_jobs=3)
    fabric.submit(*[job()] * 5, tenant=tenant)
    held = fabric.claim(node)
    tenants.change(fabric.db, tenant, {"quota": {"jobs": 1}})
    renewal = fabric.renew(node, *held)
    assert (len(renewal.renewed), renewal.stops) == (3, {})
    fabric.finish(held[0])
    fabric.finish(held[1])
    assert fabric.claim(node) == []
    fabric.finish(held[2])
    assert len(fabric.claim(node)) == 1
