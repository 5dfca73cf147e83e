"""How the user's commands look: tables, colours, times. Colours vanish where output is no terminal."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click

_COLOURS = {
    "pending": "yellow",
    "starting": "cyan",
    "running": "cyan",
    "stopping": "magenta",
    "completed": "green",
    "failed": "red",
    "cancelled": "bright_black",
}
COLUMNS = ("ID", "TYPE", "PRIORITY", "STATE", "NODE", "AGE", "RAN")


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def coloured(state: str, text: str | None = None) -> str:
    """`text` (default: the state's word) in the state's colour."""
    return click.style(text or state, fg=_COLOURS.get(state))


def plain(text: object) -> str:
    """`text` on one line without control characters: a job's words must not steer the reader's terminal."""
    return "".join(c if c.isprintable() else "�" for c in str(text))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns two spaces apart; widths ignore colours."""
    widths = [max(len(click.unstyle(row[i])) for row in (head, *rows)) for i in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = (cell + " " * (width - len(click.unstyle(cell))) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def job_table(jobs: Sequence[Mapping[str, Any]], now: datetime | None = None, with_index: bool = False) -> str:
    """Jobs as lines, in the order given; `with_index` begins each with its index in its array."""
    rows = [_job_row(job, now or datetime.now(UTC)) for job in jobs]
    if not with_index:
        return table(COLUMNS, rows)
    indexed = [(str(job["array_index"]), *row) for job, row in zip(jobs, rows, strict=True)]
    return table(("INDEX", *COLUMNS), indexed)


def _job_row(job: Mapping[str, Any], now: datetime) -> tuple[str, ...]:
    state = str(job.get("state_detail") or job["status"])
    # Of its last attempt: between two attempts a job waits.
    began = job.get("attempt_started_at", job.get("started_at"))
    started, ended = moment(began), moment(job.get("completed_at"))
    ran = span((ended or now) - started) if started else "-"
    waits = f" ({plain(job['reason'])})" if state == "pending" and job.get("reason") not in (None, "new") else ""
    return (
        str(job["id"]),
        plain(job["type"]),
        plain(job.get("priority") or "-"),
        coloured(state) + waits,
        plain(job.get("executor_id") or "-"),
        span(now - (moment(job["created_at"]) or now)),
        ran if started and (ended or job["status"] == "running") else "-",
    )


def moment(text: object) -> datetime | None:
    """A time of the API as an aware one; None stays None."""
    return datetime.fromisoformat(str(text)) if text else None


def span(duration: Any) -> str:
    """A duration in its largest two units: 7s, 3m12s, 2h05m, 4d03h."""
    seconds = max(0, int(duration.total_seconds()))
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02}s"
    if seconds < 86_400:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02}m"
    return f"{seconds // 86_400}d{seconds % 86_400 // 3600:02}h"


def size(value: float) -> str:
    """Bytes in GiB or MiB: 1.5G, 512M, 1536G."""
    number, unit = (value / 2**30, "G") if abs(value) >= 2**30 else (value / 2**20, "M")
    # From 1000 on three digits would not do, and be followed by an exponent.
    return (f"{number:.3g}" if abs(number) < 999.5 else f"{number:.0f}") + unit


def ending(job: Mapping[str, Any]) -> str:
    """One sentence on where a job is or how it ended."""
    state = str(job.get("state_detail") or job["status"])
    facts = []
    if job.get("signal") is not None:
        facts.append(f"signal {job['signal']}")
    elif job.get("exit_code") is not None:
        facts.append(f"exit code {job['exit_code']}")
    if job.get("message"):
        facts.append(plain(job["message"]))
    return f"{job['id']}  {coloured(state)}" + (f": {', '.join(facts)}" if facts else "")


def array_ending(array: Mapping[str, Any]) -> str:
    """One sentence on where an array is or how it ended."""
    counts = ", ".join(f"{number} {word}" for word, number in array["counts"].items() if number)
    return f"{array['id']}  {coloured(str(array['status']))}: {counts}"
