"""`cfab array`: see arrays, end some or all of their indices, run those that failed again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

from app.cli.client import Client
from app.cli.failure import ExitCode
from app.cli.options import STATUSES, fabric_command
from app.cli.render import array_ending, coloured, job_table, plain, print_json, table

COUNTED = ("pending", "running", "completed", "failed", "cancelled")
_INDICES = click.option("--indices", metavar="0-9,20", help="Only these indices and ranges; default: all.")


@click.group("array")
def command() -> None:
    """Arrays of jobs, made by `cfab submit --array N`."""


@command.command("ls")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many at most.")
@fabric_command
def ls(*, client: Client, as_json: bool, limit: int) -> ExitCode:
    """List arrays, the newest first."""
    arrays = client.arrays(limit)
    if as_json:
        print_json(arrays)
    else:
        head = ("ID", "TYPE", "STATE", "COUNT", *(word.upper() for word in COUNTED))
        click.echo(table(head, [_row(array) for array in arrays]))
    return ExitCode.OK


@command.command("show")
@click.argument("array_id", metavar="ID")
@fabric_command
def show(*, client: Client, as_json: bool, array_id: str) -> ExitCode:
    """Show one array: its counts, its progress, what it waits for."""
    array = client.array(array_id)
    if as_json:
        print_json(array)
    else:
        click.echo("\n".join(describe(array)))
    return ExitCode.OK


@command.command("jobs")
@click.argument("array_id", metavar="ID")
@click.option("--status", type=click.Choice(STATUSES), help="Only jobs in this state.")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True, help="How many at most.")
@click.option("--offset", type=click.IntRange(0), default=0, help="How many to leave out before them.")
@fabric_command
def jobs(*, client: Client, as_json: bool, array_id: str, status: str | None, limit: int, offset: int) -> ExitCode:
    """List the jobs of an array by index; of each index the latest."""
    found = client.array_jobs(array_id, status=status, limit=str(limit), offset=str(offset))
    if as_json:
        print_json(found)
    else:
        click.echo(job_table(found, with_index=True))
    return ExitCode.OK


@command.command("cancel")
@click.argument("array_id", metavar="ID")
@_INDICES
@click.option("--reason", metavar="TEXT", help="Kept with the array and its jobs.")
@click.option("--pending", "pending_only", is_flag=True, help="Let go on what has started.")
@fabric_command
def cancel(
    *, client: Client, as_json: bool, array_id: str, indices: str | None, reason: str | None, pending_only: bool
) -> ExitCode:
    """End an array, or some of its indices: what runs gets SIGTERM, its grace, then SIGKILL."""
    done = client.change_array(array_id, "cancel", indices=indices, reason=reason, running=not pending_only)
    if as_json:
        print_json(done)
    else:
        click.echo(f"{array_ending(done)}; cancelled {done['cancelled']} now, stopping {done['stopping']}")
    return ExitCode.OK


@command.command("retry")
@click.argument("array_id", metavar="ID")
@_INDICES
@fabric_command
def retry(*, client: Client, as_json: bool, array_id: str, indices: str | None) -> ExitCode:
    """Run the indices that failed again, each as a new job; refused when none has failed."""
    done = client.change_array(array_id, "retry", indices=indices)
    if as_json:
        print_json(done)
    else:
        click.echo(f"{array_ending(done)}; {done['retried']} run again")
    return ExitCode.OK


def describe(array: Mapping[str, Any]) -> Iterator[str]:
    """The array as lines for people."""
    state = str(array["status"])
    waits = f" ({plain(array['reason'])})" if array.get("reason") and state == "pending" else ""
    facts: dict[str, object] = {
        "id": array["id"],
        "type": plain(array["type"]),
        "priority": array["priority"],
        "state": coloured(state) + waits,
        "message": plain(array.get("message") or "") or None,
        "jobs": array["count"],
        "at a time": array["max_parallel"],
        "progress": f"{100 * array['progress']:.1f} %",
        **{word: array["counts"][word] or None for word in COUNTED},
        "no job yet": array["unexpanded"] or None,
        "created": array["created_at"],
        "ended": array["completed_at"],
        "stopped by": plain(array.get("stopped_by") or "") or None,
    }
    yield from (f"{name:<14}{value}" for name, value in facts.items() if value not in (None, ""))
    for parent in array.get("depends_on") or ():
        yield depends(parent)


def depends(parent: Mapping[str, Any]) -> str:
    """A line on what a job or an array depends on."""
    how = {None: "waits", True: "satisfied", False: "never"}[parent["satisfied"]]
    what = "array" if parent["array"] else "job"
    return f"{'depends on':<14}{what} {parent['job']} {parent['on']} ({parent['state_detail'] or 'forgotten'}, {how})"


def _row(array: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        str(array["id"]),
        plain(array["type"]),
        coloured(str(array["status"])),
        str(array["count"]),
        *(str(array["counts"][word]) for word in COUNTED),
    )
