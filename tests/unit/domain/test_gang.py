"""What the end of one member means for the gang, and what members find in their environment."""

from __future__ import annotations

from itertools import product
from uuid import UUID

import pytest

from app.domain.gang import (
    GRAVITY,
    GangPlace,
    Gate,
    Peer,
    environment_of,
    gang_verdict,
    gravest,
    member_outcome,
    runner_of_key,
)
from app.domain.policy import NODE_FAULT_DELAY, Ending
from app.domain.states import JobState, Outcome, Reason, StopCause

FAILED = Ending(exit_code=1)


def gate(*prepared: bool, broken: str | None = None) -> Gate:
    peers = [Peer(number, f"n{number}", f"192.0.2.{number}", done) for number, done in enumerate(prepared)]
    return Gate(peers, 29500, broken, 0.0)


class TestTheBarrier:
    def test_opens_when_all_are_prepared(self) -> None:
        assert gate(True, True).is_open
        assert not gate(True, False, True).is_open
        assert gate(True, False, False).missing == [1, 2]

    def test_never_opens_for_a_broken_gang(self) -> None:
        assert not gate(True, True, broken="member 1 is lost").is_open


class TestTheEnvironment:
    def test_is_that_of_torchrun_with_one_process_a_node(self) -> None:
        env = environment_of(GangPlace(3, 2, UUID(int=7)), gate(True, True, True), gpus=2)
        assert env["MASTER_ADDR"] == "192.0.2.0" and env["MASTER_PORT"] == "29500"
        assert (env["RANK"], env["WORLD_SIZE"], env["LOCAL_RANK"], env["NODE_RANK"]) == ("2", "3", "0", "2")
        assert (env["PET_NNODES"], env["PET_NODE_RANK"], env["PET_NPROC_PER_NODE"]) == ("3", "2", "2")
        assert env["CFAB_GANG_ADDRESSES"] == "192.0.2.0,192.0.2.1,192.0.2.2"
        assert all(isinstance(value, str) for value in env.values())


def test_keys_of_gangs_name_a_runner_that_only_nodes_for_gangs_have() -> None:
    assert runner_of_key("process", 1) == "process"
    assert runner_of_key("process", 2) == "gang-process"


class TestAMembersEnd:
    def test_is_its_own_while_nothing_is_wrong(self) -> None:
        assert member_outcome(Ending(exit_code=0), None, broken=False) == Outcome.COMPLETED
        assert member_outcome(FAILED, None, broken=False) == Outcome.FAILED
        assert member_outcome(FAILED, None, broken=True) == Outcome.FAILED

    def test_is_cancelled_when_it_was_stopped_with_its_gang(self) -> None:
        assert member_outcome(Ending(signal=15, stopped=True), None, broken=True) == Outcome.CANCELLED

    def test_is_lost_even_of_a_broken_gang(self) -> None:
        assert member_outcome(Ending(lost=True, stopped=True), None, broken=True) == Outcome.LOST

    @pytest.mark.parametrize(
        ("cause", "outcome"),
        [
            (StopCause.PREEMPT, Outcome.PREEMPTED),
            (StopCause.DRAIN, Outcome.DRAINED),
            (StopCause.TIME_LIMIT, Outcome.TIMED_OUT),
            (StopCause.CANCEL, Outcome.CANCELLED),
        ],
    )
    def test_is_the_stop_although_it_failed_of_its_peers_before_it_got_the_signal(
        self, cause: StopCause, outcome: Outcome
    ) -> None:
        assert member_outcome(FAILED, cause, broken=False) == outcome
        assert member_outcome(Ending(exit_code=0), cause, broken=False) in {Outcome.COMPLETED, Outcome.CANCELLED}


class TestTheGangsEnd:
    def test_is_the_gravest_of_all_ends_whatever_came_first(self) -> None:
        assert len(set(GRAVITY)) == len(Outcome)
        for one, other in product(Outcome, repeat=2):
            worst = min(one, other, key=GRAVITY.index)
            assert {0: one, 1: other}[gravest({0: one, 1: other})] == worst

    def test_charges_nobody_for_a_host_that_died_though_the_peers_failed_first(self) -> None:
        verdict = gang_verdict({0: Outcome.FAILED, 1: Outcome.LOST, 2: Outcome.CANCELLED}, None, 0, 0, 1)
        assert (verdict.state, verdict.reason, verdict.spends_retry) == (JobState.PENDING, Reason.LOST, False)

    def test_fails_the_job_when_it_loses_its_fifth_node(self) -> None:
        assert gang_verdict({0: Outcome.LOST, 1: Outcome.FAILED}, None, 0, 9, 5).state == JobState.FAILED

    def test_completes_only_when_all_did(self) -> None:
        assert gang_verdict({0: Outcome.COMPLETED, 1: Outcome.COMPLETED}, None, 0, 0).state == JobState.COMPLETED
        assert gang_verdict({0: Outcome.COMPLETED, 1: Outcome.FAILED}, None, 0, 0).state == JobState.FAILED

    def test_spends_one_retry_however_many_members_failed(self) -> None:
        verdict = gang_verdict({0: Outcome.FAILED, 1: Outcome.FAILED}, None, 0, 1)
        assert (verdict.state, verdict.spends_retry) == (JobState.PENDING, True)

    def test_is_cancelled_under_a_cancel_whatever_else(self) -> None:
        for outcome in Outcome:
            assert gang_verdict({0: outcome}, StopCause.CANCEL, 0, 0).state == JobState.CANCELLED

    def test_waits_again_uncharged_when_the_barrier_was_missed(self) -> None:
        verdict = gang_verdict({0: Outcome.CANCELLED, 1: Outcome.CANCELLED}, None, 0, 0)
        assert (verdict.state, verdict.reason) == (JobState.PENDING, Reason.NODE_FAULT)
        assert verdict.delay == NODE_FAULT_DELAY and not verdict.spends_retry
        assert gang_verdict({0: Outcome.CANCELLED}, None, 0, 0, uncharged=2).delay == 4 * NODE_FAULT_DELAY

    def test_never_retries_what_was_refused(self) -> None:
        assert gang_verdict({0: Outcome.REFUSED, 1: Outcome.LOST}, None, 0, 9).state == JobState.FAILED
