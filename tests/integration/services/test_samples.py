"""Samples are stored by the database's clock, read by job in the order of time, and dropped day by day."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from app.domain.errors import NotFound
from app.domain.job import Assignment
from app.domain.policy import Ending
from app.services import recover, samples
from app.services.inspect import job_detail
from app.services.nodes import Orphan
from app.services.samples import Measured, SamplePage
from tests.factories import Fabric, Node, job, share

NOON = datetime(2026, 1, 20, 12, 0, 0, tzinfo=UTC)


def read(fabric: Fabric, job_id: UUID, tenant: UUID | None = None, **wanted: object) -> SamplePage:
    return samples.of_job(fabric.db, tenant or fabric.tenant, job_id, **wanted)  # type: ignore[arg-type]


def running(fabric: Fabric, node: Node, **asked: object) -> Assignment:
    fabric.submit_one(**asked)
    return fabric.run(node)


def add(fabric: Fabric, taken: Assignment, *ages_s: float) -> None:
    """One sample each so many seconds ago; each used as many cores as it is old."""
    samples.store(fabric.db, [Measured(taken.attempt_id, age, cpu_cores=age, memory_bytes=2**20) for age in ages_s])


def cores(page: SamplePage) -> list[float | None]:
    return [one.cpu_cores for one in page.samples]


def test_a_batch_is_one_statement_and_its_times_are_the_databases(fabric: Fabric, node: Node) -> None:
    taken = running(fabric, node)
    add(fabric, taken, 0.0, 60.0, 30.0)
    page = read(fabric, taken.job_id)
    assert (cores(page), page.total) == ([60.0, 30.0, 0.0], 3)
    now = fabric.value("SELECT now()")
    assert all(timedelta(0) <= now - one.at < timedelta(seconds=90) for one in page.samples)
    assert {(one.attempt, one.member, one.memory_bytes) for one in page.samples} == {(1, 0, 2**20)}
    add(fabric, taken)
    assert read(fabric, taken.job_id).total == 3


@pytest.mark.parametrize("way", ["reaped", "handed back"])
def test_a_lost_attempt_keeps_the_peaks_that_were_sampled(fabric: Fabric, node: Node, way: str) -> None:
    taken = running(fabric, node)
    add(fabric, taken, 3.0, 7.0, 5.0)
    if way == "reaped":
        fabric.expire()
        fabric.reap()
    else:
        recover.hand_back(fabric.db, [Orphan(taken.attempt_id, taken.token, started=True)], "its keeper is gone")
    (record,) = job_detail(fabric.db, fabric.tenant, taken.job_id).attempts
    assert (record.outcome, record.peak_cpu_cores, record.peak_memory_bytes) == ("lost", 7.0, 2**20)
    assert record.peak_gpu_memory_bytes is None


def test_with_a_start_the_first_come_without_it_the_latest_and_the_total_is_of_all(fabric: Fabric, node: Node) -> None:
    taken = running(fabric, node)
    add(fabric, taken, *[float(n) for n in range(0, 100, 10)])
    latest = read(fabric, taken.job_id, limit=3)
    assert (cores(latest), latest.total) == ([20.0, 10.0, 0.0], 10)
    start = fabric.value("SELECT now()") - timedelta(seconds=75)
    first = read(fabric, taken.job_id, start=start, limit=3)
    assert (cores(first), first.total) == ([70.0, 60.0, 50.0], 8)
    end = fabric.value("SELECT now()") - timedelta(seconds=45)
    between = read(fabric, taken.job_id, start=start, end=end)
    assert (cores(between), between.total) == ([70.0, 60.0, 50.0], 3)
    assert read(fabric, taken.job_id, start=end, end=start).total == 0


def test_both_ends_count_in_whole_seconds_as_times_are_shown(fabric: Fabric, node: Node) -> None:
    taken = running(fabric, node)
    add(fabric, taken, 0.0)
    fabric.sql("UPDATE sample SET at = date_trunc('second', at) + interval '700 ms'")
    (one,) = read(fabric, taken.job_id).samples
    shown = one.at.replace(microsecond=0)
    assert read(fabric, taken.job_id, start=shown, end=shown).total == 1
    assert read(fabric, taken.job_id, start=shown + timedelta(seconds=1)).total == 0
    assert read(fabric, taken.job_id, end=shown - timedelta(seconds=1)).total == 0


def test_attempts_are_told_apart_or_together(fabric: Fabric, node: Node) -> None:
    first = running(fabric, node, max_retries=1, backoff_s=0.0)
    add(fabric, first, 20.0)
    fabric.finish(first, Ending(exit_code=1))
    second = fabric.run(node)
    add(fabric, second, 5.0)
    assert [one.attempt for one in read(fabric, first.job_id).samples] == [1, 2]
    assert cores(read(fabric, first.job_id, attempt=2)) == [5.0]
    with pytest.raises(NotFound, match="no attempt 3"):
        read(fabric, first.job_id, attempt=3)


def test_nobody_elses_samples_are_read(fabric: Fabric, node: Node) -> None:
    taken = running(fabric, node)
    add(fabric, taken, 0.0)
    other = fabric.add_tenant()
    for tenant, job_id in ((other, taken.job_id), (fabric.tenant, uuid4())):
        with pytest.raises(NotFound):
            read(fabric, job_id, tenant)
        with pytest.raises(NotFound):
            samples.latest(fabric.db, tenant, job_id)
    assert samples.latest(fabric.db, other) == []
    assert read(fabric, fabric.submit_one()).total == 0


def test_the_latest_of_all_that_run_come_with_what_they_hold(fabric: Fabric, node: Node) -> None:
    waiting = fabric.submit_one(type="later", resources=share(2, 512))
    fabric.sql("UPDATE job SET ready = false, reason = 'hold' WHERE id = %s", waiting)
    old = running(fabric, node, type="old", resources=share(4, 2048))
    new = running(fabric, node, type="new")
    add(fabric, old, *[float(n) for n in range(40, 0, -1)])
    told = samples.latest(fabric.db, fabric.tenant)
    assert [one.type for one in told] == ["new", "old"]
    assert (told[0].recent, told[0].hard_limits, told[1].hard_limits) == ((), False, True)
    assert [one.cpu_cores for one in told[1].recent] == [float(n) for n in range(samples.RECENT, 0, -1)]
    assert told[1].share == share(4, 2048)
    assert [one.type for one in samples.latest(fabric.db, fabric.tenant, old.job_id)] == ["old"]
    assert [one.type for one in samples.latest(fabric.db, fabric.tenant, limit=1)] == ["new"]
    assert samples.latest(fabric.db, fabric.tenant, waiting) == []
    fabric.finish(new)
    assert [one.type for one in samples.latest(fabric.db, fabric.tenant)] == ["old"]


def test_peaks_are_kept_in_the_attempts_record(fabric: Fabric, node: Node) -> None:
    known, unknown = running(fabric, node), running(fabric, node)
    fabric.finish(known, peak_cpu_cores=1.5, peak_memory_bytes=77, peak_gpu_memory_bytes=88)
    fabric.finish(unknown)
    (attempt,) = job_detail(fabric.db, fabric.tenant, known.job_id).attempts
    assert (attempt.peak_cpu_cores, attempt.peak_memory_bytes, attempt.peak_gpu_memory_bytes) == (1.5, 77, 88)
    (attempt,) = job_detail(fabric.db, fabric.tenant, unknown.job_id).attempts
    assert (attempt.peak_cpu_cores, attempt.peak_gpu_memory_bytes) == (None, None)


def test_retention_drops_the_days_that_are_over_and_no_others(new_fabric: Fabric) -> None:
    fabric = new_fabric
    fabric.submit(job())
    taken = fabric.run(fabric.add_node())
    add(fabric, taken, 0.0)
    fabric.sql("CREATE TABLE sample_20260101 PARTITION OF sample FOR VALUES FROM ('2026-01-01') TO ('2026-01-02')")
    for day in ("2026-01-01", "2025-12-01"):
        fabric.sql(
            "INSERT INTO sample (day, attempt_id, at, cpu_cores) VALUES (%s, %s, now(), 1)", day, taken.attempt_id
        )
    before = fabric.value("SELECT count(*) FROM sample")
    done = recover.retain(fabric.db, fabric.settings)
    assert "sample_20260101" in done.detail["dropped"]
    assert (before, fabric.value("SELECT count(*) FROM sample")) == (3, 1)
