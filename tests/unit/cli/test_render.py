"""Tables and sentences as users see them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import click
import pytest

from app.cli.render import ending, job_table, plain, size, span
from app.cli.show import describe

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


def job(**changes: Any) -> dict[str, Any]:
    """A running job as the API lists it."""
    return {
        "id": "550e8400-e29b-41d4-a716-446655440000",
        "type": "train",
        "status": "running",
        "state_detail": "running",
        "reason": None,
        "priority": "background",
        "executor_id": "node-1",
        "created_at": "2026-01-01T11:58:00Z",
        "started_at": "2026-01-01T11:59:30Z",
        "completed_at": None,
        "exit_code": None,
        "message": None,
    } | changes


def test_a_table_of_jobs() -> None:
    waiting = job(status="pending", state_detail="pending", reason="backoff", executor_id=None, started_at=None)
    lines = click.unstyle(job_table([job(), waiting], NOW)).splitlines()
    assert [line.split()[1:] for line in lines] == [
        ["TYPE", "PRIORITY", "STATE", "NODE", "AGE", "RAN"],
        ["train", "background", "running", "node-1", "2m00s", "30s"],
        ["train", "background", "pending", "(backoff)", "-", "2m00s", "-"],
    ]


def test_only_the_last_attempt_has_run() -> None:
    again = {"started_at": "2026-01-01T11:00:00Z"}
    rows = [
        job(**again, attempt_started_at="2026-01-01T11:59:50Z"),
        job(**again, attempt_started_at=None, state_detail="starting"),
        job(**again, attempt_started_at="2026-01-01T11:30:00Z", status="pending", state_detail="pending"),
        job(
            **again, attempt_started_at="2026-01-01T11:30:00Z", status="completed", completed_at="2026-01-01T11:31:00Z"
        ),
    ]
    lines = click.unstyle(job_table(rows, NOW)).splitlines()[1:]
    assert [line.split()[-1] for line in lines] == ["10s", "-", "-", "1m00s"]


def test_an_attempt_that_runs_has_run_until_now() -> None:
    running = {"status": "running", "executor_id": "node-1", "started_at": "2026-01-01T11:59:00Z", "ended_at": None}
    line = click.unstyle("\n".join(describe(job(attempts=[running])))).splitlines()[-1]
    assert line.split()[:3] == ["1", "node-1", "running"] and line.split()[3] != "-"


def test_no_jobs_is_a_head_alone() -> None:
    assert job_table([], NOW).split() == ["ID", "TYPE", "PRIORITY", "STATE", "NODE", "AGE", "RAN"]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(-3, "0s"), (59.9, "59s"), (192, "3m12s"), (7500, "2h05m"), (356_400, "4d03h")]
)
def test_spans(seconds: float, shown: str) -> None:
    assert span(timedelta(seconds=seconds)) == shown


@pytest.mark.parametrize(
    ("mebibytes", "shown"),
    [(0, "0M"), (1000, "1000M"), (1536, "1.5G"), (999 * 1024, "999G"), (2**20, "1024G"), (2**21 + 512, "2048G")],
)
def test_sizes(mebibytes: int, shown: str) -> None:
    assert size(mebibytes * 2**20) == shown


def test_a_job_cannot_steer_the_terminal() -> None:
    assert "\x1b" not in click.unstyle(job_table([job(type="\x1b[2Jgone\r\n")], NOW))
    assert plain("a\x1b]0;x\x07\n") == "a�]0;x��"


def test_how_a_job_ended() -> None:
    failed = job(status="failed", state_detail="failed", exit_code=3, message="exited with 3")
    assert click.unstyle(ending(failed)).endswith("failed: exit code 3, exited with 3")
    killed = job(status="failed", state_detail="failed", exit_code=None, signal=9, message="ended by SIGKILL")
    assert click.unstyle(ending(killed)).endswith("failed: signal 9, ended by SIGKILL")


def test_all_about_a_job() -> None:
    times = {"started_at": "2026-01-01T11:59:00Z", "ended_at": "2026-01-01T11:59:09Z"}
    end = {"status": "failed", "outcome": "lost", "exit_code": None, "signal": None, "reason": "node silent"}
    attempt = {"attempt": 1, "executor_id": "node-1", **times, **end}
    output = "".join(f"line {n}\n" for n in range(30))
    shown = click.unstyle("\n".join(describe(job(attempts=[attempt], stdout=output, arguments=["--n", "3"]))))
    assert "arguments     --n 3" in shown
    assert "lost, node silent" in shown and "9s" in shown
    assert "line 29" in shown and "line 19" not in shown and "last 10 of 30 lines" in shown


def test_a_job_with_an_image_shows_what_ran() -> None:
    tried = [{"status": "failed", "image_digest": digest} for digest in ("sha256:old", "sha256:new", None)]
    asked = {"image": "acme/tool:1", "command": ["sh"], "arguments": ["-c", "true"], "attempts": tried}
    shown = click.unstyle("\n".join(describe(job(**asked))))
    assert "image         acme/tool:1\nimage digest  sha256:new\ncommand       sh\narguments     -c true\n" in shown
    assert "image" not in click.unstyle("\n".join(describe(job(command=[]))))
