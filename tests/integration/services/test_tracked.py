"""Tracked and observed jobs: exact counts, races between reporters, what retention takes, other tenants."""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

import pytest

from app.domain.errors import FabricError, Invalid, NotFound, StateConflict
from app.domain.job import DEFAULT_TENANT, Assignment
from app.domain.states import JobState
from app.services import observed, recover, stop, tracked
from app.services.observed import JobFilter, ObservedJob, Usage
from app.services.tracked import NewTracked
from app.storage import tracked as stored
from tests.factories import Fabric, Node, at_once, in_thread, job, until

COUNTED = """SELECT kind, state, owner, sum(n) AS n FROM (
    SELECT kind, state, owner, n FROM observed_count UNION ALL SELECT kind, state, owner, n FROM observed_count_delta) c
    WHERE kind = 'tracked' GROUP BY 1, 2, 3 HAVING sum(n) <> 0 ORDER BY 2, 3"""
HELD = "SELECT 'tracked' AS kind, state, owner, count(*) AS n FROM tracked_job GROUP BY 1, 2, 3 ORDER BY 2, 3"


def create(fabric: Fabric, client_id: str, tenant: UUID = DEFAULT_TENANT, owner: str = "alice") -> ObservedJob:
    return tracked.create(fabric.db, tenant, NewTracked(client_id, owner, ("n1",)))


def change(fabric: Fabric, client_id: str, state: JobState | None = None, **usage: float) -> ObservedJob:
    return tracked.change(fabric.db, DEFAULT_TENANT, client_id, state, usage, {})


def outcome(work: Any) -> str:
    try:
        work()
    except FabricError as exc:
        return type(exc).__name__
    return "done"


def in_order(fabric: Fabric) -> None:
    assert [tuple(row) for row in fabric.all(COUNTED)] == [tuple(row) for row in fabric.all(HELD)]
    fabric.assert_in_order()


class TestCounts:
    def test_are_exact_through_a_life_and_through_folding(self, fabric: Fabric) -> None:
        for number in range(6):
            create(fabric, f"j{number}", owner=f"user{number % 2}")
            in_order(fabric)
        for number, state in enumerate((JobState.FAILED, JobState.COMPLETED, JobState.PENDING)):
            change(fabric, f"j{number}", state)
            change(fabric, f"j{number}", state, cpu_percent=5)
            in_order(fabric)
        assert fabric.value("SELECT count(*) FROM observed_count_delta") == 6 * 2 + 3 * 2
        recover.fold_stats(fabric.db)
        in_order(fabric)
        assert fabric.value("SELECT count(*) FROM observed_count_delta") == 0
        for number in range(6):
            tracked.remove(fabric.db, DEFAULT_TENANT, f"j{number}")
        recover.fold_stats(fabric.db)
        in_order(fabric)
        assert [tuple(row) for row in fabric.all("SELECT kind, n FROM observed_count")] == [("created", 6)]

    def test_two_folds_at_once_count_once(self, fabric: Fabric) -> None:
        for number in range(20):
            create(fabric, f"j{number}")
        at_once(4, lambda _: recover.fold_stats(fabric.db, 7))
        in_order(fabric)

    def test_a_list_of_many_agrees_with_its_total_under_every_filter(self, fabric: Fabric, node: Node) -> None:
        for number in range(3):
            create(fabric, f"t{number}")
            taken = fabric.run(node) if fabric.submit_one() else None
            assert taken is not None
            if number == 1:
                fabric.finish(taken)
            if number == 2:
                observed.hide(fabric.db, DEFAULT_TENANT, taken.job_id, "test")
        for state in (None, *JobState):
            for user in (None, "alice", "default", "nobody"):
                for node_name in (None, "n1", node.id, "none"):
                    wanted = JobFilter(None if state is None else frozenset({state}), user, node_name)
                    found, total = observed.list_jobs(fabric.db, DEFAULT_TENANT, wanted, 100, 0)
                    assert len(found) == total, wanted

    def test_jobs_hidden_while_they_end_are_settled_later(self, fabric: Fabric, node: Node) -> None:
        taken = [fabric.run(node) for _ in fabric.submit(job(), job())]
        for one in taken:
            observed.hide(fabric.db, DEFAULT_TENANT, one.job_id, "test")
        for one in taken:
            fabric.finish(one)
        states = [row.state for row in fabric.all("SELECT state FROM observed_hidden ORDER BY state")]
        assert states == [JobState.STOPPING, JobState.STOPPING]
        last = fabric.submit_one()
        observed.hide(fabric.db, DEFAULT_TENANT, last, "test")
        states = [row.state for row in fabric.all("SELECT state FROM observed_hidden")]
        assert states == [JobState.CANCELLED] * 3
        assert observed.list_jobs(fabric.db, DEFAULT_TENANT, JobFilter(), 10, 0) == ([], 0)
        fabric.sql("DELETE FROM job")
        assert observed.list_jobs(fabric.db, DEFAULT_TENANT, JobFilter(), 10, 0) == ([], 0)


