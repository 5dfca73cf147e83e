"""Gangs on a real database: members start together or not at all and end by themselves; the job ends with the last."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from app.domain.errors import QuotaExceeded
from app.domain.policy import Ending
from app.domain.states import JobState, StopCause
from app.services import recover
from app.services.gangs import gates, miss_barrier
from app.services.nodes import Orphan
from app.services.report import Answer, finish
from app.services.stop import request_stop
from scheduler.plan import run_plan
from tests.factories import Fabric, at_once, finished, gpu, in_thread, raw, share, until
from tests.gangs import assemble, assemble_again, gang_node, leader_of, place_on, prepare

FAILED = Ending(exit_code=3)
STOPPED = Ending(signal=15, stopped=True)
LOST = Ending(lost=True)


def outcomes(fabric: Fabric, job_id: object, number: int = 1) -> list[str | None]:
    return [
        row.outcome
        for row in fabric.all(
            "SELECT outcome FROM attempt WHERE job_id = %s AND number = %s ORDER BY member", job_id, number
        )
    ]


class TestPlacing:
    def test_no_node_claims_a_gang_by_itself(self, fabric: Fabric) -> None:
        node = gang_node(fabric, "a")
        fabric.submit_one(members=2)
        assert fabric.claim(node) == []

    def test_gives_each_member_an_attempt_of_its_own_under_one_number(self, fabric: Fabric) -> None:
        members = assemble(fabric, gang_node(fabric, "a"), gang_node(fabric, "b"))
        assert [one.gang.member for one in members if one.gang] == [0, 1]
        assert {one.attempt for one in members} == {1}
        assert len({one.attempt_id for one in members}) == 2
        assert leader_of(members) == members[0].attempt_id == fabric.row(members[0].job_id).attempt_id
        fabric.assert_in_order()

    def test_is_refused_on_a_node_that_takes_no_gangs(self, fabric: Fabric) -> None:
        fabric.add_node("plain")
        gang_node(fabric, "a")
        job_id = fabric.submit_one(members=2)
        assert "gang-process" in place_on(fabric, job_id, "a", "plain").refusal
        assert fabric.state(job_id) == JobState.PENDING

    def test_counts_all_members_against_the_quota(self, fabric: Fabric) -> None:
        tenant = fabric.add_tenant(quota_gpus=3)
        fabric.submit_one(tenant, members=3, resources=share(gpus=1))
        with pytest.raises(QuotaExceeded, match="asks for 4 GPUs for its 4 members"):
            fabric.submit_one(tenant, members=4, resources=share(gpus=1))
        few = fabric.add_tenant(quota_jobs=2)
        with pytest.raises(QuotaExceeded):
            fabric.submit_one(few, members=3)


class TestPlans:
    def test_start_the_first_of_two_gangs_and_keep_room_for_the_second_behind_it(self, fabric: Fabric) -> None:
        for name, numbers in (("a", (1, 2)), ("b", (3, 4))):
            gang_node(fabric, name, [gpu(n) for n in numbers], slots=2)
        big = fabric.submit_one(members=4, resources=share(gpus=1))
        small = fabric.submit_one(members=2, resources=share(gpus=1))
        assert run_plan(fabric.db, fabric.settings).detail["placed"] == 1
        assert (fabric.state(big), fabric.state(small)) == (JobState.STARTING, JobState.PENDING)
        assert fabric.value("SELECT count(*) FROM reservation WHERE job_id = %s", small) == 2
        fabric.assert_in_order()

    def test_are_made_again_after_a_slow_one_though_the_task_looks_in_often(self, fabric: Fabric) -> None:
        run_plan(fabric.db, fabric.settings)
        fabric.sql("""UPDATE task_run SET detail = detail || '{"plan_s": 0.1}' WHERE name = 'plan'""")
        gang_node(fabric, "a")
        job_id = fabric.submit_one(members=2)

        def starts() -> bool:
            run_plan(fabric.db, fabric.settings)
            return fabric.state(job_id) == JobState.STARTING

        assert not starts(), "a slow planner rests"
        until(starts, 30)


class TestTheBarrier:
    def test_opens_when_the_last_member_is_prepared(self, fabric: Fabric) -> None:
        members = assemble(fabric, gang_node(fabric, "a"), gang_node(fabric, "b"))
        assert prepare(fabric, members[1]) == {members[1].attempt_id}
        (gate,) = gates(fabric.db, [leader_of(members)]).values()
        assert (gate.is_open, list(gate.missing)) == (False, [0])
        prepare(fabric, members[0])
        (gate,) = gates(fabric.db, [leader_of(members)]).values()
        assert (gate.is_open, gate.port) == (True, 29500)
        assert [peer.node_id for peer in gate.peers] == ["a", "b"]

    def test_is_missed_when_a_member_is_late_and_the_job_waits_again_uncharged(self, fabric: Fabric) -> None:
        members = assemble(fabric, gang_node(fabric, "a"), gang_node(fabric, "b"))
        leader = leader_of(members)
        prepare(fabric, members[0])
        assert miss_barrier(fabric.db, [leader], barrier_s=60.0) == {}
        assert miss_barrier(fabric.db, [leader], barrier_s=0.0) == {leader: ["a", "b"]}
        assert prepare(fabric, members[1]) == set()
        for one in members:
            fabric.finish(one, Ending(started=False, stopped=True))
        row = fabric.row(members[0].job_id)
        assert (row.state, row.reason, row.failures) == (JobState.PENDING, "node_fault", 0)
        assert "member 1 (b) of 2 were not ready" in row.message.replace("was", "were")
        fabric.assert_in_order()

    def test_is_not_missed_once_all_are_prepared_however_late(self, fabric: Fabric) -> None:
        members = assemble(fabric, gang_node(fabric, "a"), gang_node(fabric, "b"))
        prepare(fabric, *members)
        assert miss_barrier(fabric.db, [leader_of(members)], barrier_s=0.0) == {}

    def test_either_opens_or_is_missed_when_both_happen_at_once(self, fabric: Fabric) -> None:
        nodes = [gang_node(fabric, "a"), gang_node(fabric, "b")]
        seen = set()
        for _ in range(20):
            members = assemble(fabric, *nodes)
            leader = leader_of(members)
            prepare(fabric, members[0])
            prepared, missed = at_once(
                2,
                lambda turn, m=members, to=leader: (  # type: ignore[misc]
                    bool(miss_barrier(fabric.db, [to], 0.0)) if turn else bool(prepare(fabric, m[1]))
                ),
            )
            assert prepared != missed
            (gate,) = gates(fabric.db, [leader]).values()
            assert gate.is_open == prepared
            seen.add(prepared)
            for one in members:
                fabric.finish(one, Ending(started=False, stopped=True))
            request_stop(fabric.db, fabric.tenant, members[0].job_id, "test")
        fabric.assert_in_order()

    def test_no_one_passes_a_gate_of_an_attempt_that_is_over(self, fabric: Fabric) -> None:
        nodes = [gang_node(fabric, "a"), gang_node(fabric, "b")]
        members = assemble(fabric, *nodes)
        for one in members:
            fabric.finish(one, LOST)
        assert gates(fabric.db, [leader_of(members)]) == {}
        assert prepare(fabric, *members) == set()


class TestTheEnd:
    def test_comes_with_the_last_member_when_all_exit_with_0(self, fabric: Fabric) -> None:
        members = assemble(fabric, gang_node(fabric, "a"), gang_node(fabric, "b"), gang_node(fabric, "c"))
        fabric.start(*members)
        assert fabric.state(members[0].job_id) == JobState.RUNNING
        # The leader first: the job waits for the others all the same.
        for one in members[:2]:
            assert fabric.finish(one) == Answer.ACCEPTED
            assert fabric.state(one.job_id) == JobState.RUNNING
            fabric.assert_in_order()
        assert fabric.finish(members[2]) == Answer.ACCEPTED
        row = fabric.row(members[0].job_id)
        assert (row.state, row.exit_code, row.message) == (JobState.COMPLETED, 0, "")
        assert fabric.all("SELECT 1 FROM allocation") == []
        fabric.assert_in_order()

    def test_of_one_member_gives_its_place_back_at_once(self, fabric: Fabric) -> None:
        node = gang_node(fabric, "a", gpus=[gpu(1)])
        members = assemble(fabric, node, gang_node(fabric, "b", slots=1))
        assert place_on(fabric, fabric.submit_one(), "b").refusal
        fabric.finish(members[1])
        assert place_on(fabric, fabric.submit_one(), "b").nodes == {"b"}

    def test_of_a_member_that_fails_stops_the_others_and_is_the_jobs(self, fabric: Fabric) -> None:
        a, b = gang_node(fabric, "a"), gang_node(fabric, "b")
        members = assemble(fabric, a, b)
        fabric.start(*members)
        result = fabric.finish_all(finished(members[1], FAILED, message="exited with 3"))
        assert result.wake == {"a"}
        answer = fabric.renew(a, members[0])
        assert list(answer.broken) == [members[0].attempt_id] and not answer.stops
        assert fabric.state(members[0].job_id) == JobState.RUNNING
        fabric.finish(members[0], STOPPED, message="ended by SIGTERM")
        row = fabric.row(members[0].job_id)
        assert (row.state, row.exit_code) == (JobState.FAILED, 3)
        assert row.message == "member 1 on b: exited with 3"
        assert outcomes(fabric, row.id) == ["cancelled", "failed"]
        fabric.assert_in_order()

    def test_spends_one_retry_for_all_and_runs_again_under_the_next_number(self, fabric: Fabric) -> None:
        a, b = gang_node(fabric, "a"), gang_node(fabric, "b")
        members = assemble(fabric, a, b, max_retries=1)
        fabric.start(*members)
        for one in members:
            fabric.finish(one, FAILED)
        row = fabric.row(members[0].job_id)
        assert (row.state, row.reason, row.failures) == (JobState.PENDING, "backoff", 1)
        fabric.due()
        recover.promote(fabric.db)
        again = assemble_again(fabric, row.id, a, b)
        assert {one.attempt for one in again} == {2}
        for one in again:
            fabric.finish(one, FAILED)
        assert fabric.state(row.id) == JobState.FAILED
        fabric.assert_in_order()

    def test_of_several_members_in_one_report_is_one_end(self, fabric: Fabric) -> None:
        node = gang_node(fabric, "a")
        members = assemble(fabric, node, node, node)
        result = fabric.finish_all(*(finished(one, FAILED if one is members[1] else None) for one in members))
        assert set(result.answers.values()) == {Answer.ACCEPTED}
        assert fabric.state(members[0].job_id) == JobState.FAILED
        assert outcomes(fabric, members[0].job_id) == ["completed", "failed", "completed"]
        fabric.assert_in_order()

    def test_told_again_is_known_and_told_by_a_stranger_changes_nothing(self, fabric: Fabric) -> None:
        members = assemble(fabric, gang_node(fabric, "a"), gang_node(fabric, "b"))
        assert fabric.finish(members[1]) == Answer.ACCEPTED
        assert fabric.finish(members[1]) == Answer.KNOWN
        assert fabric.finish(replace(members[0], token=uuid4())) == Answer.STALE
        assert fabric.finish(members[0]) == Answer.ACCEPTED
        assert fabric.finish(members[0], FAILED) == Answer.KNOWN
        assert fabric.state(members[0].job_id) == JobState.COMPLETED
        fabric.assert_in_order()

    def test_is_read_again_when_another_member_ended_while_this_one_waited_for_the_lock(self, fabric: Fabric) -> None:
        """Forced: both ends find the other member running, and the second must not believe what it saw first."""
        members = assemble(fabric, gang_node(fabric, "a"), gang_node(fabric, "b"))
        with raw(fabric.settings.database_url) as other:
            other.cursor().execute("SELECT 1 FROM job WHERE id = %s FOR UPDATE", (str(members[0].job_id),))
            with (
                in_thread(lambda: fabric.finish(members[0])) as first,
                in_thread(lambda: fabric.finish(members[1])) as second,
            ):
                until(lambda: fabric.blocked() == 2)
                other.commit()
                assert {first.result(30), second.result(30)} == {Answer.ACCEPTED}
        assert fabric.state(members[0].job_id) == JobState.COMPLETED
        fabric.assert_in_order()

    def test_of_the_same_member_told_twice_at_once_is_counted_once(self, fabric: Fabric) -> None:
        """Forced: both find the member running before they wait for its job, and one of them is wrong by then."""
        members = assemble(fabric, gang_node(fabric, "a"), gang_node(fabric, "b"))
        with raw(fabric.settings.database_url) as other:
            other.cursor().execute("SELECT 1 FROM job WHERE id = %s FOR UPDATE", (str(members[0].job_id),))
            with (
                in_thread(lambda: fabric.finish(members[1], FAILED)) as first,
                in_thread(lambda: fabric.finish(members[1], FAILED)) as second,
            ):
                until(lambda: fabric.blocked() == 2)
                other.commit()
                assert sorted([first.result(30), second.result(30)]) == [Answer.ACCEPTED, Answer.KNOWN]
        fabric.assert_in_order()


class TestALostMember:
    def test_loses_the_gang_uncharged_though_its_peers_failed_first(self, fabric: Fabric) -> None:
        a, b = gang_node(fabric, "a"), gang_node(fabric, "b")
        members = assemble(fabric, a, b)
        fabric.start(*members)
        fabric.finish(members[0], FAILED, message="connection reset by peer")
        row = fabric.row(members[0].job_id)
        assert row.state == JobState.RUNNING, "another attempt must not begin while member 1 may still run"
        fabric.expire(members[1])
        done = fabric.reap()
        assert done.detail["reaped"] == 1
        row = fabric.row(members[0].job_id)
        assert (row.state, row.reason, row.failures, row.lost_nodes) == (JobState.PENDING, "lost", 0, ["b"])
        fabric.assert_in_order()

    def test_has_the_others_stopped_and_wakes_their_nodes(self, fabric: Fabric) -> None:
        a, b = gang_node(fabric, "a"), gang_node(fabric, "b")
        members = assemble(fabric, a, b)
        fabric.start(*members)
        fabric.expire(members[1])
        assert fabric.reap().wake == {"a"}
        assert list(fabric.renew(a, members[0]).broken) == [members[0].attempt_id]
        assert fabric.finish(members[1]) == Answer.STALE
        fabric.finish(members[0], STOPPED)
        assert fabric.row(members[0].job_id).reason == "lost"
        assert outcomes(fabric, members[0].job_id) == ["cancelled", "lost"]

    def test_ends_as_cancelled_when_a_cancel_was_asked(self, fabric: Fabric) -> None:
        members = assemble(fabric, gang_node(fabric, "a"), gang_node(fabric, "b"))
        fabric.start(*members)
        request_stop(fabric.db, fabric.tenant, members[0].job_id, "user")
        fabric.expire()
        fabric.reap()
        assert fabric.state(members[0].job_id) == JobState.CANCELLED
        fabric.assert_in_order()

    def test_counts_one_node_an_attempt_towards_poison(self, fabric: Fabric) -> None:
        nodes = [gang_node(fabric, name) for name in "abcdef"]
        members = assemble(fabric, *nodes)
        fabric.start(*members)
        for one in members:
            recover.hand_back(fabric.db, [Orphan(one.attempt_id, one.token, True)], "gone", uncharged=False)
        row = fabric.row(members[0].job_id)
        assert (row.state, len(row.lost_nodes)) == (JobState.PENDING, 1)

    def test_handed_back_before_it_ran_costs_nothing_at_all(self, fabric: Fabric) -> None:
        a, b = gang_node(fabric, "a"), gang_node(fabric, "b")
        members = assemble(fabric, a, b)
        ended = recover.hand_back(fabric.db, [Orphan(members[0].attempt_id, members[0].token, False)], "restarted")
        assert ended.wake == {"b"}
        fabric.finish(members[1], Ending(started=False, stopped=True))
        row = fabric.row(members[0].job_id)
        assert (row.state, row.reason, row.lost_nodes, row.failures) == (JobState.PENDING, "lost", [], 0)


class TestStops:
    def test_tell_every_node_and_every_member(self, fabric: Fabric) -> None:
        a, b = gang_node(fabric, "a"), gang_node(fabric, "b")
        members = assemble(fabric, a, b)
        fabric.start(*members)
        _job, wake = request_stop(fabric.db, fabric.tenant, members[0].job_id, "user")
        assert wake == ["a", "b"]
        for node, one in zip((a, b), members, strict=True):
            assert fabric.renew(node, one).stops[one.attempt_id][0] == StopCause.CANCEL
            fabric.finish(one, STOPPED)
        assert fabric.state(members[0].job_id) == JobState.CANCELLED
        fabric.assert_in_order()

    def test_of_a_gang_that_has_partly_ended_still_cancel_it(self, fabric: Fabric) -> None:
        members = assemble(fabric, gang_node(fabric, "a"), gang_node(fabric, "b"))
        fabric.start(*members)
        fabric.finish(members[0])
        _job, wake = request_stop(fabric.db, fabric.tenant, members[0].job_id, "user")
        assert wake == ["b"]
        fabric.finish(members[1], Ending(exit_code=0))
        assert fabric.state(members[0].job_id) == JobState.CANCELLED

    def test_for_another_job_charge_nobody_although_a_peer_failed_of_them(self, fabric: Fabric) -> None:
        members = assemble(fabric, gang_node(fabric, "a"), gang_node(fabric, "b"))
        fabric.start(*members)
        request_stop(fabric.db, fabric.tenant, members[0].job_id, "planner", cause=StopCause.PREEMPT)
        fabric.finish(members[0], FAILED)
        fabric.finish(members[1], STOPPED)
        row = fabric.row(members[0].job_id)
        assert (row.state, row.reason, row.failures) == (JobState.PENDING, "preempted", 0)

    def test_by_a_drain_of_one_node_stop_the_whole_gang(self, fabric: Fabric) -> None:
        a, b = gang_node(fabric, "a"), gang_node(fabric, "b")
        members = assemble(fabric, a, b)
        fabric.start(*members)
        fabric.sql(
            """UPDATE node SET state = 'draining', drain_at = now(), drain_deadline = now(), drain_reason = 'x',
                drain_by = 'op' WHERE id = 'b'"""
        )
        assert recover.end_drains(fabric.db).wake == {"a", "b"}
        for node, one in zip((a, b), members, strict=True):
            assert fabric.renew(node, one).stops[one.attempt_id][0] == StopCause.DRAIN
            fabric.finish(one, STOPPED)
        assert fabric.row(members[0].job_id).reason == "drained"
        fabric.assert_in_order()

    def test_before_the_members_were_delivered_end_it(self, fabric: Fabric) -> None:
        a, b = gang_node(fabric, "a"), gang_node(fabric, "b")
        job_id = fabric.submit_one(members=2)
        place_on(fabric, job_id, "a", "b")
        request_stop(fabric.db, fabric.tenant, job_id, "user")
        for node in (a, b):
            recover.hand_back(fabric.db, fabric.renew(node).orphans, "not here")
        assert fabric.state(job_id) == JobState.CANCELLED
        fabric.assert_in_order()

    def test_members_that_were_not_delivered_of_a_broken_gang_are_handed_back(self, fabric: Fabric) -> None:
        a, b = gang_node(fabric, "a"), gang_node(fabric, "b")
        job_id = fabric.submit_one(members=2)
        place_on(fabric, job_id, "a", "b")
        (mine,) = fabric.claim(a)
        fabric.finish(mine, Ending(started=False, node_fault=True))
        recover.hand_back(fabric.db, fabric.renew(b).orphans, "not here")
        assert fabric.state(job_id) == JobState.PENDING
        fabric.assert_in_order()


def test_the_start_of_a_member_that_has_ended_is_not_taken_down(fabric: Fabric) -> None:
    members = assemble(fabric, gang_node(fabric, "a"), gang_node(fabric, "b"))
    assert fabric.start(*members) == {one.attempt_id for one in members}
    fabric.finish(members[0])
    assert fabric.start(*members) == {members[1].attempt_id}
    assert fabric.row(members[0].job_id).started_at <= datetime.now(UTC)


def test_ends_of_plain_jobs_and_of_gangs_go_together(fabric: Fabric) -> None:
    node = gang_node(fabric, "a")
    plain = fabric.submit_one()
    (mine,) = fabric.claim(node)
    members = assemble(fabric, node, node)
    result = finish(fabric.db, [finished(mine), finished(members[0]), finished(members[1], FAILED)])
    assert set(result.answers.values()) == {Answer.ACCEPTED}
    assert (fabric.state(plain), fabric.state(members[0].job_id)) == (JobState.COMPLETED, JobState.FAILED)
    fabric.assert_in_order()
