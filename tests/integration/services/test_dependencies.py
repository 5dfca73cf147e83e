"""Dependencies: a job starts when its parents have ended as it asked, and no wake-up is lost on any path."""

from __future__ import annotations

from functools import partial
from uuid import UUID, uuid4

import pytest

from app.domain.errors import Invalid, Unavailable
from app.domain.job import Assignment, JobRequest
from app.domain.policy import Ending
from app.domain.states import JobState
from app.services import arrays, dependencies
from app.services.explain import explain
from app.services.inspect import job_detail
from app.services.recover import promote
from app.services.stop import cancel_pending, request_stop
from app.storage.faults import Fault, FaultPlan
from tests.factories import Fabric, Node, at_once, in_thread, job, make_fabric, raw, until
from tests.integration.services.array_lab import (
    ANY,
    NOT_OK,
    OK,
    after,
    assert_sound,
    cancel,
    counts,
    look,
    refusal,
    retry,
    submit_an_array,
    tick,
    with_window,
)

FAILED = Ending(exit_code=1)
PENDING, CANCELLED = JobState.PENDING, JobState.CANCELLED


def claimed(fabric: Fabric, node: Node) -> list[UUID]:
    """The jobs the node gets."""
    return [one.job_id for one in fabric.claim(node)]


def begun(fabric: Fabric, node: Node) -> Assignment:
    """One more job, which runs."""
    fabric.submit_one()
    return fabric.run(node)


def child(fabric: Fabric, *parents: UUID, on: object = OK, **changes: object) -> UUID:
    """A job that depends on all of these."""
    return fabric.submit_one(after=after(*parents, on=on), **changes)  # type: ignore[arg-type]


def test_a_job_waits_for_its_parent(fabric: Fabric, node: Node) -> None:
    parent = begun(fabric, node)
    waiting = child(fabric, parent.job_id)
    row = fabric.row(waiting)
    assert (row.state, row.ready, row.reason, row.waits) == (0, False, "dependency", 1)
    tick(fabric)
    assert fabric.claim(node) == []
    fabric.finish(parent)
    tick(fabric)
    assert claimed(fabric, node) == [waiting]
    fabric.assert_in_order()
    assert fabric.all("SELECT 1 FROM ended_parent") == []


@pytest.mark.parametrize(
    ("on", "ending", "starts"),
    [
        (OK, Ending(exit_code=0), True), (OK, FAILED, False), (ANY, Ending(exit_code=0), True), (ANY, FAILED, True),
        (NOT_OK, Ending(exit_code=0), False), (NOT_OK, FAILED, True),
    ],
    ids=lambda value: str(value),
)  # fmt: skip
@pytest.mark.parametrize("late", [False, True], ids=["before", "afterwards"])
def test_the_parents_end_decides(
    fabric: Fabric, node: Node, on: object, ending: Ending, starts: bool, late: bool
) -> None:
    parent = begun(fabric, node)
    if late:
        fabric.finish(parent, ending)
    waiting = child(fabric, parent.job_id, on=on)
    if not late:
        fabric.finish(parent, ending)
    tick(fabric)
    assert claimed(fabric, node) == ([waiting] if starts else [])
    row = fabric.row(waiting)
    assert row.state == (JobState.STARTING if starts else CANCELLED)
    assert (str(parent.job_id) in row.message and "never" in row.message) is not starts
    assert fabric.all("SELECT 1 FROM ended_parent") == []
    fabric.assert_in_order()


def test_a_satisfied_dependency_is_no_wait_at_all(fabric: Fabric, node: Node) -> None:
    parent = begun(fabric, node)
    fabric.finish(parent)
    waiting = child(fabric, parent.job_id)
    assert claimed(fabric, node) == [waiting]
    assert not fabric.row(parent.job_id).awaited


def test_all_parents_count_and_one_that_fails_is_enough(fabric: Fabric, node: Node) -> None:
    parents = [begun(fabric, node) for _ in range(4)]
    both = child(fabric, parents[0].job_id, parents[1].job_id)
    never = child(fabric, parents[2].job_id, parents[3].job_id)
    fabric.finish(parents[0])
    fabric.finish(parents[2], FAILED)
    tick(fabric)
    assert (fabric.state(both), fabric.state(never)) == (PENDING, CANCELLED)
    fabric.finish(parents[1])
    fabric.finish(parents[3])
    tick(fabric)
    assert claimed(fabric, node) == [both]
    assert fabric.state(never) == CANCELLED


def test_a_parent_that_is_tried_again_has_not_ended(fabric: Fabric, node: Node) -> None:
    parent_id = fabric.submit_one(max_retries=1)
    parent = fabric.run(node)
    waiting = child(fabric, parent_id)
    fabric.finish(parent, FAILED)
    tick(fabric)
    assert fabric.state(waiting) == PENDING
    fabric.due()
    promote(fabric.db)
    fabric.finish(fabric.run(node))
    tick(fabric)
    assert claimed(fabric, node) == [waiting]


