"""Timers fire in order, once, and do not pile up behind jobs that ended long before their limit."""

from __future__ import annotations

from workers.keeper.loop import Timers


def test_due_timers_run_in_order_of_time() -> None:
    timers = Timers()
    ran: list[str] = []
    for when, owner in ((3.0, "c"), (1.0, "a"), (2.0, "b")):
        timers.at(when, owner, ran.append)
    timers.run_due(2.0)
    assert ran == ["a", "b"]
    assert timers.next_in(2.5, 10.0) == 0.5
    assert timers.next_in(2.5, 0.1) == 0.1


def test_timers_of_ended_jobs_are_dropped() -> None:
    timers = Timers()
    ran: list[str] = []
    for number in range(5000):
        timers.at(1e6 + number, f"a{number}", ran.append)
    timers.at(2e6, "alive", ran.append)
    timers.prune(lambda owner: owner == "alive", 1)
    timers.run_due(3e6)
    assert ran == ["alive"]
