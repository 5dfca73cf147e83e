"""The watch: wakes whom it concerns, whatever becomes of hints and servers, with few statements for many readers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import event

from app.bells import Ringer
from app.domain.job import Assignment
from app.local.ports import free_port
from app.local.valkey import ValkeyServer
from app.services import hints, logs, report
from app.services import watch as watching
from app.services.report import Chunk
from app.services.watch import Subscription, Watch
from app.storage.database import Database
from tests.factories import Fabric, job, raw, until

LONG_S = 20.0


def write(fabric: Fabric, taken: Assignment, position: int = 0) -> int:
    """Stores a little output at `position`; the position behind it."""
    framed = logs.frame(logs.STDOUT, 1.0, b"hello\n")
    report.append_output(fabric.db, [Chunk(taken.attempt_id, taken.log_day, position, len(framed), logs.PLAIN, framed)])
    return position + len(framed)


def settle(watch: Watch, *readers: Subscription) -> None:
    """Lets the first look pass, which wakes everybody once."""
    for reader in readers:
        assert reader.wait(LONG_S)
    seen = watch.looks
    until(lambda: watch.looks > seen)


class TestJobs:
    def test_output_wakes_the_readers_of_that_job_only(self, fabric: Fabric, watch: Watch) -> None:
        fabric.submit(), fabric.submit()
        node = fabric.add_node()
        mine, other = fabric.run(node), fabric.run(node)
        with watch.job(mine.job_id) as one, watch.job(mine.job_id) as two, watch.job(other.job_id) as stranger:
            settle(watch, one, two, stranger)
            write(fabric, mine)
            assert one.wait(LONG_S)
            assert two.wait(LONG_S)
            assert one.version == two.version
            seen = watch.looks
            until(lambda: watch.looks > seen + 1)
            assert not stranger.wait(0)

    def test_each_step_of_a_job_wakes(self, fabric: Fabric, watch: Watch) -> None:
        job_id = fabric.submit_one()
        node = fabric.add_node()
        with watch.job(job_id) as reader:
            settle(watch, reader)
            taken = fabric.claim_one(node)
            assert reader.wait(LONG_S)
            fabric.start(taken)
            assert reader.wait(LONG_S)
            end = write(fabric, taken)
            assert reader.wait(LONG_S)
            write(fabric, taken, end)
            assert reader.wait(LONG_S)
            fabric.finish(taken)
            assert reader.wait(LONG_S)

    def test_a_job_that_is_gone_wakes(self, fabric: Fabric, watch: Watch) -> None:
        job_id = fabric.submit_one()
        with watch.job(job_id) as reader:
            settle(watch, reader)
            fabric.sql("DELETE FROM job WHERE id = %s", job_id)
            assert reader.wait(LONG_S)

    def test_what_came_between_reading_and_waiting_is_not_slept_through(self, fabric: Fabric, watch: Watch) -> None:
        fabric.submit()
        taken = fabric.run(fabric.add_node())
        with watch.job(taken.job_id) as early:
            settle(watch, early)
            with watch.job(taken.job_id) as late:
                write(fabric, taken)
                assert early.wait(LONG_S)
                assert late.wait(LONG_S)

    def test_three_hundred_readers_cost_one_statement_a_look(self, fabric: Fabric, watch: Watch) -> None:
        jobs = fabric.submit(*[job() for _ in range(30)])
        with ExitStack() as stack:
            readers = [stack.enter_context(watch.job(jobs[n % 30])) for n in range(300)]
            assert watch.readers == 300
            # Who came after the first look at its job is not woken by it.
            assert readers[0].wait(LONG_S)
            looked = watch.looks
            with counted(fabric.db) as statements:
                until(lambda: watch.looks >= looked + 4)
            assert len(statements) <= watch.looks - looked + 1
        assert watch.readers == 0

    def test_nobody_follows_nobody_looks(self, fabric: Fabric, watch: Watch) -> None:
        with watch.job(fabric.submit_one()) as reader:
            assert reader.wait(LONG_S)
        seen, closing = watch.looks, Event()
        busy = Watch(fabric.db, "", closing)
        with busy.job(fabric.submit_one()):
            until(lambda: busy.looks > 4)
        assert watch.looks <= seen + 1
        closing.set()

    def test_closing_wakes_everybody(self, fabric: Fabric) -> None:
        closing = Event()
        watch = Watch(fabric.db, "", closing)
        with watch.job(fabric.submit_one()) as reader, watch.events(None) as other:
            settle(watch, reader)
            other.wait(0)
            closing.set()
            assert reader.wait(LONG_S)
            assert other.wait(LONG_S)


class TestEvents:
    def test_wake_their_tenant_and_who_reads_all(self, fabric: Fabric, watch: Watch) -> None:
        mine, other = fabric.add_tenant(), fabric.add_tenant()
        with watch.events(mine) as reader, watch.events(other) as stranger, watch.events(None) as everyone:
            looked = watch.looks
            until(lambda: watch.looks > looked + 1)
            fabric.submit_one(tenant=mine)
            assert reader.wait(LONG_S)
            assert everyone.wait(LONG_S)
            looked = watch.looks
            until(lambda: watch.looks > looked + 1)
            assert not stranger.wait(0)

    def test_are_told_when_they_can_be_read_not_when_they_are_written(self, fabric: Fabric, watch: Watch) -> None:
        first = fabric.add_tenant()
        with raw(fabric.settings.database_url) as connection, watch.events(first) as reader:
            looked = watch.looks
            until(lambda: watch.looks > looked + 1)
            reader.wait(0)
            with connection.cursor() as cursor:
                cursor.execute("UPDATE tenant SET email = 'x' WHERE id = %s", (str(fabric.add_tenant()),))
                fabric.submit_one(tenant=first)
                looked = watch.looks
                until(lambda: watch.looks > looked + 1)
                assert not reader.wait(0), "an older transaction may still add an event before this one"
                connection.commit()
            assert reader.wait(LONG_S)


class TestHints:
    def test_hurry_the_next_look(self, fabric: Fabric, broker_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("LOOK_S", "HINTED_LOOK_S", "IDLE_LOOK_S"):
            monkeypatch.setattr(watching, name, 3600.0)
        closing = Event()
        watch = Watch(fabric.db, broker_url, closing)
        ringer = Ringer(replace(fabric.settings, broker_url=broker_url))
        fabric.submit()
        taken = fabric.run(fabric.add_node())
        try:
            with watch.job(taken.job_id) as reader:
                until(lambda: watch._hearing)
                until(lambda: watch.looks > 0 and not watch._look_now)
                reader.wait(0)
                write(fabric, taken)
                ringer.hint([uuid4(), taken.job_id], False)
                assert reader.wait(LONG_S)
        finally:
            closing.set()
            ringer.close()

    def test_nonsense_is_skipped(self) -> None:
        for data in (b"", b"x", b"[]", b'{"jobs": 3, "state": true}', b'{"jobs": ["x"], "state": 1}', b"\xff", b"null"):
            with pytest.raises(ValueError):
                hints.decode(data)
        job_id = uuid4()
        assert hints.decode(hints.encode([job_id], True).encode()) == ({job_id}, True)


class TestOutages:
    def test_of_the_broker_cost_latency_only(self, fabric: Fabric, tmp_path: Path) -> None:
        port = free_port()
        broker = ValkeyServer(tmp_path / "valkey", port, "secret")
        broker.create()
        broker.start()
        closing = Event()
        watch = Watch(fabric.db, broker.url, closing)
        fabric.submit()
        taken = fabric.run(fabric.add_node())
        try:
            with watch.job(taken.job_id) as reader:
                until(lambda: watch._hearing)
                broker.stop()
                until(lambda: not watch._hearing)
                reader.wait(0)
                end = write(fabric, taken)
                assert reader.wait(LONG_S)
                broker.start()
                until(lambda: watch._hearing)
                write(fabric, taken, end)
                assert reader.wait(LONG_S)
        finally:
            closing.set()
            broker.stop()

    def test_of_the_database_are_waited_for(self, fabric: Fabric) -> None:
        away = Database(fabric.settings.database_url, pool_size=1)
        closing = Event()
        watch = Watch(away, "", closing)
        fabric.submit()
        taken = fabric.run(fabric.add_node())
        with watch.job(taken.job_id) as reader:
            settle(watch, reader)
            with away.engine.connect():  # The only connection: every look fails meanwhile.
                write(fabric, taken)
                until(lambda: watch.looks > 0)
            assert reader.wait(LONG_S)
        closing.set()
        away.close()


@contextmanager
def counted(db: Database) -> Iterator[list[str]]:
    """The statements that go through `db` meanwhile."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        seen.append(statement)

    event.listen(db.engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(db.engine, "before_cursor_execute", note)


def test_who_comes_after_all_have_left_shares_nothing_with_them(fabric: Fabric, watch: Watch) -> None:
    seen = set()
    for _ in range(3):
        with watch.events(None) as one:
            seen.add(one.version)
    assert len(seen) == 3
