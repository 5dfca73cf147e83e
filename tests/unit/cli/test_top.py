"""`cfab top` as a terminal shows it."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from app.cli.top import sparkline, table

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


def usage(name: str, cores: list[float | None], memory: int = 2**28, **changes: Any) -> dict[str, Any]:
    """One running job that holds 2 CPUs and 1 GiB."""
    return {
        "job_id": f"550e8400-e29b-41d4-a716-44665544000{name}",
        "type": f"train-{name}",
        "state_detail": "running",
        "executor_id": "n1",
        "attempt": 1,
        "member": 0,
        "started_at": "2026-01-01T11:59:30Z",
        "holds": {"cpus": 2.0, "memory_bytes": 2**30, "gpus": 0, "gpu_memory_bytes": 0},
        "hard_limits": True,
        "recent": [
            {"cpu_cores": one, "memory_bytes": memory, "gpu_percent": None, "gpu_memory_bytes": None} for one in cores
        ],
        **changes,
    }


def drawn(*used: dict[str, Any], width: int = 200) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(table(used, width, NOW))
    return out.getvalue().splitlines()


def test_the_busiest_is_first_with_its_figures_and_its_course() -> None:
    lines = drawn(usage("1", [0.1, 0.2]), usage("2", [0.5, 2.0]))
    assert ["train-2" in lines[1], "train-1" in lines[2]] == [True, True]
    assert "2.00/2" in lines[1] and "256M/1G" in lines[1] and "30s" in lines[1]
    assert "██████████ 2.00/2" in lines[1]
    assert "▃█" in lines[1]


def test_a_job_without_a_sample_yet_is_shown_too() -> None:
    lines = drawn(usage("1", [], started_at=None, state_detail="starting"))
    assert "starting" in lines[1] and "-/1G" in lines[1]


def test_nothing_that_runs_is_said() -> None:
    assert drawn() == ["No job runs."]


def test_a_narrow_terminal_cuts_names_and_no_figures() -> None:
    lines = drawn(usage("1", [1.0] * 30), width=80)
    assert "550e8400-e29b-41d4" in lines[1]
    assert "1.00/2" in lines[1] and "256M/1G" in lines[1]
    assert "…" not in "".join(lines)


def test_gpus_are_shown_where_any_job_holds_some() -> None:
    held = {"cpus": 2.0, "memory_bytes": 2**30, "gpus": 4, "gpu_memory_bytes": 0}
    lines = drawn(usage("1", [1.0], holds=held), usage("2", [0.5]))
    assert "GPUs" in lines[0] and lines[1].rstrip().endswith("4") and lines[2].rstrip().endswith("-")


def test_a_sparkline_is_drawn_against_the_share_or_its_own_peak() -> None:
    assert sparkline([0.0, 1.0, 2.0], 2.0) == "▁▅█"
    assert sparkline([4.0, 2.0, None], 2.0) == "█▅ "
    assert sparkline([], 2.0) == sparkline([0.0], 0.0) == ""
    assert len(sparkline([1.0] * 99, 1.0)) == 20
