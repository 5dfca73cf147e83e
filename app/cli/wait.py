"""`cfab wait`: return when jobs have ended, and tell the shell how."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import click

from app.cli.client import Client
from app.cli.failure import ExitCode, Failure
from app.cli.options import Duration, fabric_command, full_id
from app.cli.render import array_ending, ending, print_json


@click.command("wait")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--timeout", type=Duration(), help="Give up after this long (exit code 6); the jobs go on.")
@fabric_command
def command(*, client: Client, as_json: bool, ids: tuple[str, ...], timeout: float | None) -> ExitCode:
    """Wait until every job and array has ended: 0 all completed, 1 one failed or was cancelled, 6 --timeout."""
    deadline = None if timeout is None else time.monotonic() + timeout
    ended = []
    for job_id in ids:
        left = None if deadline is None else max(0.001, deadline - time.monotonic())
        ended.append(_wait_for_any(client, job_id, left, quiet=as_json or len(ids) > 1))
        if not as_json:
            click.echo(said(ended[-1]))
    if as_json:
        print_json(ended[0] if len(ended) == 1 else ended)
    return max(end_code(job, show=False) for job in ended)


def _wait_for_any(client: Client, name: str, timeout_s: float | None, quiet: bool) -> dict[str, Any]:
    """The ended job, or the ended array if there is no such job. Raises Failure NOT_FOUND for neither."""
    try:
        return wait_for(client, full_id(client, name), timeout_s, quiet)
    except Failure as no_job:
        if no_job.code is not ExitCode.NOT_FOUND:
            raise
        try:
            client.array(name)
        except Failure:
            raise no_job from None
    return wait_for_array(client, name, timeout_s, quiet)


def wait_for_array(client: Client, array_id: str, timeout_s: float | None, quiet: bool) -> dict[str, Any]:
    """The ended array; on a terminal, unless `quiet`, each of its states is shown on standard error."""

    def changed(array: Mapping[str, Any]) -> None:
        if not quiet and sys.stderr.isatty():
            click.echo(array_ending(array), err=True)

    return client.wait_array(array_id, timeout_s, changed)


def said(ended: Mapping[str, Any]) -> str:
    """One sentence on a job or an array."""
    return array_ending(ended) if "counts" in ended else ending(ended)


def wait_for(client: Client, job_id: str, timeout_s: float | None, quiet: bool) -> dict[str, Any]:
    """The ended job; on a terminal, unless `quiet`, each of its states is shown on standard error."""

    def changed(job: Mapping[str, Any]) -> None:
        if not quiet and sys.stderr.isatty():
            click.echo(ending(job), err=True)

    return client.wait(job_id, timeout_s, changed)


def end_code(job: Mapping[str, Any], show: bool) -> ExitCode:
    """The exit code for an ended job or array; `show` prints how it ended on standard error."""
    if show:
        click.echo(said(job), err=True)
    return ExitCode.OK if job["status"] == "completed" else ExitCode.JOB_FAILED
