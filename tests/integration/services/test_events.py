"""The event feed: every event once, in the order of each job, however transactions commit; nothing lost in silence."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Barrier, Event
from typing import Any
from uuid import UUID

import pytest

from app.domain.errors import Invalid, NotFound
from app.domain.job import DEFAULT_TENANT
from app.domain.policy import Ending
from app.domain.states import JobState, StopCause
from app.services import events, recover, stop
from app.services.events import START, Cursor, Page, parse_cursor
from app.storage import upkeep
from tests.factories import FOREGROUND, Fabric, Node, in_thread, job, make_fabric, raw, until
from tests.servers import TestServers


def everything(fabric: Fabric, tenant: UUID | None = None, cursor: Cursor = START, **wanted: Any) -> list[events.Event]:
    """All events from `cursor` on, page by page."""
    found: list[events.Event] = []
    while True:
        page = events.after(fabric.db, tenant, cursor, **wanted)
        found += page.events
        assert page.next != cursor or not page.more
        cursor = page.next
        if not page.more:
            return found


def story(found: Sequence[events.Event]) -> list[tuple[str | None, str]]:
    return [(None if e.was is None else e.was.word, e.state.word) for e in found]


def words(found: Sequence[events.Event]) -> list[str]:
    return [e.state.word for e in found]


class TestTheFeed:
    def test_tells_a_jobs_life(self, fabric: Fabric, node: Node) -> None:
        job_id = fabric.submit_one(priority_class=FOREGROUND, max_retries=1, backoff_s=60.0, type="train")
        fabric.finish(fabric.run(node), Ending(exit_code=1))
        fabric.due()
        recover.promote(fabric.db)
        taken = fabric.run(node)
        stop.request_stop(fabric.db, DEFAULT_TENANT, job_id, by="someone", reason=None)
        fabric.finish(taken, Ending(signal=15, stopped=True))
        found = everything(fabric, DEFAULT_TENANT)
        assert story(found) == [
            (None, "pending"), ("pending", "starting"), ("starting", "running"), ("running", "pending"),
            ("pending", "pending"), ("pending", "starting"), ("starting", "running"), ("running", "stopping"),
            ("stopping", "cancelled"),
        ]  # fmt: skip
        assert {(e.job_id, e.type, e.contract, e.tenant_id) for e in found} == {
            (job_id, "train", "jobs", DEFAULT_TENANT)
        }
        assert [e.reason for e in found][:5] == ["new", None, None, "backoff", "backoff"]
        assert [e.ready for e in found][:5] == [True, False, False, False, True]
        assert [e.attempt for e in found] == [0, 1, 1, 1, 1, 2, 2, 2, 2]
        assert {e.node_id for e in found if e.state in {JobState.STARTING, JobState.RUNNING}} == {node.id}
        assert found[-2].stop_cause == StopCause.CANCEL
        assert all(abs(e.at - datetime.now(UTC)) < timedelta(minutes=1) for e in found)

    def test_goes_on_from_any_cursor(self, fabric: Fabric) -> None:
        sent = fabric.submit(*[job() for _ in range(7)])
        page = events.after(fabric.db, DEFAULT_TENANT, START, limit=3)
        assert ([e.job_id for e in page.events], page.more, page.gap) == (sent[:3], True, False)
        assert page.next == page.events[-1].cursor
        rest = events.after(fabric.db, DEFAULT_TENANT, page.next, limit=4)
        assert ([e.job_id for e in rest.events], rest.more) == (sent[3:], False)
        again = events.after(fabric.db, DEFAULT_TENANT, page.events[0].cursor, limit=1)
        assert [e.job_id for e in again.events] == [sent[1]]
        assert events.after(fabric.db, DEFAULT_TENANT, rest.next) == Page([], rest.next)

    def test_from_now_on_only_what_comes_is_told(self, fabric: Fabric) -> None:
        before = events.now(fabric.db)
        first = fabric.submit_one()
        cursor = events.now(fabric.db)
        assert [e.job_id for e in everything(fabric, cursor=before)] == [first]
        assert everything(fabric, cursor=cursor) == []
        second = fabric.submit_one()
        assert [e.job_id for e in everything(fabric, cursor=cursor)] == [second]

    def test_a_tenant_sees_its_own_and_its_cursor_keeps_up_with_the_others(self, fabric: Fabric) -> None:
        other = fabric.add_tenant()
        mine = fabric.submit_one()
        theirs = [fabric.submit_one(tenant=other) for _ in range(5)]
        page = events.after(fabric.db, DEFAULT_TENANT, START)
        assert [e.job_id for e in page.events] == [mine]
        assert [e.job_id for e in everything(fabric, other)] == theirs
        assert [e.job_id for e in everything(fabric, None)] == [mine, *theirs]
        assert page.next == everything(fabric, None)[-1].cursor

    def test_of_one_job_or_one_type(self, fabric: Fabric, node: Node) -> None:
        sent = fabric.submit(*[job(type="ab"[n % 2]) for n in range(6)])
        fabric.finish(fabric.run(node))
        assert words(everything(fabric, DEFAULT_TENANT, job_id=sent[0])) == [
            "pending", "starting", "running", "completed",
        ]  # fmt: skip
        assert everything(fabric, fabric.add_tenant(), job_id=sent[0]) == []
        assert [e.job_id for e in everything(fabric, DEFAULT_TENANT, type="b")] == sent[1::2]
        few = events.after(fabric.db, DEFAULT_TENANT, START, limit=2, type="b")
        assert ([e.job_id for e in few.events], few.more) == ([sent[1], sent[3]], True)

    def test_a_rare_type_costs_no_long_scan(self, fabric: Fabric, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(events, "SCAN", 10)
        fabric.submit(*[job(type="common") for _ in range(35)])
        rare = fabric.submit_one(type="rare")
        page = events.after(fabric.db, DEFAULT_TENANT, START, limit=5, type="rare")
        assert (list(page.events), page.more) == ([], True)
        assert [e.job_id for e in everything(fabric, DEFAULT_TENANT, type="rare", limit=5)] == [rare]

    def test_a_job_that_is_gone_keeps_its_events(self, fabric: Fabric, node: Node) -> None:
        fabric.submit_one()
        fabric.finish(fabric.run(node))
        fabric.sql("DELETE FROM job")
        found = everything(fabric, DEFAULT_TENANT)
        assert words(found) == ["pending", "starting", "running", "completed"]
        assert {e.type for e in found} == {None}


class TestCursors:
    @pytest.mark.parametrize("cursor", [START, Cursor(5, 7, datetime(2026, 11, 21, tzinfo=UTC).date())])
    def test_are_read_as_they_were_written(self, cursor: Cursor) -> None:
        assert parse_cursor(str(cursor)) == cursor

    @pytest.mark.parametrize(
        "text", ["", "now", "1", "1.2", "1.2.20261332", "-1.2.20261121", "1.2.2026112", "9" * 40, f"{2**63}.1.20261121"]
    )
    def test_of_any_other_text_are_refused(self, text: str) -> None:
        with pytest.raises(Invalid, match="is no cursor"):
            parse_cursor(text)

    def test_of_another_server_count_as_the_beginning_with_a_gap(self, fabric: Fabric) -> None:
        job_id = fabric.submit_one()
        beyond = Cursor(2**62, 5, datetime.now(UTC).date())
        page = events.after(fabric.db, DEFAULT_TENANT, beyond)
        assert ([e.job_id for e in page.events], page.gap) == ([job_id], True)


class TestRetention:
    def _history(self, fabric: Fabric, days: Sequence[int]) -> list[UUID]:
        """One job each, whose events happened so many days ago."""
        sent = []
        for ago in days:
            sent.append(fabric.submit_one())
            if ago > 1:
                name = f"event_{datetime.now(UTC) - timedelta(days=ago):%Y%m%d}"
                fabric.sql(
                    f"""CREATE TABLE IF NOT EXISTS {name} PARTITION OF event
                    FOR VALUES FROM (CURRENT_DATE - {ago}) TO (CURRENT_DATE - {ago} + 1)"""
                )
            fabric.sql(
                "UPDATE event SET day = day - %s, at = at - make_interval(days => %s) WHERE job_id = %s",
                ago, ago, sent[-1],
            )  # fmt: skip
        return sent

    def _drop(self, fabric: Fabric, days: int) -> None:
        with fabric.db.transaction() as tx:
            upkeep.drop_partitions(tx, days)

    def test_a_cursor_older_than_what_is_kept_says_so_and_goes_on(self, new_fabric: Fabric) -> None:
        sent = self._history(new_fabric, [9, 8, 8, 2, 0])
        found = everything(new_fabric)
        assert [e.job_id for e in found] == sent
        self._drop(new_fabric, 5)
        gone = events.after(new_fabric.db, None, found[1].cursor)
        assert ([e.job_id for e in gone.events], gone.gap) == (sent[3:], True)
        whole = events.after(new_fabric.db, None, found[2].cursor)
        assert ([e.job_id for e in whole.events], whole.gap) == (sent[3:], False)
        beginning = events.after(new_fabric.db, None, START)
        assert ([e.job_id for e in beginning.events], beginning.gap) == (sent[3:], False)

    def test_rows_of_a_day_without_a_partition_are_counted_too(self, new_fabric: Fabric) -> None:
        sent = [new_fabric.submit_one(), new_fabric.submit_one(), new_fabric.submit_one()]
        new_fabric.sql(
            """UPDATE event SET day = day - 40, at = at - interval '40 days' WHERE job_id = ANY(%s::uuid[])""",
            [str(one) for one in sent[:2]],
        )
        found = everything(new_fabric)
        self._drop(new_fabric, 5)
        assert events.after(new_fabric.db, None, found[0].cursor).gap
        assert not events.after(new_fabric.db, None, found[1].cursor).gap

    def test_a_reader_looks_at_no_day_long_before_its_cursor(self, new_fabric: Fabric) -> None:
        self._history(new_fabric, [9, 8, 0])
        cursor = everything(new_fabric)[-1].cursor
        with new_fabric.db.transaction() as tx:
            rows = tx.rows(
                "EXPLAIN SELECT 1 FROM event WHERE (xid, id) > ('0', 0) AND day >= %(d)s", {"d": cursor.since}
            )
        plan = "\n".join(row[0] for row in rows)
        assert f"event_{datetime.now(UTC):%Y%m%d}" in plan
        assert f"event_{datetime.now(UTC) - timedelta(days=8):%Y%m%d}" not in plan

    def test_nobody_writes_into_days_that_readers_have_passed(self, fabric: Fabric) -> None:
        job_id = fabric.submit_one()
        with pytest.raises(Exception, match="ck_event_fresh"):
            fabric.sql(
                """INSERT INTO event (day, tenant_id, job_id, attempt, state, ready)
                VALUES (CURRENT_DATE - 3, %s, %s, 0, 0, true)""",
                str(DEFAULT_TENANT), str(job_id),
            )  # fmt: skip


class TestCommitOrder:
    def test_what_began_early_and_commits_late_is_not_missed(self, fabric: Fabric, database_url: str) -> None:
        early, late = fabric.submit_one(), fabric.submit_one()
        cursor = events.now(fabric.db)
        with raw(database_url) as slow, slow.cursor() as sql:
            sql.execute("UPDATE job SET reason = 'hold' WHERE id = %s", (str(early),))
            fabric.sql("UPDATE job SET reason = 'lost' WHERE id = %s", str(late))
            held = events.after(fabric.db, None, cursor)
            assert (list(held.events), held.more) == ([], False)
            assert held.held_s > 0
            slow.commit()
        found = everything(fabric, cursor=held.next)
        assert sorted((e.job_id, e.reason) for e in found) == sorted([(early, "hold"), (late, "lost")])
        assert events.after(fabric.db, None, held.next).held_s == 0

    def test_changes_of_one_job_keep_their_order_even_when_the_later_began_first(
        self, fabric: Fabric, database_url: str
    ) -> None:
        job_id = fabric.submit_one()
        change = "UPDATE job SET reason = %s WHERE id = %s"
        with raw(database_url) as first, first.cursor() as began_first, raw(database_url) as second:
            began_first.execute("SELECT pg_current_xact_id()")
            with second.cursor() as began_second:
                began_second.execute(change, ("hold", str(job_id)))

            def wait_and_change() -> None:
                began_first.execute(change, ("lost", str(job_id)))
                first.commit()

            with in_thread(wait_and_change) as waiting:
                until(fabric.blocked)
                second.commit()
                waiting.result()
        assert [e.reason for e in everything(fabric)] == ["new", "hold", "lost"]

    def test_an_idle_writer_holds_the_feed_and_an_operator_is_told(self, fabric: Fabric, database_url: str) -> None:
        with raw(database_url) as idle, idle.cursor() as sql:
            sql.execute("SELECT pg_current_xact_id()")
            job_id = fabric.submit_one()
            assert events.after(fabric.db, None, START).events == []
            assert recover.audit(fabric.db).detail["alerts"] == []
            fabric.sql("UPDATE event SET at = at - interval '5 minutes'")
            (alert,) = recover.audit(fabric.db).detail["alerts"]
            assert "held back for 300 s by pid" in alert
            assert events.after(fabric.db, None, START).held_s > 299
            assert [e.job_id for e in events.of_job(fabric.db, DEFAULT_TENANT, job_id)] == [job_id]
            idle.rollback()
        assert [e.job_id for e in everything(fabric)] == [job_id]

    def test_a_reader_that_holds_a_snapshot_holds_nothing_back(self, fabric: Fabric, database_url: str) -> None:
        with raw(database_url) as backup, backup.cursor() as sql:
            sql.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            sql.execute("SELECT count(*) FROM job")
            job_id = fabric.submit_one()
            assert [e.job_id for e in everything(fabric)] == [job_id]

    @pytest.mark.parametrize("seed", range(3))
    def test_a_follower_sees_every_event_once_whatever_the_writers_do(
        self, fabric: Fabric, database_url: str, seed: int
    ) -> None:
        """Eight writers change the same jobs in transactions of random length and end, one all the while."""
        tenants = [DEFAULT_TENANT, fabric.add_tenant()]
        jobs_of = {t: fabric.submit(*[job() for _ in range(4)], tenant=t) for t in tenants}
        jobs = sorted(one for some in jobs_of.values() for one in some)
        done, begun = Event(), Barrier(9)

        def write(number: int) -> None:
            luck = random.Random(seed * 100 + number)
            with raw(database_url) as connection, connection.cursor() as sql:
                begun.wait()
                for turn in range(25):
                    if luck.random() < 0.5:
                        sql.execute("SELECT pg_current_xact_id()")
                    for one in sorted(luck.sample(jobs, luck.randint(1, 3))):
                        sql.execute("UPDATE job SET reason = %s WHERE id = %s", (f"{number}.{turn}", str(one)))
                        if luck.random() < 0.2:
                            sql.execute("SAVEPOINT s; UPDATE job SET message = 'x' WHERE id = %s", (str(one),))
                            sql.execute("ROLLBACK TO s")
                    connection.rollback() if luck.random() < 0.2 else connection.commit()

        def long_write() -> None:
            extra = fabric.submit_one()
            with raw(database_url) as connection, connection.cursor() as sql:
                sql.execute("UPDATE job SET reason = 'long' WHERE id = %s", (str(extra),))
                begun.wait()
                done.wait()
                connection.commit()

        def follow(tenant: UUID | None) -> list[events.Event]:
            luck, found, cursor = random.Random(seed), list[events.Event](), START
            while True:
                last = done.is_set() and not writing()
                page = events.after(fabric.db, tenant, cursor, limit=luck.randint(1, 20))
                found += page.events
                cursor = parse_cursor(str(page.next))
                if last and not page.more:
                    return found

        with ThreadPoolExecutor(12) as pool:
            followers = {tenant: pool.submit(follow, tenant) for tenant in (None, *tenants)}
            writers = [pool.submit(write, number) for number in range(8)]
            long_one = pool.submit(long_write)

            def writing() -> bool:
                return not (long_one.done() and all(w.done() for w in writers))

            for writer in writers:
                writer.result()
            done.set()
            long_one.result()
            seen = {tenant: following.result() for tenant, following in followers.items()}

        rows = fabric.all("SELECT id, job_id, tenant_id FROM event ORDER BY id")
        for tenant, found in seen.items():
            expected = [row for row in rows if tenant in (None, row.tenant_id)]
            assert sorted(e.cursor.id for e in found) == [row.id for row in expected]
            for one in {row.job_id for row in expected}:
                assert [e.cursor.id for e in found if e.job_id == one] == [r.id for r in expected if r.job_id == one]


class TestOneJob:
    def test_has_its_history(self, fabric: Fabric, node: Node) -> None:
        job_id = fabric.submit_one()
        fabric.submit_one()
        fabric.finish(fabric.run(node))
        found = events.of_job(fabric.db, DEFAULT_TENANT, job_id)
        assert words(found) == ["pending", "starting", "running", "completed"]
        assert words(events.of_job(fabric.db, DEFAULT_TENANT, job_id, limit=2)) == ["running", "completed"]
        first = events.of_job_after(fabric.db, DEFAULT_TENANT, job_id, START, limit=3)
        assert (words(first.events), first.more) == (["pending", "starting", "running"], True)
        rest = events.of_job_after(fabric.db, DEFAULT_TENANT, job_id, first.next)
        assert (words(rest.events), rest.more) == (["completed"], False)
        assert events.of_job_after(fabric.db, DEFAULT_TENANT, job_id, rest.next) == Page([], rest.next)

    def test_of_another_tenant_is_not_found(self, fabric: Fabric) -> None:
        job_id, other = fabric.submit_one(), fabric.add_tenant()
        with pytest.raises(NotFound):
            events.of_job(fabric.db, other, job_id)
        with pytest.raises(NotFound):
            events.of_job_after(fabric.db, other, job_id, START)


def test_the_feed_goes_on_across_a_restart_of_the_database() -> None:
    own = TestServers()
    try:
        fabric = make_fabric(own.database())
        first = fabric.submit_one()
        page = events.after(fabric.db, None, START)
        own.postgres.stop()
        own.postgres.start()
        fabric.db.close()
        second = fabric.submit_one()
        assert [e.job_id for e in page.events] == [first]
        assert [e.job_id for e in everything(fabric, cursor=page.next)] == [second]
        assert not events.after(fabric.db, None, page.next).gap
        fabric.db.close()
    finally:
        own.close()
