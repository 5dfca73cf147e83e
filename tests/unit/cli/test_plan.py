"""The plan as `cfab plan` shows it: what is held and reserved, when reserved jobs start and why, who makes room."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from rich.console import Console

from app.cli.plan import bar, kept_on, picture, signs
from app.cli.plan_calls import PAGE, PlanCalls

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
JOB, OTHER = (f"550e8400-e29b-41d4-a716-44665544000{n}" for n in range(2))


def plan(**changes: Any) -> dict[str, Any]:
    """A plan as the API shows it."""
    cycle = {
        "ended_at": "2026-01-01T11:59:59Z", "age_seconds": 0.8, "seconds": 0.0124, "load_seconds": 0.01,
        "plan_seconds": 0.001, "apply_seconds": 0.001, "nodes": 2, "running": 3, "waiting": 4, "placed": 1,
        "refused": 0, "reserved": 2, "preempted": 0,
    }  # fmt: skip
    return {
        "cycle": cycle, "silent_seconds": 0.8, "late": False, "reserved_jobs": 0, "reservations_total": 0,
        "totals": {"cycles": 1000, "seconds": 20.0, "placed": 5, "refused": 1, "preempted": 2},
        "reservations": [], "quota_holds_total": 0, "quota_holds": [], "making_room_total": 0, "making_room": [],
        **changes,
    }  # fmt: skip


def place(node: str, **changes: Any) -> dict[str, Any]:
    return {
        "job_id": JOB, "type": "train", "tenant": "science", "effective_class": "background",
        "counts_as": "background", "job_members": 3, "node": node, "members": 1, "cpus": 2.0,
        "memory_bytes": 2**30, "gpus": [], "starts_at": "2026-01-01T12:05:00Z", "made_at": "2026-01-01T11:50:00Z",
        "expires_at": "2026-01-01T12:01:00Z", "why": "gang", **changes,
    }  # fmt: skip


def node(name: str = "host", **changes: Any) -> dict[str, Any]:
    amount = {"total": 8, "free": 4}
    return {
        "name": name, "kind": "agent", "state": "ready", "slots": amount, "cpus": amount,
        "memory_bytes": {"total": 2**34, "free": 2**33}, "gpus": [], **changes,
    }  # fmt: skip


def text(told: dict[str, Any], *nodes: dict[str, Any], width: int = 200) -> str:
    console = Console(width=width, highlight=False, force_terminal=False)
    with console.capture() as captured:
        console.print(picture(told, nodes, NOW))
    return captured.get()


def test_the_last_cycle_and_all_of_them_are_told() -> None:
    shown = text(plan())
    assert "Planned 0s ago in 12 ms: 2 nodes, 3 running, 4 waiting; placed 1, reserved 2, preempted 0." in shown
    assert "In 1,000 cycles of 20 ms on average: 5 placed, 1 refused, 2 preempted." in shown
    assert "Nothing is reserved." in shown
    assert "cfab scheduler" not in shown


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"silent_seconds": 300.0}, "The planner was last heard of 5m00s ago: nobody places gangs"),
        ({"silent_seconds": None, "cycle": None}, "No plan was ever made: nobody places gangs"),
    ],
)
def test_a_planner_that_is_late_is_said_first(changes: dict[str, Any], says: str) -> None:
    assert text(plan(late=True, **changes)).startswith(says)


def test_a_reserved_job_says_when_why_and_where() -> None:
    places = [place("one", members=2), place("two")]
    shown = text(plan(reservations=places))
    assert f"{JOB}  science  background\n" in shown
    assert "starts within 5m00s: its members start together; 3 members on one ×2, two" in shown
    starved = place("one", job_members=1, why="starved", counts_as="foreground", starts_at=None)
    shown = text(plan(reservations=[starved]))
    assert "background as foreground" in shown
    assert "starts when what runs there ends, some of it without a time limit: it has waited too long; it on" in shown
    assert "starts now:" in text(plan(reservations=[place("one", starts_at="2026-01-01T11:59:00Z")]))
    many = [place(f"n{number}") for number in range(9)]
    assert "on n0, n1, n2, n3 and 5 more" in text(plan(reservations=many))


def test_whose_quota_is_kept_says_how_much_of_what_it_limits() -> None:
    one = {
        "job_id": OTHER, "type": "train", "tenant": "vision", "effective_class": "background", "job_members": 4,
        "jobs": 4, "cpus": None, "memory_bytes": 2**32, "gpus": 1, "gpu_memory_bytes": None,
        "made_at": "2026-01-01T11:50:00Z", "expires_at": "2026-01-01T12:01:00Z",
    }  # fmt: skip
    shown = text(plan(quota_holds=[one]))
    assert f"quotas that are kept\n{OTHER}  vision  background\n" in shown
    assert "  4 jobs, 1 GPU, 4G of memory of its tenant's quota kept for 10m00s, until 4 members can start" in shown
    assert "until it can start" in text(plan(quota_holds=[{**one, "job_members": 1}]))


def test_who_makes_room_for_whom_is_told() -> None:
    one = {
        "job_id": OTHER, "type": "bulk", "tenant": "low", "nodes": ["host"], "cpus": 2.0, "memory_bytes": 2**30,
        "gpus": 1, "since": "2026-01-01T11:59:53Z", "grace_seconds": 10.0, "reason": "makes room", "for_job_id": JOB,
    }  # fmt: skip
    shown = text(plan(making_room=[one]))
    assert f"{OTHER}  low\n  told 7s ago for {JOB}; gives back 2 CPUs, 1G, 1 GPU on host" in shown
    unknown = text(plan(making_room=[{**one, "for_job_id": None, "since": None, "gpus": 0}]))
    assert "told; gives back 2 CPUs, 1G on host" in unknown


def test_each_node_has_a_line_with_what_is_held_and_reserved() -> None:
    gpus = [{"uuid": f"GPU-{n}", "state": state} for n, state in enumerate(("held", "free", "free", "out"))]
    places = [place("host", cpus=3.0, gpus=["GPU-0"]), place("host", job_id=OTHER, cpus=3.0, gpus=["GPU-1"])]
    shown = text(plan(reservations=places), node(gpus=gpus), node("idle"), node("outside", kind="external"))
    lines = [line for line in shown.splitlines() if line.startswith(("host", "idle", "outside"))]
    assert [line.split()[0] for line in lines] == ["host", "idle"]
    assert "███▓▓▒▒▒▒▒ 4/8 +6" in lines[0]
    assert "8G/16G +2G" in lines[0]
    assert "◆▨▯✗ 1/4 +2" in lines[0]
    assert "+" not in lines[1]


@pytest.mark.parametrize(
    ("held", "kept", "has", "cells"),
    [
        (0, 0, 10, "░░░░░░░░░░"),
        (10, 0, 10, "██████████"),
        (0, 10, 10, "▒▒▒▒▒▒▒▒▒▒"),
        (10, 10, 10, "▓▓▓▓▓▓▓▓▓▓"),
        (5, 3, 10, "█████▒▒▒░░"),
        (8, 5, 10, "█████▓▓▓▒▒"),
        (4, 20, 10, "▓▓▓▓▒▒▒▒▒▒"),
        (0, 0, 0, "░░░░░░░░░░"),
        (3, 1, 0, "░░░░░░░░░░"),
    ],
)
def test_a_bar_has_always_ten_cells(held: float, kept: float, has: float, cells: str) -> None:
    assert bar(held, kept, has).plain == cells


def test_reservations_of_a_node_add_up() -> None:
    kept = kept_on([place("one", members=2, gpus=["a", "b"]), place("one", job_id=OTHER, gpus=["c"]), place("two")])
    one = kept["one"]
    assert (one.members, one.cpus, one.memory_bytes, one.gpus) == (3, 4.0, 2**31, {"a", "b", "c"})
    assert signs([], {"a"}).plain == "-"


def test_names_cannot_steer_the_terminal() -> None:
    bad = "\x1b[31m[bold]x"
    shown = text(plan(reservations=[place(bad, tenant=bad, why=bad)]), node(bad))
    assert "\x1b" not in shown and "[bold]x" in shown


def test_an_id_is_whole_on_a_narrow_terminal() -> None:
    assert JOB in text(plan(reservations=[place("one")]), node(), width=60)


class Pages(PlanCalls):
    """A server with so many entries in each list."""

    def __init__(self, reservations: int, making_room: int, gone_after: int = 10**9) -> None:
        self.lists = {"reservations": list(range(reservations)), "making_room": list(range(making_room))}
        self.gone_after, self.asked = gone_after, 0

    def json(self, method: str, path: str, **options: Any) -> Any:
        assert (method, path) == ("GET", "/plan")
        first, many = int(options["params"]["offset"]), int(options["params"]["limit"])
        self.asked += 1
        page = {name: all_of[first : first + many] for name, all_of in self.lists.items()}
        if self.asked > self.gone_after:
            page = {name: [] for name in page}
        return page | {f"{name}_total": len(all_of) for name, all_of in self.lists.items()}


@pytest.mark.parametrize(("many", "few", "asked"), [(0, 0, 1), (PAGE, 1, 1), (2 * PAGE + 1, 3, 3), (3, PAGE + 1, 2)])
def test_all_pages_of_both_lists_are_read(many: int, few: int, asked: int) -> None:
    server = Pages(many, few)
    found = server.plan()
    assert (found["reservations"], found["making_room"]) == (server.lists["reservations"], server.lists["making_room"])
    assert server.asked == asked


def test_reading_ends_when_the_rest_has_gone_meanwhile() -> None:
    server = Pages(5 * PAGE, 0, gone_after=2)
    assert len(server.plan()["reservations"]) == 2 * PAGE
    assert server.asked == 3
