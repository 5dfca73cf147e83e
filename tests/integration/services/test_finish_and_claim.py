"""Ends and the claim for what they free, in one transaction: all or nothing, and never more than either alone gives."""

from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

import psycopg2.errors
import pytest
from sqlalchemy.exc import DBAPIError

from app.domain.errors import Unavailable
from app.domain.job import Assignment
from app.domain.policy import Ending
from app.domain.states import JobState
from app.services.claim import Claimer, finish_and_claim
from app.services.report import Answer, Finished, FinishResult
from app.storage.faults import parse_faults
from tests.factories import Fabric, Node, finished, in_thread, job, make_fabric, raw, until


def turn(
    fabric: Fabric, node: Node, *ends: Finished, limit: int = 64, **changes: object
) -> tuple[FinishResult, list[Assignment]]:
    claimer = replace(Claimer(node.id, node.incarnation, node.runners), **changes)  # type: ignore[arg-type]
    return finish_and_claim(fabric.db, ends, claimer, limit)


def test_an_end_frees_the_place_that_the_claim_fills(fabric: Fabric) -> None:
    node = fabric.add_node(slots=1)
    first, second = fabric.submit(job(), job())
    taken = fabric.run(node)
    assert fabric.claim(node) == []
    result, claimed = turn(fabric, node, finished(taken))
    assert (result.answers, result.outcomes) == (
        {taken.attempt_id: Answer.ACCEPTED}, {taken.attempt_id: "completed"},
    )  # fmt: skip
    assert [one.job_id for one in claimed] == [second]
    assert (fabric.state(first), fabric.state(second)) == (JobState.COMPLETED, JobState.STARTING)
    fabric.assert_in_order()


def test_never_more_than_the_room_there_is(fabric: Fabric) -> None:
    node = fabric.add_node(slots=3)
    fabric.submit(*(job() for _ in range(10)))
    held = fabric.claim(node)
    _result, claimed = turn(fabric, node, finished(held[0]), finished(held[1]))
    assert len(claimed) == 2
    _result, claimed = turn(fabric, node, finished(held[2]), limit=0)
    assert claimed == []
    fabric.assert_in_order()


def test_a_failed_job_with_a_retry_left_may_be_claimed_again_at_once_or_later(fabric: Fabric, node: Node) -> None:
    fabric.submit_one(max_retries=1, backoff_s=0.0)
    taken = fabric.run(node)
    result, claimed = turn(fabric, node, finished(taken, Ending(exit_code=1)))
    assert result.answers == {taken.attempt_id: Answer.ACCEPTED}
    again = claimed or fabric.claim(node) or _due(fabric, node)
    assert [(one.job_id, one.attempt) for one in again] == [(taken.job_id, 2)]
    fabric.assert_in_order()


def _due(fabric: Fabric, node: Node) -> list[Assignment]:
    fabric.due()
    return fabric.claim(node)


def test_a_stale_incarnation_tells_its_ends_and_claims_nothing(fabric: Fabric, node: Node) -> None:
    fabric.submit(job(), job())
    taken = fabric.run(node)
    result, claimed = turn(fabric, node, finished(taken), incarnation=uuid4())
    assert result.answers == {taken.attempt_id: Answer.ACCEPTED}
    assert claimed == []
    fabric.assert_in_order()


def test_a_repeat_is_known_and_claims_what_is_left(fabric: Fabric, node: Node) -> None:
    fabric.submit(job(), job())
    taken = fabric.run(node)
    _result, claimed = turn(fabric, node, finished(taken))
    assert len(claimed) == 1
    result, claimed = turn(fabric, node, finished(taken))
    assert (result.answers, claimed) == ({taken.attempt_id: Answer.KNOWN}, [])
    stranger = replace(finished(taken), token=uuid4())
    assert turn(fabric, node, stranger)[0].answers == {taken.attempt_id: Answer.STALE}
    fabric.assert_in_order()


def test_a_refused_end_undoes_the_claim_with_it(fabric: Fabric, node: Node) -> None:
    fabric.submit(job(), job())
    taken = fabric.run(node)
    with pytest.raises(DBAPIError) as refused:
        turn(fabric, node, finished(taken, output_bytes=2**70))
    assert isinstance(refused.value.orig, psycopg2.errors.NumericValueOutOfRange)
    assert fabric.state(taken.job_id) == JobState.RUNNING
    assert len(fabric.claim(node)) == 1
    fabric.assert_in_order()


@pytest.mark.parametrize(("point", "committed"), [("before", False), ("after", True)])
def test_a_fault_leaves_all_or_nothing(database_url: str, point: str, committed: bool) -> None:
    fabric = make_fabric(database_url, parse_faults(f"finish:{point}:1"))
    try:
        node = fabric.add_node()
        done, waiting = fabric.submit(job(), job())
        taken = fabric.run(node)
        with pytest.raises(Unavailable):
            turn(fabric, node, finished(taken))
        assert (fabric.state(done) == JobState.COMPLETED) is committed
        assert (fabric.state(waiting) == JobState.STARTING) is committed
        # A claim that nobody heard of is named by the next renewal, as one that is held but not listed.
        renewal = fabric.renew(node) if committed else fabric.renew(node, taken)
        assert len(renewal.orphans) == int(committed)
        fabric.assert_in_order()
    finally:
        fabric.db.close()


def test_the_node_is_locked_before_any_job(fabric: Fabric, node: Node, database_url: str) -> None:
    fabric.submit(job(), job())
    taken = fabric.run(node)
    with raw(database_url) as other, other.cursor() as cursor:
        cursor.execute("SELECT 1 FROM node WHERE id = %s FOR NO KEY UPDATE", (node.id,))
        with in_thread(lambda: turn(fabric, node, finished(taken))) as late:
            until(lambda: fabric.blocked() > 0)
            # Whoever has the node may lock its jobs: the one that waits for the node has locked none.
            cursor.execute("SELECT 1 FROM job WHERE id = %s FOR UPDATE NOWAIT", (str(taken.job_id),))
            other.commit()
            result, claimed = late.result(timeout=20)
    assert result.answers == {taken.attempt_id: Answer.ACCEPTED}
    assert len(claimed) == 1
    fabric.assert_in_order()
