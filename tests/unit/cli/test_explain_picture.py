"""`cfab explain` as a terminal shows it."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from app.cli.explain import BAR_CELLS, bar, picture


def told(**changes: Any) -> dict[str, Any]:
    """A job that waits for CPUs and for its quota."""
    node = {
        "id": "n1", "kind": "agent", "state": "ready", "fit": "busy", "lacks": ["cpus_milli"], "silent_seconds": 1.0,
        "slots": {"free": 3, "total": 4}, "cpus": {"free": 2, "total": 8},
        "memory_bytes": {"free": 2**30, "total": 4 * 2**30}, "gpus": {"free": 0, "total": 0},
    }  # fmt: skip
    return {
        "id": "550e8400-e29b-41d4-a716-446655440000",
        "status": "pending",
        "state_detail": "pending",
        "reason": "new",
        "code": "busy",
        "message": "busy",
        "causes": [{"code": "busy", "message": "1 node big enough is busy.", "numbers": {}}],
        "asks": {"cpus": 4, "memory_bytes": 2**29, "gpus": 0, "gpu_memory_bytes": 0, "gpu_model": "", "runner": "x"},
        "tenant": {"name": "lab", "active": True, "quota": {"jobs": 8, "gpus": None}, "used": {"jobs": 6, "gpus": 0}},
        "ahead": 12,
        "queue": {"position": 14, "exact": True, "in_tenant": 13, "of": 40},
        "nodes": [node],
        "nodes_seen": 31,
        "history": [
            {"timestamp": f"2026-01-01T12:00:{n:02}Z", "status": "pending", "state_detail": "pending",
             "reason": "new", "attempt": 0, "executor_id": None} for n in range(12)
        ],
        **changes,
    }  # fmt: skip


def drawn(answer: dict[str, Any]) -> str:
    out = io.StringIO()
    Console(file=out, width=120, highlight=False).print(picture(answer))
    return out.getvalue()


def test_everything_that_matters_is_on_the_picture() -> None:
    text = drawn(told())
    assert "1 node big enough is busy." in text
    assert "Place 14 of 40 pending in its class; 12 of the same shape were submitted before it." in text
    assert "6 of 8" in text
    assert "30 more are not shown" in text
    (line,) = [line for line in text.splitlines() if line.startswith("n1")]
    assert "2/8" in line and "1G/4G" in line and "█" in line
    assert "4 earlier changes" in text


def test_gpu_memory_is_counted_as_on_the_card() -> None:
    tenant = {"name": "lab", "quota": {"gpu_memory_bytes": 80 * 10**9}, "used": {"gpu_memory_bytes": 40 * 10**9}}
    assert "40 GB of 80 GB" in drawn(told(tenant=tenant))


def test_words_of_others_do_not_steer_the_terminal() -> None:
    nasty = told(causes=[{"code": "hold", "message": "a\x1b[31mb [bold]c", "numbers": {}}])
    assert "\x1b" not in drawn(nasty)
    assert "[bold]c" in drawn(nasty)


def test_a_bar_is_never_fuller_than_full() -> None:
    assert bar(9, 3, bad=True).plain == "█" * BAR_CELLS
    assert bar(-1, 3, bad=True).plain == bar(1, 0, bad=False).plain == "░" * BAR_CELLS


def test_a_narrow_terminal_shows_figures_of_everything() -> None:
    nodes = [{**told()["nodes"][0], "id": "gpu-host-12.cluster.example", "gpus": {"free": 1, "total": 8}}]
    out = io.StringIO()
    answer = told(nodes=nodes, asks={**told()["asks"], "gpus": 2})
    Console(file=out, width=80, highlight=False).print(picture(answer, 80))
    line = next(line for line in out.getvalue().splitlines() if line.startswith("gpu-host-12"))
    assert line.split() == ["gpu-host-12.cluster.example", "busy", "3/4", "2/8", "1G/4G", "1/8"]


def test_executors_outside_are_left_out_where_they_cannot_run_the_job() -> None:
    endless = {"free": 1e6, "total": 1e6}
    outside = {**told()["nodes"][0], "id": "outside", "kind": "external", "slots": endless, "cpus": endless}
    page = drawn(told(nodes=[*told()["nodes"], {**outside, "fit": "no_runner"}]))
    assert "outside" not in page and "n1" in page
    assert "nodes:" not in drawn(told(nodes=[{**outside, "fit": "no_runner"}]))
    page = drawn(told(nodes=[{**outside, "fit": "fits"}]))
    line = next(line for line in page.splitlines() if line.startswith("outside"))
    assert line.split() == ["outside", "has", "room", "-", "-", "-"]
