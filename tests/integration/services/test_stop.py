"""Stop and cancel: the row's flag decides, whoever else changes the job at the same moment."""

from __future__ import annotations

from uuid import uuid4

import pytest

from app.domain.errors import NotFound, StateConflict
from app.domain.job import DEFAULT_TENANT
from app.domain.policy import Ending
from app.domain.states import JobState, StopCause
from app.services.report import Answer
from app.services.stop import cancel_many, cancel_pending, request_stop
from tests.factories import Fabric, Node, at_once, job
from tests.gangs import assemble_again, gang_node
from tests.integration.services.array_lab import cancel, job_at, submit_an_array


def test_a_pending_job_is_cancelled_at_once_and_never_claimed(fabric: Fabric, node: Node) -> None:
    job_id = fabric.submit_one()
    view = cancel_pending(fabric.db, DEFAULT_TENANT, job_id, "ann", "wrong input")
    assert (view.state, view.stop_cause, view.stop_by, view.stop_reason) == (
        JobState.CANCELLED, StopCause.CANCEL, "ann", "wrong input",
    )  # fmt: skip
    assert view.finished_at is not None
    assert fabric.claim(node) == []
    fabric.assert_in_order()


def test_a_job_in_backoff_is_cancelled_too(fabric: Fabric, node: Node) -> None:
    job_id = fabric.submit_one(max_retries=1)
    fabric.finish(fabric.run(node), Ending(exit_code=1))
    assert cancel_pending(fabric.db, DEFAULT_TENANT, job_id).state == JobState.CANCELLED
    fabric.assert_in_order()


def test_only_pending_jobs_can_be_cancelled_and_the_answer_says_the_state(fabric: Fabric, node: Node) -> None:
    job_id = fabric.submit_one()
    taken = fabric.run(node)
    for state in ("running", "completed"):
        with pytest.raises(StateConflict) as refused:
            cancel_pending(fabric.db, DEFAULT_TENANT, job_id)
        assert refused.value.context == {"job_id": str(job_id), "status": state}
        fabric.finish(taken)


def test_another_tenants_job_cannot_be_found(fabric: Fabric) -> None:
    job_id, stranger = fabric.submit_one(), fabric.add_tenant()
    for refused in (
        lambda: cancel_pending(fabric.db, stranger, job_id),
        lambda: request_stop(fabric.db, stranger, job_id, "eve"),
        lambda: cancel_pending(fabric.db, DEFAULT_TENANT, uuid4()),
        lambda: request_stop(fabric.db, DEFAULT_TENANT, uuid4(), "ann"),
    ):
        with pytest.raises(NotFound):
            refused()
    assert fabric.state(job_id) == JobState.PENDING


def test_many_are_cancelled_in_one_go_each_with_its_own_answer(fabric: Fabric, node: Node) -> None:
    running = fabric.submit_one()
    fabric.claim_one(node)
    foreign = fabric.submit(job(), tenant=fabric.add_tenant())[0]
    waiting = fabric.submit(*[job()] * 3)
    unknown = uuid4()
    answers = cancel_many(fabric.db, DEFAULT_TENANT, [*waiting, running, foreign, unknown, waiting[0]])
    assert [answers[job_id] for job_id in waiting] == [None] * 3
    assert isinstance(answers[running], StateConflict)
    assert isinstance(answers[foreign], NotFound)
    assert isinstance(answers[unknown], NotFound)
    assert fabric.state(foreign) == JobState.PENDING
    fabric.assert_in_order()


def test_a_stop_of_a_pending_job_cancels_it_and_wakes_nobody(fabric: Fabric) -> None:
    view, nodes = request_stop(fabric.db, DEFAULT_TENANT, fabric.submit_one(), "ann")
    assert (view.state, nodes) == (JobState.CANCELLED, [])


def test_a_stop_of_an_active_job_wakes_its_node_and_ends_in_cancelled(fabric: Fabric, node: Node) -> None:
    job_id = fabric.submit_one()
    taken = fabric.claim_one(node)
    view, nodes = request_stop(fabric.db, DEFAULT_TENANT, job_id, "ann", "enough")
    assert (view.state, view.stop_cause, nodes) == (JobState.STOPPING, StopCause.CANCEL, [node.id])
    assert fabric.renew(node, taken).stops == {taken.attempt_id: (StopCause.CANCEL, taken.grace_s)}
    fabric.finish(taken, Ending(signal=15, stopped=True))
    assert fabric.state(job_id) == JobState.CANCELLED
    with pytest.raises(StateConflict):
        request_stop(fabric.db, DEFAULT_TENANT, job_id, "ann")


