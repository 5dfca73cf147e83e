"""`cfab events`: what happened to jobs, and what happens."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import click

from app.cli import sse
from app.cli.client import Client
from app.cli.failure import ExitCode, Failure
from app.cli.follow import GIVE_UP_S
from app.cli.options import full_id, whole_fabric_command
from app.cli.render import coloured, moment, plain

GAP = "some events behind this cursor are no longer kept"


@click.command("events")
@click.option("-f", "--follow", "follows", is_flag=True, help="Go on as they happen, until Ctrl-C (or the job's end).")
@click.option("--after", metavar="CURSOR", help="Go on behind an event; 0: all that is kept; now: only what comes.")
@click.option("--job", "job_id", metavar="ID", help="Only this job's.")
@click.option("--type", "job_type", metavar="WORD", help="Only those of jobs of this type.")
@click.option("--tenant", metavar="NAME", help="Operators: another tenant's, or * for all (of a --job: for admins).")
@whole_fabric_command
def command(
    *,
    client: Client,
    as_json: bool,
    follows: bool,
    after: str | None,
    job_id: str | None,
    job_type: str | None,
    tenant: str | None,
) -> ExitCode:
    """Tell each change of a job's state once and in order: all that is kept, or with -f what comes from now on."""
    if job_id is not None and tenant not in {None, "*"}:
        client.act_for(str(tenant))
    job = None if job_id is None else full_id(client, job_id)
    options = {} if job is not None else {"type": job_type, "tenant": tenant}
    begin = after or ("now" if follows and job is None else "0")
    found = followed(client, begin, job, options) if follows else kept(client, begin, job, options)
    for event in found:
        click.echo(json.dumps(event, ensure_ascii=False) if as_json else line(event))
    return ExitCode.OK


def kept(client: Client, after: str, job: str | None, options: Mapping[str, str | None]) -> Iterator[dict[str, Any]]:
    """All events behind a cursor that there are now."""
    while True:
        page = client.events(after, job, limit="1000", **options)
        if page["gap"]:
            click.echo(GAP, err=True)
        yield from page["events"]
        after = page["next"]
        if not page["more"]:
            return


def followed(
    client: Client, after: str, job: str | None, options: Mapping[str, str | None]
) -> Iterator[dict[str, Any]]:
    """Events as they happen, each once, through lost connections. Raises Failure when the server stays away."""
    last_id: str | None = None
    heard, pause_s = time.monotonic(), 0.1
    while True:
        try:
            with client.event_stream(after, last_id, job, **options) as chunks:
                for message in sse.parse(chunks):
                    heard, pause_s = time.monotonic(), 0.1
                    if message is None:
                        continue
                    if message.name == "end":
                        return
                    last_id = message.id or last_id
                    if message.name == "gap":
                        click.echo(GAP, err=True)
                    elif message.name == "job":
                        yield json.loads(message.data)
        except Failure as failure:
            if failure.code is not ExitCode.UNREACHABLE or time.monotonic() - heard > GIVE_UP_S:
                raise
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, 2.0)


def line(event: Mapping[str, Any]) -> str:
    """One event for people: when, which job, from what to what, why, where."""
    at = moment(event["time"])
    shown = at.astimezone().strftime("%m-%d %H:%M:%S") if at else "-"
    state, before = str(event["state_detail"]), event.get("previous")
    change = coloured(state) if before in (None, state) else f"{before} → {coloured(state)}"
    notes = [plain(event[name]) for name in ("reason", "stop_cause") if event.get(name)]
    if event["attempt"] > 1:
        notes.append(f"attempt {event['attempt']}")
    if event.get("executor_id") and state != "pending":
        notes.append(f"on {plain(event['executor_id'])}")
    return "  ".join((shown, str(event["job_id"]), plain(event.get("type") or "-"), change, ", ".join(notes))).rstrip()
