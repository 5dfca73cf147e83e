"""A dry run says what a submit and a claim then do, and leaves nothing behind."""

from __future__ import annotations

from typing import Any

from app.domain.dependency import After
from app.domain.errors import QuotaExceeded, Refused
from app.domain.explain import Code
from app.domain.resources import GIB
from app.services.queue import position
from app.services.rehearse import Rehearsal, rehearse
from app.storage.schema import metadata
from tests.factories import BACKGROUND, FOREGROUND, Fabric, Node, gpu, job, share


def dry(fabric: Fabric, tenant: Any = None, **changes: Any) -> Rehearsal:
    return rehearse(fabric.db, fabric.settings, tenant or fabric.tenant, job(**changes))


def code(found: Rehearsal) -> Code:
    assert found.told is not None
    return found.told.causes[0].code


def rows(fabric: Fabric) -> dict[str, Any]:
    return {name: fabric.all(f'SELECT * FROM "{name}" t ORDER BY t::text') for name in sorted(metadata.tables)}


def test_nothing_is_left_of_it(fabric: Fabric, node: Node) -> None:
    fabric.submit(job(), job())
    before = rows(fabric)
    found = dry(fabric, resources=share(2, 512), priority_class=FOREGROUND, hold=True)
    assert found.refusal is None
    assert rows(fabric) == before
    fabric.assert_in_order()


def test_its_place_is_the_one_that_the_submit_then_gets(fabric: Fabric) -> None:
    fabric.submit(job(), job(priority=900), job(), job(priority_class=FOREGROUND))
    found = dry(fabric, priority=700)
    assert found.told is not None and found.told.place is not None
    real = fabric.submit_one(priority=700)
    assert found.told.place == position(fabric.db, fabric.tenant, real)


def test_what_would_start_starts_and_what_would_wait_waits(fabric: Fabric) -> None:
    node = fabric.add_node("small", slots=1)
    assert code(dry(fabric)) == Code.STARTS_NOW
    fabric.submit_one()
    assert code(dry(fabric)) == Code.BEHIND_OTHERS
    assert code(dry(fabric, priority=900)) == Code.STARTS_NOW
    urgent = fabric.submit_one(priority=900)
    assert fabric.claim_one(node).job_id == urgent
    assert code(dry(fabric)) == Code.BUSY


def test_nodes_that_have_room_and_those_that_ever_could(fabric: Fabric) -> None:
    fabric.add_node("empty", cpus=8)
    fabric.submit_one(resources=share(8, 64))
    fabric.claim_one(fabric.add_node("full", cpus=8))
    fabric.add_node("small", cpus=2)
    fabric.sql("UPDATE node SET state = 'draining' WHERE id = %s", fabric.add_node("draining", cpus=8).id)
    found = dry(fabric, resources=share(4, 64))
    assert (found.now.count, list(found.now.names)) == (1, ["empty"])
    assert set(found.ever.names) == {"empty", "full", "draining"}
    never = dry(fabric, resources=share(1, 64, gpus=1))
    assert (code(never), never.now.count, never.ever.count) == (Code.NO_GPU_MODEL, 0, 0)


def test_a_refusal_is_the_answer(fabric: Fabric) -> None:
    tenant = fabric.add_tenant("small", quota_gpus=1)
    found = dry(fabric, tenant, resources=share(1, 64, gpus=2))
    assert isinstance(found.refusal, QuotaExceeded)
    assert "asks for 2 GPUs; the quota of tenant small is 1 GPU" in found.refusal.message
    gone = fabric.add_tenant("gone", active=False)
    assert isinstance(dry(fabric, gone).refusal, Refused)
    fabric.settings = fabric.settings.__class__(live_keys_per_tenant=1)
    fabric.submit_one()
    assert isinstance(dry(fabric, priority=700).refusal, Refused)
    assert dry(fabric).refusal is None


def test_a_quota_that_is_used_up_is_told(fabric: Fabric) -> None:
    node = fabric.add_node(gpus=[gpu(n) for n in range(4)], memory=256 * GIB)
    tenant = fabric.add_tenant("vision", quota_gpus=2)
    fabric.submit(job(resources=share(gpus=2)), tenant=tenant)
    fabric.run(node)
    found = dry(fabric, tenant, resources=share(gpus=1))
    assert (code(found), found.now.count) == (Code.QUOTA, 1)


def test_what_the_tier_makes_of_it(fabric: Fabric) -> None:
    tenant = fabric.add_tenant("medium", tier="medium")
    found = dry(fabric, tenant, priority_class=FOREGROUND)
    assert (found.effective_class, found.effective_priority) == (BACKGROUND, 500)


def test_what_lies_in_the_job_itself_and_where_it_could_run_all_the_same(fabric: Fabric, node: Node) -> None:
    found = dry(fabric, hold=True)
    assert (code(found), found.now.count) == (Code.HOLD, 1)
    waits = dry(fabric, after=(After(fabric.submit_one()),))
    assert code(waits) == Code.DEPENDENCY
    assert fabric.value("SELECT count(*) FROM job_dependency") == 0
    fabric.assert_in_order()
