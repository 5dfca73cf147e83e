"""Slices of GPUs on a real database: packed onto few, never beyond a GPU, never beside one who has it to himself."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from uuid import UUID, uuid4

import psycopg2
import pytest
from psycopg2 import errors

from app.domain.resources import Gpu, Resources
from app.services.explain import explain
from tests.factories import Fabric, at_once, gpu, job, raw, share

GB = 10**9


def piece(gigabytes: int) -> Resources:
    return replace(share(gpus=1, gpu_memory=gigabytes * GB), gpu_shared=True)


def shared(number: int) -> Gpu:
    return replace(gpu(number), sharing=True)


def test_slices_share_a_gpu_up_to_its_memory(fabric: Fabric) -> None:
    node = fabric.add_node(gpus=[shared(1), shared(2)])
    fabric.submit(*[job(resources=piece(30))] * 5)
    taken = fabric.claim(node)
    assert sorted(t.gpu_uuids for t in taken) == [("GPU-1",), ("GPU-1",), ("GPU-2",), ("GPU-2",)]
    assert {t.resources.gpu_shared for t in taken} == {True}
    fabric.finish(next(t for t in taken if t.gpu_uuids == ("GPU-2",)))
    assert fabric.claim_one(node).gpu_uuids == ("GPU-2",)
    fabric.assert_in_order()


def test_nobody_shares_a_gpu_that_another_has_to_himself(fabric: Fabric) -> None:
    node = fabric.add_node(gpus=[shared(1)])
    fabric.submit_one(resources=share(gpus=1))
    alone = fabric.claim_one(node)
    fabric.submit_one(resources=piece(1))
    assert fabric.claim(node) == []
    fabric.finish(alone)
    slice_of = fabric.claim_one(node)
    fabric.submit_one(resources=share(gpus=1))
    assert fabric.claim(node) == []
    fabric.finish(slice_of)
    assert fabric.claim_one(node).gpu_uuids == ("GPU-1",)


def test_a_slice_goes_only_where_the_node_allows_it(fabric: Fabric) -> None:
    node = fabric.add_node(gpus=[gpu(1)])
    waiting = fabric.submit_one(resources=piece(1))
    assert fabric.claim(node) == []
    (cause,) = explain(fabric.db, fabric.settings, fabric.tenant, waiting).causes
    assert cause.code == "no_shared_gpu"


def test_a_slice_larger_than_any_gpu_is_told_the_largest_that_may_be_shared(fabric: Fabric) -> None:
    fabric.add_node("a-small", gpus=[replace(shared(1), memory_bytes=40 * GB)])
    fabric.add_node("b-large", gpus=[shared(2), gpu(3, memory_gb=141)])
    waiting = fabric.submit_one(resources=piece(107))
    (cause,) = explain(fabric.db, fabric.settings, fabric.tenant, waiting).causes
    assert (cause.code, cause.numbers["largest_gpu_bytes"]) == ("too_big", 80 * GB)
    assert cause.message == (
        "No node is big enough. The largest for this job, b-large, has 0 suitable GPUs in all (asks 107 GB of a shared "
        "GPU). The largest GPU that jobs may share, on b-large, has 80 GB."
    )


def test_a_job_that_waits_for_a_slice_is_told_what_is_missing(fabric: Fabric) -> None:
    node = fabric.add_node(gpus=[shared(1)])
    fabric.submit(*[job(resources=piece(50))] * 2)
    (taken,) = fabric.claim(node)
    waiting = fabric.value("SELECT id FROM job WHERE id <> %s", taken.job_id)
    (cause,) = explain(fabric.db, fabric.settings, fabric.tenant, waiting).causes
    assert cause.code == "busy"
    assert "0 suitable GPUs free (asks 50 GB of a shared GPU)" in cause.message


def test_a_quota_of_gpu_memory_counts_the_slice(fabric: Fabric) -> None:
    node = fabric.add_node(gpus=[shared(1)])
    tenant = fabric.add_tenant(quota_gpu_memory_bytes=40 * GB)
    fabric.submit(*[job(resources=piece(15))] * 3, tenant=tenant)
    assert len(fabric.claim(node)) == 2
    assert fabric.value("SELECT gpu_memory_bytes FROM usage WHERE tenant_id = %s", tenant) == 30 * GB


def test_claims_of_all_kinds_side_by_side_never_give_too_much(fabric: Fabric) -> None:
    nodes = [fabric.add_node(gpus=[shared(10 * n), shared(10 * n + 1), gpu(10 * n + 2)]) for n in range(3)]
    fabric.submit(*[job(resources=r) for r in (piece(30), share(gpus=1), piece(50), share(gpus=2)) for _ in range(12)])

    def work(number: int) -> None:
        node = nodes[number % 3]
        for _ in range(6):
            for one in fabric.claim(node, 3):
                fabric.finish(one)

    at_once(6, work)
    fabric.assert_in_order()
    while taken := [one for node in nodes for one in fabric.claim(node)]:
        assert fabric.all(OVER) == []
        for one in taken:
            fabric.finish(one)
    assert fabric.value("SELECT count(*) FROM job WHERE state <> 4") == 0


OVER = """SELECT gpu_uuid FROM gpu_hold GROUP BY 1
    HAVING (count(*) > 1 AND bool_or(memory_bytes IS NULL)) OR sum(memory_bytes) > 80000000000"""


def holder(fabric: Fabric) -> UUID:
    """An attempt with an allocation that holds no GPU yet."""
    attempt, job_id = uuid4(), fabric.submit_one()
    fabric.sql(
        "INSERT INTO attempt (id, job_id, number, node_id, token, log_day) VALUES (%s, %s, 9, 'n', %s, %s)",
        attempt, job_id, uuid4(), date(2026, 1, 1),
    )  # fmt: skip
    fabric.sql(
        """INSERT INTO allocation (attempt_id, tenant_id, node_id, cpus_milli, memory_bytes, gpus, gpu_memory_bytes,
        token) VALUES (%s, %s, 'n', 1, 1, 1, 0, %s)""",
        attempt, fabric.tenant, uuid4(),
    )  # fmt: skip
    return attempt


INSERT = """INSERT INTO gpu_hold (gpu_uuid, node_id, attempt_id, memory_bytes, gpu_bytes)
    VALUES ('GPU-1', %s, %s, %s, 80)"""


@pytest.mark.parametrize(
    ("first", "second", "error"),
    [
        (None, None, errors.UniqueViolation),
        (None, 10, errors.ExclusionViolation),
        (10, None, errors.ExclusionViolation),
        (50, 40, errors.ExclusionViolation),
        (50, 0, errors.CheckViolation),
        (50, 30, None),
    ],
)
def test_the_database_itself_refuses_what_no_gpu_can_give(
    fabric: Fabric, database_url: str, first: int | None, second: int | None, error: type[Exception] | None
) -> None:
    fabric.sql(INSERT, "a", holder(fabric), first)
    late = holder(fabric)
    with raw(database_url) as connection, connection.cursor() as cursor:
        if error is None:
            cursor.execute(INSERT, ("b", str(late), second))
            return
        with pytest.raises(error):
            cursor.execute(INSERT, ("b", str(late), second))


def test_two_that_write_at_the_same_time_do_not_miss_each_other(fabric: Fabric, database_url: str) -> None:
    holders = [holder(fabric) for _ in range(8)]

    def insert(number: int) -> bool:
        with raw(database_url) as connection:
            try:
                with connection.cursor() as cursor:
                    cursor.execute(INSERT, ("n", str(holders[number]), None if number % 4 == 0 else 30))
                connection.commit()
            except psycopg2.Error:
                return False
            return True

    won = [number for number, done in enumerate(at_once(8, insert)) if done]
    kinds = [number % 4 == 0 for number in won]
    assert kinds == [True] or kinds == [False, False]