class TestRaces:
    def test_of_many_creates_of_one_id_one_wins(self, fabric: Fabric) -> None:
        results = at_once(8, lambda _: outcome(lambda: create(fabric, "same")))
        assert sorted(results) == ["StateConflict"] * 7 + ["done"]
        in_order(fabric)

    def test_of_many_deletes_one_wins(self, fabric: Fabric, node: Node) -> None:
        create(fabric, "same")
        assert sorted(at_once(8, lambda _: tracked.remove(fabric.db, DEFAULT_TENANT, "same"))) == [False] * 7 + [True]
        fabric.submit_one()
        running = fabric.run(node).job_id
        hide = lambda _: outcome(lambda: observed.hide(fabric.db, DEFAULT_TENANT, running, "test"))  # noqa: E731
        assert sorted(at_once(8, hide)) == ["NotFound"] * 7 + ["done"]
        in_order(fabric)

    def test_a_change_that_waits_for_a_delete_finds_nothing(self, fabric: Fabric) -> None:
        create(fabric, "gone")
        with fabric.db.transaction() as tx:
            stored.delete(tx, DEFAULT_TENANT, "gone")
            with in_thread(lambda: outcome(lambda: change(fabric, "gone", JobState.FAILED))) as changed:
                until(fabric.blocked)
                tx.run("COMMIT")
                assert changed.result() == "NotFound"
        in_order(fabric)

    def test_changes_samples_deletes_and_creates_at_once_leave_order(self, fabric: Fabric) -> None:
        create(fabric, "busy")

        def act(number: int) -> set[str]:
            steps = (
                lambda: change(fabric, "busy", JobState.FAILED, cpu_percent=number),
                lambda: tracked.record(fabric.db, DEFAULT_TENANT, "busy", Usage(1, 2)),
                lambda: tracked.remove(fabric.db, DEFAULT_TENANT, "busy"),
                lambda: create(fabric, "busy"),
            )
            return {outcome(steps[(number + turn) % 4]) for turn in range(40)}

        seen: set[str] = set().union(*at_once(8, act))
        assert seen <= {"done", "NotFound", "StateConflict"}
        in_order(fabric)

    def test_a_stop_and_a_hide_at_once_both_end_well(self, fabric: Fabric, node: Node) -> None:
        for _ in range(5):
            fabric.submit_one()
            results = self._end_at_once(fabric, fabric.run(node))
            assert results[0] == "done"
            assert set(results) <= {"done", "NotFound", "StateConflict", "Invalid"}
        assert observed.list_jobs(fabric.db, DEFAULT_TENANT, JobFilter(), 10, 0)[1] == 0
        fabric.assert_in_order()

    def _end_at_once(self, fabric: Fabric, taken: Assignment) -> list[str]:
        acts = (
            lambda: observed.hide(fabric.db, DEFAULT_TENANT, taken.job_id, "test"),
            lambda: observed.cancel(fabric.db, DEFAULT_TENANT, taken.job_id, "test"),
            lambda: stop.request_stop(fabric.db, DEFAULT_TENANT, taken.job_id, "test"),
            lambda: fabric.finish(taken),
        )
        return at_once(4, lambda number: outcome(acts[number]))