def test_what_can_never_start_is_cancelled_down_the_whole_line(fabric: Fabric, node: Node) -> None:
    parent = begun(fabric, node)
    line = [parent.job_id]
    for _ in range(8):
        line.append(child(fabric, line[-1]))
    rescue = child(fabric, line[4], on=NOT_OK)
    fabric.finish(parent, FAILED)
    tick(fabric)
    assert [fabric.state(one) for one in line[1:]] == [CANCELLED] * 8
    assert str(line[3]) in fabric.row(line[4]).message
    assert claimed(fabric, node) == [rescue]
    fabric.assert_in_order()


def test_cancelling_a_parent_that_waits_is_an_end_too(fabric: Fabric, node: Node) -> None:
    first = fabric.submit_one()
    second = child(fabric, first)
    third = child(fabric, second, on=ANY)
    cancel_pending(fabric.db, fabric.tenant, second)
    tick(fabric)
    assert claimed(fabric, node) == [first, third]


def test_a_child_that_was_cancelled_stays_so(fabric: Fabric, node: Node) -> None:
    parent = begun(fabric, node)
    waiting = child(fabric, parent.job_id)
    request_stop(fabric.db, fabric.tenant, waiting, "ann", "changed my mind")
    fabric.finish(parent)
    tick(fabric)
    assert (fabric.state(waiting), fabric.row(waiting).stop_by) == (CANCELLED, "ann")


def test_a_job_on_hold_stays_on_hold_when_its_parent_ends(fabric: Fabric, node: Node) -> None:
    parent = begun(fabric, node)
    waiting = child(fabric, parent.job_id)
    fabric.sql("UPDATE job SET reason = 'hold' WHERE id = %s", waiting)
    fabric.finish(parent)
    tick(fabric)
    row = fabric.row(waiting)
    assert (row.ready, row.reason, row.waits) == (False, "hold", 0)


def test_unknown_and_foreign_parents_are_told_alike(fabric: Fabric) -> None:
    mine, stranger = fabric.submit_one(), fabric.add_tenant()
    theirs, array_id = fabric.submit_one(tenant=stranger), submit_an_array(fabric, 2)
    nobody = uuid4()
    messages = []
    for parent in (theirs, nobody):
        refused = refusal(lambda parent=parent: child(fabric, mine, parent))
        assert isinstance(refused, Invalid)
        assert [one.field for one in refused.problems] == ["depends_on[1].job"]
        messages.append(refused.message.replace(str(parent), "?"))
    assert messages[0] == messages[1]
    assert isinstance(refusal(lambda: fabric.submit_one(tenant=stranger, after=after(array_id))), Invalid)
    assert fabric.value("SELECT count(*) FROM job_dependency") == 0
    assert not fabric.row(theirs).awaited


def test_each_job_of_a_bulk_has_parents_of_its_own(fabric: Fabric, node: Node) -> None:
    one, two = begun(fabric, node), begun(fabric, node)
    requests: list[JobRequest] = [job(after=after(one.job_id)), job(), job(after=after(two.job_id, on=NOT_OK))]
    first, free, last = fabric.submit(*requests)
    assert claimed(fabric, node) == [free]
    fabric.finish(one)
    fabric.finish(two, FAILED)
    tick(fabric)
    assert claimed(fabric, node) == [first, last]


def test_a_submit_holds_its_parents_so_that_no_wakeup_is_lost(fabric: Fabric, node: Node, database_url: str) -> None:
    parent = begun(fabric, node)
    with raw(database_url) as other, other.cursor() as cursor:
        # A submit that has seen the parent run, and has not committed yet.
        cursor.execute("UPDATE job SET awaited = true WHERE id = %s", (str(parent.job_id),))
        with in_thread(lambda: fabric.finish(parent)) as end:
            until(lambda: fabric.blocked() == 1)
            cursor.execute(
                """INSERT INTO job_dependency (child_id, parent_id, terms, child_is_array, parent_is_array)
                VALUES (%s, %s, 1, false, false)""",
                (str(uuid4()), str(parent.job_id)),
            )
            other.commit()
            end.result()
    assert fabric.value("SELECT parent_id FROM ended_parent") == parent.job_id


