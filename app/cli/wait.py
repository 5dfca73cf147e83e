"""`cfab wait`: return when jobs have ended, and tell the shell how."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

import click

from app.cli.client import Client
from app.cli.failure import ExitCode
from app.cli.options import Duration, fabric_command, full_id
from app.cli.render import ending, print_json


@click.command("wait")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--timeout", type=Duration(), help="Give up after this long (exit code 6); the jobs go on.")
@fabric_command
def command(*, client: Client, as_json: bool, ids: tuple[str, ...], timeout: float | None) -> ExitCode:
    """Wait until every job has ended: 0 all completed, 1 one failed or was cancelled, 6 --timeout."""
    deadline = None if timeout is None else time.monotonic() + timeout
    ended = []
    for job_id in ids:
        left = None if deadline is None else max(0.001, deadline - time.monotonic())
        ended.append(wait_for(client, full_id(client, job_id), left, quiet=as_json or len(ids) > 1))
        if not as_json:
            click.echo(ending(ended[-1]))
    if as_json:
        print_json(ended[0] if len(ended) == 1 else ended)
    return max(end_code(job, show=False) for job in ended)


def wait_for(client: Client, job_id: str, timeout_s: float | None, quiet: bool) -> dict[str, Any]:
    """The ended job; on a terminal, unless `quiet`, each of its states is shown on standard error."""

    def changed(job: Mapping[str, Any]) -> None:
        if not quiet and sys.stderr.isatty():
            click.echo(ending(job), err=True)

    return client.wait(job_id, timeout_s, changed)


def end_code(job: Mapping[str, Any], show: bool) -> ExitCode:
    """The exit code for an ended job; `show` prints how it ended on standard error."""
    if show:
        click.echo(ending(job), err=True)
    return ExitCode.OK if job["status"] == "completed" else ExitCode.JOB_FAILED
