"""`cfab stop`: end jobs, running ones too, gracefully."""

from __future__ import annotations

from typing import Any

import click

from app.cli.client import TERMINAL_WORDS, Client
from app.cli.control import accepted, each
from app.cli.failure import ExitCode
from app.cli.options import fabric_command
from app.cli.render import ending, print_json
from app.cli.wait import wait_for


@click.command("stop")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--reason", metavar="TEXT", help="Kept with the job.")
@click.option("--wait", "waits", is_flag=True, help="Return when the jobs have ended.")
@fabric_command
def command(*, client: Client, as_json: bool, ids: tuple[str, ...], reason: str | None, waits: bool) -> ExitCode:
    """Stop jobs: a pending one is cancelled, a running one gets SIGTERM, its grace, then SIGKILL."""

    def stop(job_id: str) -> dict[str, Any]:
        return client.stop(job_id, reason)

    if not waits:
        return each(client, ids, as_json, stop, ending)

    def tell(job: dict[str, Any]) -> None:
        # Whatever becomes of the wait, what was asked for is known.
        if not as_json and job["status"] not in TERMINAL_WORDS:
            click.echo(ending(job), err=True)

    stopped, code = accepted(client, ids, as_json, stop, tell)
    ended = []
    for job in stopped:
        ended.append(wait_for(client, job["id"], None, quiet=True))
        if not as_json:
            click.echo(ending(ended[-1]))
    if as_json:
        print_json(ended[0] if len(ids) == 1 else ended)
    return code