def test_a_second_stop_changes_nothing(fabric: Fabric, node: Node) -> None:
    job_id = fabric.submit_one()
    fabric.run(node)
    request_stop(fabric.db, DEFAULT_TENANT, job_id, "ann", "first")
    before = fabric.row(job_id)
    view, nodes = request_stop(fabric.db, DEFAULT_TENANT, job_id, "bob", "second")
    assert (view.stop_by, nodes) == ("ann", [node.id])
    assert fabric.row(job_id) == before


def test_the_stronger_cause_stays(fabric: Fabric, node: Node) -> None:
    job_id = fabric.submit_one()
    fabric.run(node)
    requeue, drain, preempt, limit, cancel = StopCause
    causes = [requeue, preempt, drain, requeue, limit, preempt, cancel, drain]
    seen = [request_stop(fabric.db, DEFAULT_TENANT, job_id, "x", None, cause)[0].stop_cause for cause in causes]
    assert seen == [requeue, preempt, preempt, preempt, limit, limit, cancel, cancel]


def test_a_drain_leaves_a_pending_job_alone(fabric: Fabric) -> None:
    job_id = fabric.submit_one()
    view, _ = request_stop(fabric.db, DEFAULT_TENANT, job_id, "node", None, StopCause.DRAIN)
    assert view.state == JobState.PENDING


def test_a_cancel_and_a_claim_at_once_leave_the_job_in_one_hand(fabric: Fabric, node: Node) -> None:
    for _ in range(10):
        job_id = fabric.submit_one()

        def act(place: int, job_id: object = job_id) -> bool:
            if place == 0:
                return bool(fabric.claim(node))
            try:
                cancel_pending(fabric.db, DEFAULT_TENANT, job_id)  # type: ignore[arg-type]
                return True
            except StateConflict:
                return False

        claimed, cancelled = at_once(2, act)
        assert claimed != cancelled
        assert fabric.state(job_id) == (JobState.STARTING if claimed else JobState.CANCELLED)
    fabric.assert_in_order()


def test_a_stop_and_an_end_at_once_end_the_job_once(fabric: Fabric, node: Node) -> None:
    for _ in range(10):
        job_id = fabric.submit_one()
        taken = fabric.run(node)

        def act(place: int, job_id: object = job_id, taken: object = taken) -> str:
            if place == 0:
                return str(fabric.finish(taken))  # type: ignore[arg-type]
            try:
                request_stop(fabric.db, DEFAULT_TENANT, job_id, "ann")  # type: ignore[arg-type]
                return "stopping"
            except StateConflict:
                return "too late"

        answer, stop = at_once(2, act)
        assert answer == Answer.ACCEPTED
        assert fabric.state(job_id) == (JobState.CANCELLED if stop == "stopping" else JobState.COMPLETED)
    fabric.assert_in_order()


def test_cancels_of_the_same_jobs_in_any_order_never_deadlock(fabric: Fabric) -> None:
    sent = fabric.submit(*[job()] * 60)
    orders = [sent, sent[::-1], sent[::2] + sent[1::2], sent[1::2] + sent[::2]]
    answers = at_once(4, lambda n: cancel_many(fabric.db, DEFAULT_TENANT, orders[n]))
    for job_id in sent:
        assert sum(answer[job_id] is None for answer in answers) == 1
    fabric.assert_in_order()


def test_cancelling_an_array_of_gangs_wakes_the_nodes_of_all_members(fabric: Fabric) -> None:
    a, b, c, d = (gang_node(fabric, name) for name in "abcd")
    array_id = submit_an_array(fabric, 3, members=2)
    fabric.start(*assemble_again(fabric, job_at(fabric, array_id, 0).id, a, b))
    assemble_again(fabric, job_at(fabric, array_id, 1).id, c, c)
    assemble_again(fabric, job_at(fabric, array_id, 2).id, d, d)
    assert cancel(fabric, array_id, (0, 2)).nodes == ["a", "b", "c"]
    assert cancel(fabric, array_id).nodes == ["a", "b", "c", "d"]
