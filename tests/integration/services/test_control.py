"""Hold, release, reprioritise, requeue: what each does to a job, and that nothing else comes half-way between."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest

from app.domain.dependency import After, Terms
from app.domain.errors import FabricError, Invalid, NotFound, Refused, StateConflict
from app.domain.explain import Code
from app.domain.policy import Ending
from app.domain.states import JobState, StopCause
from app.services import control, dependencies, events, recover
from app.services.claim import Claimer, claim_in
from app.services.control import Caller, Changed, Wanted
from app.services.explain import explain
from app.services.inspect import job_detail
from app.services.queue import position
from app.services.stop import cancel_pending, request_stop
from tests.factories import (
    BACKGROUND,
    BEST_EFFORT,
    FOREGROUND,
    Fabric,
    Node,
    at_once,
    in_thread,
    job,
    share,
    until,
)

ANN = Caller("ann", None)
OPS = Caller("ops", None, operator=True)


def hold(fabric: Fabric, job_id: UUID, who: Caller = ANN, reason: str = "") -> Changed:
    with fabric.db.transaction("control") as tx:
        return control.hold_in(tx, who, job_id, reason)


def release(fabric: Fabric, job_id: UUID, who: Caller = ANN) -> Changed:
    with fabric.db.transaction("control") as tx:
        return control.release_in(tx, who, job_id)


def reprioritise(fabric: Fabric, job_id: UUID, *wanted: Any) -> Changed:
    with fabric.db.transaction("control") as tx:
        return control.reprioritise_in(tx, fabric.settings, ANN, job_id, Wanted(*wanted))


def requeue(fabric: Fabric, job_id: UUID, who: Caller = ANN, **options: Any) -> Changed:
    with fabric.db.transaction("control") as tx:
        return control.requeue_in(tx, who, job_id, **options)


STOPPED = Ending(signal=15, stopped=True)


class TestHold:
    def test_a_held_job_is_not_started_until_it_is_released(self, fabric: Fabric, node: Node) -> None:
        first, second = fabric.submit(job(), job())
        changed = hold(fabric, first, reason="budget")
        assert (changed.detail.job.reason, changed.position) == ("hold", 0)
        assert [one.job_id for one in fabric.claim(node)] == [second]
        told = explain(fabric.db, fabric.settings, fabric.tenant, first).causes[0]
        assert told.code == Code.HOLD
        assert told.message == "The job is held back until somebody releases it: held by ann: budget."
        released = release(fabric, first)
        assert (released.detail.job.reason, released.detail.job.message, released.position) == ("new", "", 1)
        assert released.ready == BACKGROUND
        assert [one.job_id for one in fabric.claim(node)] == [first]
        fabric.assert_in_order()

    def test_a_released_job_is_found_also_when_its_key_had_ended(self, fabric: Fabric, node: Node) -> None:
        held = fabric.submit_one()
        hold(fabric, held)
        later = fabric.submit(*[job()] * 60)
        assert len(fabric.claim(node, 60)) == 60
        recover.sweep(fabric.db)
        assert not fabric.value("SELECT live FROM scheduling_key")
        release(fabric, held)
        fabric.assert_in_order()
        assert later
        fabric.sql("UPDATE node SET slots = 100")
        assert fabric.claim_one(node).job_id == held

    def test_its_age_counts_on_so_that_it_is_the_first_again(self, fabric: Fabric, node: Node) -> None:
        old, young = fabric.submit(job(), job())
        hold(fabric, old)
        assert position(fabric.db, fabric.tenant, young).position == 1
        release(fabric, old)
        assert [position(fabric.db, fabric.tenant, one).position for one in (old, young)] == [1, 2]
        assert fabric.claim_one(node).job_id == old

    def test_asked_again_it_changes_nothing(self, fabric: Fabric) -> None:
        job_id = fabric.submit_one()
        hold(fabric, job_id, reason="one")
        before = fabric.row(job_id)
        again = hold(fabric, job_id, Caller("bob", None), "two")
        assert again.detail.hold is not None and (again.detail.hold.by, again.detail.hold.reason) == ("ann", "one")
        assert fabric.row(job_id) == before
        release(fabric, job_id)
        before = fabric.row(job_id)
        release(fabric, job_id)
        assert fabric.row(job_id) == before

    def test_what_an_operator_holds_no_user_releases(self, fabric: Fabric) -> None:
        job_id = fabric.submit_one()
        hold(fabric, job_id)
        assert hold(fabric, job_id, OPS, "maintenance").detail.job.message == "held by operator ops: maintenance"
        with pytest.raises(Refused, match="Operator ops holds this job: maintenance"):
            release(fabric, job_id)
        hold(fabric, job_id, ANN, "mine")
        assert fabric.row(job_id).message == "held by operator ops: maintenance"
        assert release(fabric, job_id, OPS).detail.job.reason == "new"
        fabric.assert_in_order()

    def test_an_operator_releases_what_a_user_holds(self, fabric: Fabric) -> None:
        job_id = fabric.submit_one()
        hold(fabric, job_id)
        assert release(fabric, job_id, OPS).detail.job.ready

    def test_it_may_be_submitted_held(self, fabric: Fabric, node: Node) -> None:
        held, free = fabric.submit(job(hold=True), job())
        detail = job_detail(fabric.db, fabric.tenant, held)
        assert (detail.job.reason, detail.hold is not None) == ("hold", True)
        assert [one.job_id for one in fabric.claim(node)] == [free]
        release(fabric, held)
        assert fabric.claim_one(node).job_id == held
        fabric.assert_in_order()

    @pytest.mark.parametrize("over", [False, True])
    def test_a_backoff_goes_on_meanwhile(self, fabric: Fabric, node: Node, over: bool) -> None:
        job_id = fabric.submit_one(max_retries=3, backoff_s=3600.0)
        fabric.finish(fabric.run(node), Ending(exit_code=7), message="boom")
        due = fabric.row(job_id).not_before
        hold(fabric, job_id)
        assert fabric.row(job_id).not_before is None
        if over:
            fabric.sql("UPDATE job_hold SET was_not_before = clock_timestamp()")
        fabric.due()
        recover.promote(fabric.db)
        assert fabric.row(job_id).reason == "hold"
        release(fabric, job_id)
        row = fabric.row(job_id)
        assert (row.reason, row.message, row.ready) == ("backoff", "boom", over)
        assert row.not_before == (None if over else due)
        fabric.assert_in_order()

    @pytest.mark.parametrize("ended", [False, True])
    def test_what_it_depends_on_may_end_meanwhile(self, fabric: Fabric, node: Node, ended: bool) -> None:
        parent = fabric.submit_one()
        child = fabric.submit_one(after=(After(parent, Terms.AFTEROK),))
        assert hold(fabric, child).detail.job.reason == "hold"
        taken = fabric.run(node)
        if ended:
            fabric.finish(taken)
            dependencies.release(fabric.db, fabric.settings)
        assert (fabric.row(child).reason, fabric.row(child).ready) == ("hold", False)
        assert release(fabric, child).detail.job.reason == ("new" if ended else "dependency")
        assert len(fabric.claim(node)) == ended
        if not ended:
            fabric.finish(taken)
            dependencies.release(fabric.db, fabric.settings)
            assert fabric.claim_one(node).job_id == child
        fabric.assert_in_order()

    def test_only_a_pending_job_can_be_held(self, fabric: Fabric, node: Node) -> None:
        job_id = fabric.submit_one()
        taken = fabric.run(node)
        with pytest.raises(
            StateConflict, match="The job is running: only a job that waits can be held; requeue it with"
        ):
            hold(fabric, job_id)
        assert release(fabric, job_id).detail.job.state == JobState.RUNNING
        fabric.finish(taken)
        for act in (hold, release):
            with pytest.raises(StateConflict, match="The job has completed"):
                act(fabric, job_id)

    def test_a_held_job_can_be_cancelled_and_stays_so(self, fabric: Fabric) -> None:
        job_id = fabric.submit_one()
        hold(fabric, job_id, OPS)
        assert cancel_pending(fabric.db, fabric.tenant, job_id).state == JobState.CANCELLED
        with pytest.raises(StateConflict, match="is cancelled"):
            release(fabric, job_id, OPS)
        fabric.assert_in_order()

    def test_every_change_is_told_once(self, fabric: Fabric) -> None:
        job_id = fabric.submit_one()
        for act in (hold, hold, release, release):
            act(fabric, job_id)
        told = [(one.reason, one.ready) for one in events.of_job(fabric.db, fabric.tenant, job_id)]
        assert told == [("new", True), ("hold", False), ("new", True)]


class TestOfWhom:
    @pytest.mark.parametrize("act", [hold, release, lambda f, j, w: requeue(f, j, w)])
    def test_another_tenants_job_is_not_there(self, fabric: Fabric, act: Callable[..., Changed]) -> None:
        job_id, stranger = fabric.submit_one(), Caller("eve", fabric.add_tenant())
        for asked in (job_id, uuid4()):
            with pytest.raises(NotFound):
                act(fabric, asked, stranger)
        assert act(fabric, job_id, Caller("ann", fabric.tenant)).detail.job.id == job_id


class TestReprioritise:
    def test_a_job_moves_up_at_the_age_it_has(self, fabric: Fabric, node: Node) -> None:
        old, plain, urgent = fabric.submit(job(), job(), job(priority=900))
        before = fabric.row(old)
        changed = reprioritise(fabric, old, BACKGROUND, 900)
        assert (changed.position, changed.detail.spec.effective_priority) == (1, 900)
        after = fabric.row(old)
        assert (after.queue_seq, after.created_at) == (before.queue_seq, before.created_at)
        assert [one.job_id for one in fabric.claim(node)] == [old, urgent, plain]
        fabric.assert_in_order()

    def test_it_is_found_under_a_key_that_has_moved_on_beyond_its_age(self, fabric: Fabric, node: Node) -> None:
        (old,) = fabric.submit(job(priority=600))
        fabric.submit(*[job(priority=900)] * 120)
        assert len(fabric.claim(node, 60)) == 60
        recover.sweep(fabric.db)
        reprioritise(fabric, old, BACKGROUND, 900)
        fabric.assert_in_order()
        fabric.sql("UPDATE node SET slots = 100")
        assert fabric.claim_one(node).job_id == old

    def test_another_class_counts_in_lists_and_counts(self, fabric: Fabric) -> None:
        job_id = fabric.submit_one()
        changed = reprioritise(fabric, job_id, FOREGROUND)
        assert changed.detail.job.priority_class == changed.detail.spec.effective_class == FOREGROUND
        assert (changed.detail.job.priority, changed.ready) == (1000, FOREGROUND)
        fabric.assert_in_order()

    def test_the_tier_caps_what_counts(self, fabric: Fabric) -> None:
        tenant = fabric.add_tenant("small", tier="medium")
        (job_id,) = fabric.submit(job(priority_class=BEST_EFFORT), tenant=tenant)
        spec = reprioritise(fabric, job_id, FOREGROUND, 4000).detail.spec
        assert (spec.effective_class, spec.effective_priority) == (BACKGROUND, 500)

    def test_a_number_of_another_class_is_refused(self, fabric: Fabric) -> None:
        job_id = fabric.submit_one()
        with pytest.raises(Invalid, match="1500 is no priority of the class background: that has 500 to 999"):
            reprioritise(fabric, job_id, BACKGROUND, 1500)

    def test_a_job_that_runs_has_none(self, fabric: Fabric, node: Node) -> None:
        job_id = fabric.submit_one()
        fabric.run(node)
        with pytest.raises(StateConflict, match="The job is running: a priority counts only while a job waits"):
            reprioritise(fabric, job_id, FOREGROUND)

    def test_a_held_job_waits_under_its_new_key(self, fabric: Fabric, node: Node) -> None:
        job_id = fabric.submit_one()
        hold(fabric, job_id)
        assert reprioritise(fabric, job_id, FOREGROUND).ready is None
        recover.sweep(fabric.db)
        assert fabric.claim(node) == []
        release(fabric, job_id)
        assert fabric.claim_one(node).job_id == job_id
        fabric.assert_in_order()

    def test_the_cap_on_different_shapes_holds(self, fabric: Fabric) -> None:
        fabric.settings = fabric.settings.__class__(live_keys_per_tenant=2)
        job_id = fabric.submit_one()
        fabric.submit(job(priority=700))
        reprioritise(fabric, job_id, BACKGROUND, 700)
        with pytest.raises(Refused, match="More than 2 different combinations"):
            reprioritise(fabric, job_id, BACKGROUND, 800)

    def test_its_shape_stays(self, fabric: Fabric) -> None:
        (job_id,) = fabric.submit(job(resources=share(2, 512, 1, 16 * 10**9, "T4")))
        shape = "SELECT cpus_milli, memory_bytes, gpus, gpu_memory_bytes, gpu_model, runner, external_ok FROM {}"
        before = fabric.one(shape.format("scheduling_key"))
        reprioritise(fabric, job_id, FOREGROUND)
        key = fabric.row(job_id).key_id
        assert fabric.one(shape.format("scheduling_key") + " WHERE id = %s", key) == before


class TestRequeue:
    def test_a_running_job_is_stopped_and_waits_again_uncharged(self, fabric: Fabric, node: Node) -> None:
        job_id = fabric.submit_one()
        taken = fabric.run(node)
        changed = requeue(fabric, job_id, reason="stuck")
        assert (changed.detail.job.state, changed.detail.job.stop_cause) == (JobState.STOPPING, StopCause.REQUEUE)
        assert (changed.wake, changed.detail.job.stop_by) == ((node.id,), "ann")
        assert fabric.renew(node, taken).stops == {taken.attempt_id: (StopCause.REQUEUE, taken.grace_s)}
        fabric.finish(taken, STOPPED)
        row = fabric.row(job_id)
        assert (row.state, row.ready, row.reason, row.failures) == (JobState.PENDING, True, "requeued", 0)
        (attempt,) = fabric.attempts(job_id)
        assert (attempt.outcome, attempt.stopped_by) == ("requeued", "ann")
        assert fabric.claim_one(node).attempt == 2
        fabric.assert_in_order()

    def test_it_may_wait_held(self, fabric: Fabric, node: Node) -> None:
        job_id = fabric.submit_one()
        taken = fabric.run(node)
        requeue(fabric, job_id, OPS, reason="look at it", hold=True)
        fabric.finish(taken, STOPPED)
        detail = job_detail(fabric.db, fabric.tenant, job_id)
        assert (detail.job.reason, detail.job.message) == ("hold", "held by operator ops: look at it")
        assert detail.hold is not None and detail.hold.operator
        assert fabric.claim(node) == []
        with pytest.raises(Refused):
            release(fabric, job_id)
        assert release(fabric, job_id, OPS).detail.job.reason == "requeued"
        assert fabric.claim_one(node).attempt == 2
        fabric.assert_in_order()

    def test_held_also_when_its_node_is_lost_meanwhile(self, fabric: Fabric, node: Node) -> None:
        job_id = fabric.submit_one()
        taken = fabric.run(node)
        requeue(fabric, job_id, hold=True)
        fabric.expire(taken)
        fabric.reap()
        assert fabric.row(job_id).reason == "hold"
        assert release(fabric, job_id).detail.job.reason == "lost"
        fabric.assert_in_order()

    def test_a_release_meanwhile_takes_the_hold_back(self, fabric: Fabric, node: Node) -> None:
        job_id = fabric.submit_one()
        taken = fabric.run(node)
        requeue(fabric, job_id, hold=True)
        release(fabric, job_id)
        fabric.finish(taken, STOPPED)
        assert fabric.row(job_id).reason == "requeued"

    def test_an_end_before_the_signal_stays(self, fabric: Fabric, node: Node) -> None:
        job_id = fabric.submit_one()
        taken = fabric.run(node)
        requeue(fabric, job_id, hold=True)
        fabric.finish(taken)
        assert fabric.state(job_id) == JobState.COMPLETED
        fabric.assert_in_order()

    def test_a_pending_job_stays_as_it_is(self, fabric: Fabric) -> None:
        job_id = fabric.submit_one()
        before = fabric.row(job_id)
        assert (requeue(fabric, job_id).wake, fabric.row(job_id)) == ((), before)
        assert requeue(fabric, job_id, hold=True).detail.job.reason == "hold"

    def test_what_has_ended_is_not_revived(self, fabric: Fabric, node: Node) -> None:
        job_id = fabric.submit_one()
        fabric.finish(fabric.run(node), Ending(exit_code=1))
        with pytest.raises(StateConflict) as refused:
            requeue(fabric, job_id)
        assert refused.value.message == (
            f"The job has failed: an ended job is not revived; `cfab resubmit {job_id}` submits the same anew."
        )

    def test_every_other_cause_is_stronger(self, fabric: Fabric, node: Node) -> None:
        for cause in (StopCause.DRAIN, StopCause.PREEMPT, StopCause.TIME_LIMIT, StopCause.CANCEL):
            job_id = fabric.submit_one()
            fabric.run(node)
            requeue(fabric, job_id)
            request_stop(fabric.db, fabric.tenant, job_id, "x", None, cause)
            assert fabric.row(job_id).stop_cause == cause
            if cause == StopCause.CANCEL:
                with pytest.raises(StateConflict, match="is being cancelled"):
                    requeue(fabric, job_id)
            else:
                requeue(fabric, job_id)
            assert fabric.row(job_id).stop_cause == cause


class TestBesideOthers:
    """Each interleaving is forced: one transaction stops half-way, the other meets it there."""

    def claim(self, fabric: Fabric, tx: Any, node: Node) -> list[UUID]:
        return [one.job_id for one in claim_in(tx, Claimer(node.id, node.incarnation, node.runners), 10)]

    def changes(self, fabric: Fabric) -> dict[str, Callable[[Any, UUID], Changed]]:
        wanted = Wanted(FOREGROUND)
        return {
            "hold": lambda tx, job_id: control.hold_in(tx, ANN, job_id),
            "reprioritise": lambda tx, job_id: control.reprioritise_in(tx, fabric.settings, ANN, job_id, wanted),
        }

    @pytest.mark.parametrize("name", ["hold", "reprioritise"])
    def test_a_claim_that_was_first_wins(self, fabric: Fabric, node: Node, name: str) -> None:
        job_id = fabric.submit_one()
        change = self.changes(fabric)[name]

        def act() -> FabricError | Changed:
            try:
                with fabric.db.transaction("control") as tx:
                    return change(tx, job_id)
            except FabricError as exc:
                return exc

        with fabric.db.transaction("claim") as tx:
            assert self.claim(fabric, tx, node) == [job_id]
            with in_thread(act) as late:
                until(lambda: fabric.blocked() == 1)
                # The claim commits while the change waits for the row.
                tx.run("COMMIT")
                refused = late.result(30)
        assert isinstance(refused, StateConflict)
        assert fabric.state(job_id) == JobState.STARTING
        fabric.assert_in_order()

    @pytest.mark.parametrize("name", ["hold", "reprioritise"])
    def test_a_claim_that_comes_while_it_is_under_way_passes_the_job_over(
        self, fabric: Fabric, node: Node, name: str
    ) -> None:
        job_id, other = fabric.submit(job(), job())
        with fabric.db.transaction("control") as tx:
            self.changes(fabric)[name](tx, job_id)
            assert [one.job_id for one in fabric.claim(node)] == [other]
        left = [one.job_id for one in fabric.claim(node)]
        assert left == ([] if name == "hold" else [job_id])
        fabric.assert_in_order()

    def test_a_claim_that_chose_the_old_key_does_not_take_a_job_that_has_moved(
        self, fabric: Fabric, node: Node
    ) -> None:
        job_id, other = fabric.submit(job(), job())
        old_key = fabric.row(job_id).key_id
        with fabric.db.transaction("claim") as tx:
            seen = tx.rows("SELECT id FROM job WHERE key_id = %(k)s AND state = 0 AND ready", {"k": old_key})
            assert len(seen) == 2
            reprioritise(fabric, job_id, FOREGROUND)
            taken = tx.rows(
                "SELECT * FROM take_jobs(%(k)s::bigint[], '{2}'::int[], '{0}'::bigint[], %(n)s, NULL)",
                {"k": [old_key], "n": node.id},
            )
            assert [row.id for row in taken] == [other]
            tx.run("ROLLBACK")

    def test_a_release_and_a_cancel_at_once_leave_one_answer(self, fabric: Fabric, node: Node) -> None:
        for _ in range(10):
            job_id = fabric.submit_one()
            hold(fabric, job_id)

            def act(place: int, job_id: UUID = job_id) -> str:
                try:
                    if place == 0:
                        return release(fabric, job_id).detail.job.state.word
                    return cancel_pending(fabric.db, fabric.tenant, job_id).state.word
                except StateConflict:
                    return "refused"

            released, cancelled = at_once(2, act)
            assert cancelled == "cancelled"
            assert released in {"pending", "refused"}
            assert fabric.state(job_id) == JobState.CANCELLED
            assert fabric.claim(node) == []
        fabric.assert_in_order()

    def test_a_release_waits_for_a_cancel_and_then_revives_nothing(self, fabric: Fabric, node: Node) -> None:
        job_id = fabric.submit_one()
        hold(fabric, job_id)

        def late() -> bool:
            with pytest.raises(StateConflict):
                release(fabric, job_id)
            return True

        with fabric.db.transaction("stop") as tx:
            tx.run("UPDATE job SET state = 6, ready = false, reason = NULL, stop_cause = 4, finished_at = now() WHERE "
                   "id = %(id)s", {"id": job_id})  # fmt: skip
            with in_thread(late) as done:
                until(lambda: fabric.blocked() == 1)
                tx.run("COMMIT")
                assert done.result(30)
        assert fabric.state(job_id) == JobState.CANCELLED

    def test_a_sweep_beside_a_release_never_hides_the_job(self, fabric: Fabric, node: Node) -> None:
        for _ in range(20):
            job_id = fabric.submit_one()
            hold(fabric, job_id)

            def act(place: int, job_id: UUID = job_id) -> object:
                return recover.sweep(fabric.db) if place else release(fabric, job_id)

            at_once(2, act)
            fabric.assert_in_order()
            assert fabric.claim_one(node).job_id == job_id

    def test_many_changes_of_the_same_jobs_at_once_never_deadlock(self, fabric: Fabric, node: Node) -> None:
        sent = fabric.submit(*[job()] * 20)

        def act(place: int) -> int:
            done = 0
            for job_id in sent if place % 2 else sent[::-1]:
                try:
                    if place < 2:
                        hold(fabric, job_id)
                        release(fabric, job_id)
                    elif place < 4:
                        reprioritise(fabric, job_id, FOREGROUND if place == 2 else BEST_EFFORT)
                    else:
                        fabric.claim(node, 1)
                    done += 1
                except StateConflict:
                    pass
            return done

        at_once(6, act)
        fabric.assert_in_order()
        with fabric.db.transaction("read") as tx:
            held = tx.rows("SELECT id FROM job WHERE state = 0 AND reason = 'hold'")
        for row in held:
            release(fabric, row[0])
        while fabric.claim(node):
            pass
        assert {fabric.state(job_id) for job_id in sent} == {JobState.STARTING}
        fabric.assert_in_order()
