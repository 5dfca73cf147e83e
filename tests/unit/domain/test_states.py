"""The state table is total, closed, and has no way out of an end."""

from __future__ import annotations

import pytest

from app.domain.states import ACTIVE, TERMINAL, TRANSITIONS, JobState, StopCause, may_follow, stronger


def test_every_state_has_a_row_and_leads_to_known_states() -> None:
    assert set(TRANSITIONS) == set(JobState)
    assert all(after in JobState for followers in TRANSITIONS.values() for after in followers)


def test_pending_active_and_terminal_are_all_states_and_no_two_overlap() -> None:
    assert {JobState.PENDING} | ACTIVE | TERMINAL == set(JobState)
    assert not ACTIVE & TERMINAL


@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_nothing_follows_an_end(state: JobState) -> None:
    assert not TRANSITIONS[state]
    assert all(not may_follow(state, after) for after in JobState if after != state)


@pytest.mark.parametrize("state", sorted(JobState))
def test_every_state_can_be_reached_and_staying_is_allowed(state: JobState) -> None:
    assert state == JobState.PENDING or any(state in followers for followers in TRANSITIONS.values())
    assert may_follow(state, state)


@pytest.mark.parametrize("state", sorted(set(JobState) - TERMINAL))
def test_every_open_state_can_still_end_in_each_way_that_it_may_meet(state: JobState) -> None:
    ends = TRANSITIONS[state] & TERMINAL
    assert JobState.CANCELLED in ends
    assert JobState.FAILED in ends
    assert (JobState.COMPLETED in ends) == (state != JobState.PENDING)


def test_only_a_stop_leads_to_stopping() -> None:
    assert {s for s in JobState if JobState.STOPPING in TRANSITIONS[s]} == {JobState.STARTING, JobState.RUNNING}


def test_stored_numbers_never_change() -> None:
    assert {s.name: int(s) for s in JobState} == {
        "PENDING": 0, "STARTING": 1, "RUNNING": 2, "STOPPING": 3, "COMPLETED": 4, "FAILED": 5, "CANCELLED": 6,
    }  # fmt: skip
    assert {c.name: int(c) for c in StopCause} == {"REQUEUE": 0, "DRAIN": 1, "PREEMPT": 2, "TIME_LIMIT": 3, "CANCEL": 4}


def test_cancel_beats_time_limit_beats_preempt_beats_drain_beats_requeue() -> None:
    order = [StopCause.REQUEUE, StopCause.DRAIN, StopCause.PREEMPT, StopCause.TIME_LIMIT, StopCause.CANCEL]
    for place, weaker in enumerate(order):
        assert stronger(None, weaker) == weaker
        for winner in order[place:]:
            assert stronger(weaker, winner) == winner
            assert stronger(winner, weaker) == winner
