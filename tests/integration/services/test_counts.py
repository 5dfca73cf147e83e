"""Maintained counts: exact at every moment, whatever commits, aborts and folds; cheap to read when nobody folds."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest

from app.domain.job import DEFAULT_TENANT
from app.domain.states import JobState
from app.services import counts, inspect, recover, stop
from app.services.inspect import JobFilter
from tests.factories import COUNT_DRIFT, FOREGROUND, TOTAL_DRIFT, Fabric, Node, job, raw


@pytest.mark.parametrize("seed", range(2))
def test_counts_equal_rows_in_every_snapshot(fabric: Fabric, node: Node, database_url: str, seed: int) -> None:
    """Jobs are submitted, taken back, claimed, ended and removed while others fold; each look sees one snapshot."""
    tenants = [DEFAULT_TENANT, fabric.add_tenant()]
    over, looks = Event(), []

    def live(number: int) -> None:
        luck = random.Random(seed * 10 + number)
        for turn in range(12):
            made = job(type=f"t{luck.randint(1, 3)}", priority_class=luck.choice([FOREGROUND, job().priority_class]))
            sent = fabric.submit(*[made] * luck.randint(1, 4), tenant=luck.choice(tenants))
            if turn % 3 == 0:
                stop.cancel_many(fabric.db, tenants[0], sent, by="test")
            for taken in fabric.claim(node, luck.randint(1, 3)):
                fabric.start(taken)
                if luck.random() < 0.7:
                    fabric.finish(taken)
            with raw(database_url) as connection, connection.cursor() as sql:
                sql.execute(
                    "DELETE FROM job WHERE id IN (SELECT id FROM job WHERE state > 3 LIMIT 2 FOR UPDATE SKIP LOCKED)"
                )
                connection.rollback() if luck.random() < 0.5 else connection.commit()

    def fold() -> None:
        while not over.is_set():
            recover.fold_stats(fabric.db, limit=7)

    def look() -> None:
        while not over.is_set():
            looks.append((fabric.all(COUNT_DRIFT), fabric.all(TOTAL_DRIFT)))

    with ThreadPoolExecutor(9) as pool:
        besides = [pool.submit(work) for work in (fold, fold, look, look)]
        workers = [pool.submit(live, number) for number in range(4)]
        try:
            for worker in workers:
                worker.result()
        finally:
            over.set()
        for one in besides:
            one.result()
    assert looks
    assert [found for found in looks if found != ([], [])] == []
    while recover.fold_stats(fabric.db).detail["folded"]:
        pass
    fabric.assert_in_order()


def test_readers_fold_when_no_scheduler_does(fabric: Fabric, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counts, "UNFOLDED", 10)
    for _ in range(12):
        fabric.submit_one()
    assert inspect.list_jobs(fabric.db, DEFAULT_TENANT, JobFilter(), 1, 0)[1] == 12
    assert fabric.value("SELECT count(*) FROM job_count_delta") == 0
    assert inspect.stats(fabric.db, None).by_state[JobState.PENDING] == 12
    assert inspect.list_jobs(fabric.db, DEFAULT_TENANT, JobFilter(type="test"), 1, 0)[1] == 12
    assert fabric.value("SELECT sum(n) FROM job_total") == 12


def test_types_that_no_job_has_leave_no_counts_behind(fabric: Fabric) -> None:
    sent = fabric.submit(*[job(type=f"t{n}") for n in range(5)])
    recover.fold_stats(fabric.db)
    stop.cancel_many(fabric.db, DEFAULT_TENANT, sent, by="test")
    fabric.sql("DELETE FROM job WHERE type <> 't1'")
    recover.fold_stats(fabric.db)
    assert recover.retain(fabric.db, fabric.settings).detail["counts"] == 9
    assert [row.type for row in fabric.all("SELECT type FROM job_count")] == ["t1"]
    fabric.assert_in_order()
