"""What an ended attempt means for its job: every cause against every ending."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.policy import MAX_BACKOFF, NODE_FAULT_DELAY, POISON_NODES, Ending, brake, judge
from app.domain.states import JobState, Outcome, Reason, StopCause

CAUSES = [None, *StopCause]
ENDINGS = {
    "exit 0": Ending(exit_code=0),
    "exit 3": Ending(exit_code=3),
    "killed by itself": Ending(signal=11),
    "exit 0 after the signal": Ending(exit_code=0, stopped=True),
    "exit 143 after the signal": Ending(exit_code=143, stopped=True),
    "ended by the signal": Ending(signal=15, stopped=True),
    "stopped before it started": Ending(started=False, stopped=True),
    "out of memory": Ending(signal=9, oom=True),
    "out of memory, exit 0": Ending(exit_code=0, oom=True),
    "time limit": Ending(signal=15, limit_hit="time"),
    "time limit, exit 0": Ending(exit_code=0, limit_hit="time"),
    "lost": Ending(lost=True),
    "lost before it started": Ending(lost=True, started=False),
    "node's fault": Ending(started=False, node_fault=True),
    "refused": Ending(started=False, refused=True),
    "accepted as completed": Ending(exit_code=3, accepted_as=JobState.COMPLETED),
    "accepted as failed": Ending(exit_code=0, accepted_as=JobState.FAILED),
}
C, F, X, P = JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED, JobState.PENDING
REQUEUE, DRAIN, PREEMPT, LIMIT, CANCEL = StopCause
OWN = {
    "exit 0": (Outcome.COMPLETED, C),
    "exit 3": (Outcome.FAILED, F),
    "killed by itself": (Outcome.FAILED, F),
    "out of memory": (Outcome.OUT_OF_MEMORY, F),
    "out of memory, exit 0": (Outcome.OUT_OF_MEMORY, F),
    "time limit": (Outcome.TIMED_OUT, F),
    "time limit, exit 0": (Outcome.TIMED_OUT, F),
    "lost": (Outcome.LOST, P),
    "lost before it started": (Outcome.LOST, P),
    "node's fault": (Outcome.NODE_FAULT, P),
    "refused": (Outcome.REFUSED, F),
    "accepted as completed": (Outcome.COMPLETED, C),
    "accepted as failed": (Outcome.FAILED, F),
}
STOPPED = {
    None: (Outcome.NODE_FAULT, P),
    REQUEUE: (Outcome.REQUEUED, P),
    DRAIN: (Outcome.DRAINED, P),
    PREEMPT: (Outcome.PREEMPTED, P),
    LIMIT: (Outcome.TIMED_OUT, F),
}


@pytest.mark.parametrize("cause", CAUSES, ids=str)
@pytest.mark.parametrize("name", ENDINGS)
def test_every_ending_under_every_cause(name: str, cause: StopCause | None) -> None:
    """A cancel always wins; an exit before the signal keeps its own outcome; one after it is the cause's.

    An executor outside that only tells of a failure is taken to have been stopped.
    """
    if cause == CANCEL:
        expected = (Outcome.CANCELLED, X)
    elif ENDINGS[name].stopped or (name == "accepted as failed" and cause in {REQUEUE, DRAIN, PREEMPT}):
        expected = STOPPED[cause]
    else:
        expected = OWN[name]
    verdict = judge(ENDINGS[name], cause, failures=0, max_retries=0)
    assert (verdict.outcome, verdict.state) == expected
    assert (verdict.reason is None) == (verdict.state != P)


@pytest.mark.parametrize("name", ENDINGS)
def test_only_the_jobs_own_failures_spend_its_retries(name: str) -> None:
    for cause in CAUSES:
        verdict = judge(ENDINGS[name], cause, failures=0, max_retries=1)
        paid = verdict.outcome in {Outcome.FAILED, Outcome.OUT_OF_MEMORY, Outcome.TIMED_OUT}
        assert verdict.spends_retry == paid
        if paid:
            assert (verdict.state, verdict.reason) == (P, Reason.BACKOFF)


def test_a_program_that_can_never_be_had_is_not_tried_again() -> None:
    assert judge(ENDINGS["refused"], None, failures=0, max_retries=9).state == F


def test_backoff_doubles_until_the_retries_are_spent() -> None:
    waits = []
    for failures in range(4):
        verdict = judge(Ending(exit_code=1), None, failures, max_retries=3, backoff_s=2, multiplier=2)
        waits.append(verdict.delay.total_seconds() if verdict.state == P else None)
    assert waits == [2, 4, 8, None]


def test_a_nodes_own_trouble_that_comes_again_and_again_is_tried_ever_more_rarely() -> None:
    verdicts = [judge(Ending(node_fault=True), None, 0, 0, uncharged=n) for n in (0, 1, 2, 7, 8, 10**6)]
    assert [verdict.delay.total_seconds() for verdict in verdicts] == [2, 4, 8, 256, 300, 300]
    assert judge(Ending(node_fault=True), None, 3, 3, uncharged=-3).delay == NODE_FAULT_DELAY


@given(
    st.integers(0, 2000),
    st.sampled_from([0.0, 0.001, 1.0, 30.0, 1e6]),
    st.floats(1, 1e9, allow_nan=False, allow_infinity=False),
)
def test_backoff_is_never_longer_than_its_cap_nor_an_error(failures: int, base_s: float, multiplier: float) -> None:
    verdict = judge(Ending(exit_code=1), None, failures, 10_000, backoff_s=base_s, multiplier=multiplier)
    assert timedelta(0) <= verdict.delay <= MAX_BACKOFF
    exact = base_s * math.exp(min(700.0, failures * math.log(multiplier)))
    assert verdict.delay.total_seconds() == pytest.approx(min(3600.0, exact), rel=1e-6, abs=1e-5)


@pytest.mark.parametrize("others", range(POISON_NODES))
def test_a_job_that_ran_on_five_lost_nodes_fails(others: int) -> None:
    verdict = judge(Ending(lost=True), None, 0, 5, lost_nodes=others)
    assert verdict.lost_node
    assert verdict.state == (F if others + 1 == POISON_NODES else P)


def test_a_loss_before_the_start_never_counts_against_the_job() -> None:
    verdict = judge(Ending(lost=True, started=False), None, 0, 0, lost_nodes=POISON_NODES - 1)
    assert (verdict.state, verdict.lost_node) == (P, False)


@pytest.mark.parametrize(
    ("expired", "live", "waits"),
    [(1, 1, False), (4, 4, False), (5, 5, True), (5, 24, True), (5, 25, False), (20, 100, False), (21, 100, True)],
)
def test_the_reaper_brakes_when_a_fifth_and_at_least_five_expire(expired: int, live: int, waits: bool) -> None:
    assert brake(expired, live) == waits