class TestTenants:
    def test_each_has_ids_jobs_and_counts_of_its_own(self, fabric: Fabric) -> None:
        other = fabric.add_tenant("other")
        mine, theirs = create(fabric, "same"), create(fabric, "same", other)
        assert observed.get(fabric.db, other, "same").id == theirs.id
        with pytest.raises(NotFound):
            observed.get(fabric.db, DEFAULT_TENANT, theirs.id)
        with pytest.raises(NotFound):
            tracked.record(fabric.db, DEFAULT_TENANT, theirs.id, Usage(1, 1))
        assert not tracked.remove(fabric.db, DEFAULT_TENANT, theirs.id)
        assert tracked.remove(fabric.db, DEFAULT_TENANT, mine.id)
        assert observed.list_jobs(fabric.db, other, JobFilter(), 10, 0)[1] == 1
        assert observed.list_jobs(fabric.db, DEFAULT_TENANT, JobFilter(), 10, 0)[1] == 0


class TestTimes:
    def test_a_pending_jobs_clock_begins_when_it_starts_and_stops_at_its_first_end(self, fabric: Fabric) -> None:
        begun = create(fabric, "a")
        waiting = change(fabric, "a", JobState.PENDING)
        assert waiting.start_time == begun.start_time
        started = change(fabric, "a", JobState.RUNNING)
        assert started.start_time is not None
        assert begun.start_time is not None
        assert started.start_time > begun.start_time
        fabric.sql("UPDATE tracked_job SET started_at = started_at - interval '100 seconds'")
        ended = change(fabric, "a", JobState.COMPLETED)
        hour = "interval '1 hour'"
        fabric.sql(f"UPDATE tracked_job SET started_at = started_at - {hour}, ended_at = ended_at - {hour}")
        later = change(fabric, "a", JobState.FAILED)
        assert later.runtime_s == pytest.approx(ended.runtime_s)
        assert 100 <= later.runtime_s < 200
        again = change(fabric, "a", JobState.RUNNING)
        assert again.end_time is None
        assert again.runtime_s > 3600


class TestRetention:
    def test_takes_old_samples_and_jobs_that_ended_long_ago_and_no_others(
        self, fabric: Fabric, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hundred_days_ago = time.time_ns() - 100 * 86_400 * 10**9
        for name in ("old", "ended", "running"):
            with monkeypatch.context() as then:
                then.setattr("app.services.tracked.time.time_ns", lambda: hundred_days_ago)
                create(fabric, name)
            tracked.record(fabric.db, DEFAULT_TENANT, name, Usage(1, 1))
        for name in ("old", "ended"):
            change(fabric, name, JobState.COMPLETED)
        fabric.sql("UPDATE tracked_job SET ended_at = now() - interval '91 days' WHERE client_id = 'old'")
        fabric.sql("UPDATE tracked_job SET ended_at = now() - interval '89 days' WHERE client_id = 'ended'")
        fabric.sql("UPDATE tracked_job SET started_at = now() - interval '91 days' WHERE client_id = 'running'")
        tracked.record(fabric.db, DEFAULT_TENANT, "running", Usage(2, 2))
        fabric.sql("UPDATE tracked_sample SET at = now() - interval '15 days' WHERE cpu_percent = 1")
        recover.retain(fabric.db, fabric.settings)
        recover.forget_jobs(fabric.db, fabric.settings)
        names = [row[0] for row in fabric.all("SELECT client_id FROM tracked_job ORDER BY 1")]
        assert names == ["ended", "running"]
        assert fabric.value("SELECT count(*) FROM tracked_sample") == 1
        in_order(fabric)


class TestIds:
    @pytest.mark.parametrize("client_id", ["", " ", "..", "a/b", "a\n", "x" * 256, "0" * 32, f"job-{'a' * 32}"])
    def test_what_cannot_be_told_from_others_is_refused(self, fabric: Fabric, client_id: str) -> None:
        with pytest.raises(Invalid):
            create(fabric, client_id)

    def test_a_second_of_one_name_is_a_conflict(self, fabric: Fabric) -> None:
        create(fabric, "a")
        with pytest.raises(StateConflict, match="'a'"):
            create(fabric, "a")
