"""`cfab hold`, `release`, `reprioritise`, `requeue`, `resubmit`, `checkpoint`: done after the submit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import click

from app.cli.client import Client
from app.cli.failure import ExitCode, Failure
from app.cli.options import PRIORITIES, fabric_command, full_id
from app.cli.render import ending, print_json

IDS = click.argument("ids", nargs=-1, required=True, metavar="ID...")
MAX_PRIORITY = 5000


class PriorityWord(click.ParamType[str | int]):
    """A class, or a number whose class is that in whose range it lies."""

    name = "priority"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | int:
        """The word, or the number."""
        text = str(value).strip().replace("-", "_")
        if text in PRIORITIES:
            return text
        if text.isdecimal() and text.isascii() and int(text) <= MAX_PRIORITY:
            return int(text)
        words = ", ".join(PRIORITIES)
        raise click.BadParameter(f"{value!r} is no priority; use {words}, or a number to {MAX_PRIORITY}", ctx, param)


@click.command("hold")
@IDS
@click.option("--reason", default="", metavar="TEXT", help="Shown to everyone who asks why the job waits.")
@fabric_command
def hold(*, client: Client, as_json: bool, ids: tuple[str, ...], reason: str) -> ExitCode:
    """Keep pending jobs from being started until `cfab release`; what an operator holds only operators release."""
    return each(client, ids, as_json, lambda one: client.change_job("POST", one, "/hold", reason=reason))


@click.command("release")
@IDS
@fabric_command
def release(*, client: Client, as_json: bool, ids: tuple[str, ...]) -> ExitCode:
    """Let held jobs start; each waits where it was in its queue."""
    return each(client, ids, as_json, lambda one: client.change_job("POST", one, "/release"))


@click.command("reprioritise")
@click.argument("priority", type=PriorityWord())
@IDS
@fabric_command
def reprioritise(*, client: Client, as_json: bool, priority: str | int, ids: tuple[str, ...]) -> ExitCode:
    """Give pending jobs another PRIORITY: a class, or a number (best_effort 0-499, background 500-999, foreground
    1000-5000). They keep their age."""
    return each(client, ids, as_json, lambda one: client.change_job("PATCH", one, priority=priority))


@click.command("requeue")
@IDS
@click.option("--reason", metavar="TEXT", help="Kept with the attempt.")
@click.option("--hold", "holds", is_flag=True, help="Then it waits until `cfab release`.")
@fabric_command
def requeue(*, client: Client, as_json: bool, ids: tuple[str, ...], reason: str | None, holds: bool) -> ExitCode:
    """Stop jobs with their grace and let them wait again, where they were in the queue; it costs no retry."""
    asked = {"hold": holds, **({} if reason is None else {"reason": reason})}
    return each(client, ids, as_json, lambda one: client.change_job("POST", one, "/requeue", **asked))


@click.command("resubmit")
@IDS
@click.option("--key", metavar="TEXT", help="Idempotency key: a repeat with it makes no second job.")
@fabric_command
def resubmit(*, client: Client, as_json: bool, ids: tuple[str, ...], key: str | None) -> ExitCode:
    """Submit the same as these jobs anew, whatever became of them, and print the new ids."""
    return each(client, ids, as_json, lambda one: client.resubmit(one, key), lambda job: str(job["id"]))


@click.command("checkpoint")
@IDS
@fabric_command
def checkpoint(*, client: Client, as_json: bool, ids: tuple[str, ...]) -> ExitCode:
    """Say that running jobs have saved their work: to stop them for others costs only what they do from now on.

    Inside a job it is simpler to touch the file that CFAB_CHECKPOINT names.
    """
    return each(client, ids, as_json, client.checkpoint, lambda done: f"{done['id']}  checkpoint reported")


def each(
    client: Client,
    ids: Sequence[str],
    as_json: bool,
    act: Callable[[str], dict[str, Any]],
    line: Callable[[dict[str, Any]], str] | None = None,
) -> ExitCode:
    """Does `act` for every id and tells what came of each; the exit code and the errors are as `accepted` says."""

    def tell(job: dict[str, Any]) -> None:
        if not as_json:
            click.echo((line or told)(job))

    done, code = accepted(client, ids, as_json, act, tell)
    if as_json:
        print_json(done[0] if len(ids) == 1 else done)
    return code


def accepted(
    client: Client,
    ids: Sequence[str],
    as_json: bool,
    act: Callable[[str], dict[str, Any]],
    tell: Callable[[dict[str, Any]], None],
) -> tuple[list[dict[str, Any]], ExitCode]:
    """What `act` gave for every id, handed to `tell` at once, and the exit code of the first refusal.

    One that is refused is named on standard error and keeps no other from being done. A server that cannot be reached
    ends it at once; then JSON says what was done until then. The refusal of an only id is raised.
    """
    done: list[dict[str, Any]] = []
    code = ExitCode.OK
    for job_id in ids:
        try:
            done.append(act(full_id(client, job_id)))
        except Failure as failure:
            if len(ids) == 1:
                raise
            named = Failure(failure.code, f"{job_id}: {failure.message}", failure.context)
            if failure.code is ExitCode.UNREACHABLE:
                if as_json:
                    print_json(done)
                raise named from failure
            click.echo(named.line(as_json), err=True)
            code = code or failure.code
            continue
        tell(done[-1])
    return done, code


def told(job: dict[str, Any]) -> str:
    """A job in one line: where it is, why, and where in the queue."""
    facts = [f"{job['effective_class']} {job['effective_priority']}"] if job["status"] == "pending" else []
    if job["queue_position"]:
        facts.append(f"place {job['queue_position']:,}")
    waits = f" ({job['reason']})" if job["status"] == "pending" and job["reason"] not in {None, "new", "hold"} else ""
    return f"{ending(job)}{waits}" + (f", {', '.join(facts)}" if facts else "")