def test_a_submit_waits_for_an_end_that_is_under_way(fabric: Fabric, node: Node, database_url: str) -> None:
    for marked in (False, True):
        parent = begun(fabric, node)
        if marked:
            child(fabric, parent.job_id)
        with raw(database_url) as other, other.cursor() as cursor:
            cursor.execute(
                "UPDATE job SET state = 4, attempt_id = NULL, finished_at = now() WHERE id = %s", (str(parent.job_id),)
            )
            with in_thread(partial(child, fabric, parent.job_id)) as made:
                until(lambda: fabric.blocked() == 1)
                other.commit()
                waiting = made.result()
        assert fabric.row(waiting).ready
        tick(fabric)
        fabric.sql("UPDATE job SET state = 6, ready = false, finished_at = now() WHERE state = 0")


def test_submits_and_ends_at_the_same_time_lose_nothing(fabric: Fabric, node: Node) -> None:
    parents = [begun(fabric, node) for _ in range(12)]
    children: list[UUID] = []

    def work(number: int) -> None:
        if number < 4:
            for place in range(12):
                mine = [parents[(place + step) % 12].job_id for step in range(number + 1)]
                children.append(child(fabric, *mine, on=ANY))
        else:
            for parent in parents:
                fabric.finish(parent)
                dependencies.release(fabric.db, fabric.settings)

    at_once(5, work)
    tick(fabric)
    assert len(children) == 48
    assert sorted(claimed(fabric, node)) == sorted(children)
    assert fabric.value("SELECT count(*) FROM job_dependency WHERE settled IS NULL") == 0
    fabric.assert_in_order()


def test_two_parents_that_end_together_release_their_child_once(fabric: Fabric, node: Node, database_url: str) -> None:
    one, two = begun(fabric, node), begun(fabric, node)
    waiting = child(fabric, one.job_id, two.job_id)
    fabric.finish(one)
    with raw(database_url) as other, other.cursor() as cursor:
        # Another scheduler settles the other parent, and has not committed yet.
        cursor.execute("SELECT 1 FROM job WHERE id = %s FOR NO KEY UPDATE", (str(waiting),))
        cursor.execute("UPDATE job_dependency SET settled = true WHERE parent_id = %s", (str(two.job_id),))
        with in_thread(lambda: dependencies.release(fabric.db, fabric.settings)) as released:
            until(lambda: fabric.blocked() == 1)
            other.commit()
            released.result()
    assert claimed(fabric, node) == [waiting]


@pytest.mark.parametrize("point", ["before", "after"])
@pytest.mark.parametrize("name", ["submit", "finish", "release"])
def test_a_crash_at_any_commit_loses_no_dependent(database_url: str, name: str, point: str) -> None:
    faults = FaultPlan([])
    fabric = make_fabric(database_url, faults)
    node = fabric.add_node()
    try:
        parent = begun(fabric, node)
        faults.faults.append(Fault(name, point, times=1))
        for work in (
            lambda: child(fabric, parent.job_id),
            lambda: child(fabric, parent.job_id, on=NOT_OK),
            lambda: fabric.finish(parent),
            lambda: tick(fabric),
            lambda: tick(fabric),
        ):
            try:
                work()
            except Unavailable:
                work()
        states = {state for (state,) in fabric.all("SELECT state FROM job WHERE id <> %s", parent.job_id)}
        assert states == {PENDING, CANCELLED}
        assert fabric.value("SELECT count(*) FROM job WHERE state = 0 AND NOT ready") == 0
        assert fabric.all("SELECT 1 FROM ended_parent") == []
        assert faults.fired == [(name, point)]
        fabric.assert_in_order()
    finally:
        fabric.db.close()


def test_many_dependents_are_released_in_chunks(fabric: Fabric, node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dependencies, "EDGES_AT_A_TIME", 10)
    parent = begun(fabric, node)
    made = fabric.submit(*[job(after=after(parent.job_id)) for _ in range(35)])
    fabric.finish(parent)
    monkeypatch.setattr(dependencies, "ROUNDS", 1)
    assert dependencies.release(fabric.db, fabric.settings).detail == {"released": 10, "cancelled": 0}
    assert fabric.value("SELECT count(*) FROM job WHERE ready") == 10
    monkeypatch.setattr(dependencies, "ROUNDS", 50)
    tick(fabric)
    assert sorted(claimed(fabric, node)) == sorted(made)
    assert fabric.all("SELECT 1 FROM ended_parent") == []


def test_a_job_waits_for_a_whole_array(fabric: Fabric, node: Node) -> None:
    with_window(fabric, 2)
    array_id = submit_an_array(fabric, 5)
    ok, always, failed = child(fabric, array_id), child(fabric, array_id, on=ANY), child(fabric, array_id, on=NOT_OK)
    for _ in range(5):
        one = fabric.claim_one(node)
        fabric.finish(one, FAILED if one.environment["CFAB_ARRAY_INDEX"] == "3" else None)
        assert fabric.value("SELECT count(*) FROM job WHERE waits = 1") == 3
        arrays.advance(fabric.db, fabric.settings)
    tick(fabric)
    assert sorted(claimed(fabric, node)) == sorted([always, failed])
    assert fabric.state(ok) == CANCELLED
    assert "array" in fabric.row(ok).message


