"""A node that cannot start jobs tries one at a time, ever more rarely, and takes all again when a start works."""

from __future__ import annotations

from uuid import uuid4

from workers.agent.caution import FAULTS, PAUSE_S, Caution


def sick(now: float = 0.0) -> Caution:
    caution = Caution()
    for _ in range(FAULTS):
        caution.fault(uuid4(), "no space left", now)
    return caution


def test_a_few_faults_and_one_job_s_many_change_nothing() -> None:
    caution, poison = Caution(), uuid4()
    for _ in range(100):
        caution.fault(poison, "a job of its own kind", 0.0)
    for _ in range(FAULTS - 2):
        caution.fault(uuid4(), "no space left", 0.0)
    assert (caution.is_on, caution.room(64, 0.0), caution.left_s(0.0)) == (False, 64, None)


def test_faults_count_in_a_row_only() -> None:
    caution = Caution()
    for _ in range(10 * FAULTS):
        caution.fault(uuid4(), "no space left", 0.0)
        assert not caution.works()
    assert caution.room(64, 0.0) == 64


def test_one_job_at_a_time_is_tried_after_pauses_that_grow_to_a_limit() -> None:
    caution, now, tried = sick(now=100.0), 100.0, []
    for _ in range(10):
        pause_s = caution.left_s(now)
        assert pause_s is not None
        assert caution.room(64, now + pause_s * 0.99) == 0
        tried.append(pause_s)
        now += pause_s
        assert (caution.room(64, now), caution.room(0, now), caution.left_s(now)) == (1, 0, None)
        caution.tries(now)
        caution.fault(uuid4(), "no space left", now)
    assert tried == [1.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, *[PAUSE_S[1]] * 3]


def test_late_faults_of_what_was_claimed_before_make_no_pause_longer() -> None:
    caution = sick()
    for _ in range(60):
        caution.fault(uuid4(), "no space left", 0.5)
    assert caution.left_s(0.5) == 0.5


def test_the_first_start_that_works_ends_it() -> None:
    caution = sick()
    caution.tries(1.0)
    assert caution.works()
    assert (caution.room(64, 1.0), caution.left_s(1.0), caution.works()) == (64, None, False)
