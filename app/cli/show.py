"""`cfab show`: all there is to know about one job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import click

from app.cli.array import depends
from app.cli.client import Client
from app.cli.failure import ExitCode
from app.cli.options import fabric_command, full_id
from app.cli.render import coloured, moment, plain, print_json, span, table

# The end of each stream that is shown; `cfab logs` prints all of it.
SHOWN_LINES = 10


@click.command("show")
@click.argument("job_id", metavar="ID")
@fabric_command
def command(*, client: Client, as_json: bool, job_id: str) -> ExitCode:
    """Show one job: what was asked, its attempts, and the end of its output."""
    job = client.job(full_id(client, job_id))
    if as_json:
        print_json(job)
    else:
        click.echo("\n".join(describe(job)))
    return ExitCode.OK


def describe(job: Mapping[str, Any]) -> Iterator[str]:
    """The job as lines for people."""
    state = str(job.get("state_detail") or job["status"])
    facts: dict[str, object] = {"id": job["id"], "type": plain(job["type"]), "priority": job.get("priority")}
    reason = job.get("reason")
    facts["state"] = coloured(state) + (f" ({plain(reason)})" if reason and state == "pending" else "")
    if job.get("queue_position"):
        facts["state"] = f"{facts['state']}, {_place(int(job['queue_position']))}"
    facts["message"] = plain(job.get("message") or "") or None
    if gang := job.get("gang"):
        facts["members"] = gang["members"]
    for name in ("exit_code", "signal", "executor_id", "binary_url", "binary_sha256", "image"):
        facts[name.replace("_", " ")] = job.get(name)
    facts["image digest"] = _digest(job)
    facts["command"] = " ".join(plain(word) for word in job.get("command") or ()) or None
    facts["arguments"] = " ".join(plain(argument) for argument in job.get("arguments") or ()) or None
    facts["environment"] = " ".join(f"{plain(k)}={plain(v)}" for k, v in (job.get("env_variables") or {}).items())
    if job.get("array_id"):
        facts["array"] = f"{job['array_id']}, index {job['array_index']}"
    if job.get("preemptible") is not None:
        facts["preemptible"] = "yes" if job["preemptible"] else "no"
    facts["created"] = job["created_at"]
    facts["started"], facts["ended"] = job.get("started_at"), job.get("completed_at")
    yield from (f"{name:<14}{value}" for name, value in facts.items() if value not in (None, ""))
    yield from (depends(parent) for parent in job.get("depends_on") or ())
    if attempts := job.get("attempts"):
        yield ""
        yield table(
            ("ATTEMPT", "NODE", "STATE", "RAN", "HOW IT ENDED"),
            [row for n, a in enumerate(attempts, 1) for row in _rows(n, a)],
        )
    for stream in ("stdout", "stderr"):
        lines = (job.get(stream) or "").splitlines()
        if lines:
            yield ""
            more = f", last {SHOWN_LINES} of {len(lines)} lines" if len(lines) > SHOWN_LINES else ""
            yield click.style(f"{stream}{more}", bold=True)
            yield from (f"  {plain(line)}" for line in lines[-SHOWN_LINES:])


def _digest(job: Mapping[str, Any]) -> str | None:
    """What the image's name stood for in the latest attempt of which that is known."""
    tried = (attempt.get("image_digest") for attempt in reversed(job.get("attempts") or ()))
    return next((digest for digest in tried if digest), None)


def _place(position: int) -> str:
    return "next in its class" if position == 1 else f"place {position:,} in its class"


def _rows(number: int, attempt: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """One line for an attempt; of a gang's, one for each member besides."""
    members = attempt.get("members") or ()
    if not members:
        yield _attempt(str(number), attempt)
        return
    nodes = sorted({str(one["executor_id"]) for one in members})
    yield _attempt(str(number), {**attempt, "executor_id": f"{len(nodes)} nodes" if len(nodes) > 1 else nodes[0]})
    for one in members:
        yield _attempt(f"{number}.{one['member']}", one)


def _attempt(number: str, attempt: Mapping[str, Any]) -> tuple[str, ...]:
    started, ended = moment(attempt.get("started_at")), moment(attempt.get("ended_at"))
    how = [str(attempt["outcome"])] if attempt.get("outcome") else []
    if attempt.get("signal") is not None:
        how.append(f"signal {attempt['signal']}")
    elif attempt.get("exit_code") is not None:
        how.append(f"exit code {attempt['exit_code']}")
    if attempt.get("oom"):
        how.append("out of memory")
    if attempt.get("reason"):
        how.append(plain(attempt["reason"]))
    return (
        str(attempt.get("attempt") or attempt.get("number") or number),
        plain(attempt.get("executor_id") or "-"),
        coloured(str(attempt["status"])),
        span((ended or datetime.now(UTC)) - started) if started else "-",
        ", ".join(how) or "-",
    )