def test_an_array_that_runs_again_has_not_ended(fabric: Fabric, node: Node) -> None:
    array_id = submit_an_array(fabric, 2)
    waiting = child(fabric, array_id)
    for one in fabric.claim(node):
        fabric.finish(one, FAILED)
    arrays.advance(fabric.db, fabric.settings)
    # Its end was written, but nothing that waits for it was told yet.
    retry(fabric, array_id)
    tick(fabric)
    assert fabric.state(waiting) == PENDING
    for one in fabric.claim(node):
        fabric.finish(one)
    tick(fabric)
    assert claimed(fabric, node) == [waiting]


def test_an_array_waits_whole_and_can_never_start_whole(fabric: Fabric, node: Node) -> None:
    parent, other = begun(fabric, node), begun(fabric, node)
    array_id = submit_an_array(fabric, 3, 2, after=after(parent.job_id))
    doomed = submit_an_array(fabric, 3, after=after(other.job_id))
    last = child(fabric, doomed)
    assert (look(fabric, array_id).reason, counts(fabric, array_id)) == ("dependency", {"pending": 3})
    assert fabric.value("SELECT count(*) FROM job WHERE array_id IS NOT NULL") == 0
    fabric.finish(parent)
    fabric.finish(other, FAILED)
    tick(fabric)
    assert len(fabric.claim(node)) == 2
    seen = look(fabric, doomed)
    assert (seen.status, seen.counts.cancelled, str(other.job_id) in seen.message) == ("cancelled", 3, True)
    assert fabric.state(last) == CANCELLED
    assert_sound(fabric, array_id)
    assert_sound(fabric, doomed)


def test_an_array_can_be_cancelled_while_it_waits(fabric: Fabric, node: Node) -> None:
    parent = begun(fabric, node)
    array_id = submit_an_array(fabric, 3, after=after(parent.job_id))
    assert cancel(fabric, array_id).cancelled == 3
    assert look(fabric, array_id).status == "cancelled"
    fabric.finish(parent)
    tick(fabric)
    assert fabric.claim(node) == []
    assert_sound(fabric, array_id)


def test_a_job_tells_what_it_depends_on_and_explain_names_what_it_waits_for(fabric: Fabric, node: Node) -> None:
    first, second = begun(fabric, node), begun(fabric, node)
    waiting = child(fabric, first.job_id, second.job_id)
    fabric.finish(first)
    tick(fabric)
    told = job_detail(fabric.db, fabric.tenant, waiting).depends_on
    assert [(one.id, one.terms, one.settled) for one in told] == [
        (second.job_id, OK, None), (first.job_id, OK, True),
    ]  # fmt: skip
    cause = explain(fabric.db, fabric.settings, fabric.tenant, waiting).causes[0]
    assert cause.code == "dependency"
    assert str(second.job_id) in cause.message
    assert "running" in cause.message
    assert str(first.job_id) not in cause.message
    assert cause.numbers["waits_for"] == 1


def test_explain_says_that_a_job_waits_for_its_turn(fabric: Fabric) -> None:
    array_id = submit_an_array(fabric, 3, 2)
    job_id = fabric.value("SELECT id FROM job WHERE array_index = 2")
    cause = explain(fabric.db, fabric.settings, fabric.tenant, job_id).causes[0]
    assert (cause.code, cause.numbers["max_parallel"]) == ("array", 2)
    assert str(array_id) in cause.message


def test_dependencies_are_forgotten_with_their_job(fabric: Fabric, node: Node) -> None:
    parent = begun(fabric, node)
    waiting = child(fabric, parent.job_id)
    cancel_pending(fabric.db, fabric.tenant, waiting)
    fabric.sql("DELETE FROM job WHERE id = %s", waiting)
    assert fabric.all("SELECT 1 FROM job_dependency") == []


def test_dependencies_are_forgotten_with_their_array(fabric: Fabric, node: Node) -> None:
    parent = begun(fabric, node)
    kept, old = [submit_an_array(fabric, 1, after=after(parent.job_id)) for _ in range(2)]
    fabric.sql("UPDATE job_array SET finished_at = now() - interval '100 days', unmade = 0 WHERE id = %s", old)
    assert arrays.forget(fabric.db, fabric.settings).detail == {"forgotten": 1}
    assert fabric.all("SELECT child_id FROM job_dependency") == [(kept,)]


def test_plain_jobs_leave_no_trace(fabric: Fabric, node: Node) -> None:
    fabric.submit_one()
    fabric.finish(fabric.run(node))
    for table in ("array_delta", "ended_parent", "job_dependency"):
        assert fabric.all(f"SELECT 1 FROM {table}") == []
