"""`cfab stop`: end jobs, running ones too, gracefully."""

from __future__ import annotations

import click

from app.cli.client import Client
from app.cli.failure import ExitCode
from app.cli.options import fabric_command, full_id
from app.cli.render import ending, print_json
from app.cli.wait import wait_for


@click.command("stop")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--reason", metavar="TEXT", help="Kept with the job.")
@click.option("--wait", "waits", is_flag=True, help="Return when the jobs have ended.")
@fabric_command
def command(*, client: Client, as_json: bool, ids: tuple[str, ...], reason: str | None, waits: bool) -> ExitCode:
    """Stop jobs: a pending one is cancelled, a running one gets SIGTERM, its grace, then SIGKILL."""
    stopped = [client.stop(full_id(client, job_id), reason) for job_id in ids]
    if waits:
        stopped = [wait_for(client, job["id"], None, quiet=as_json) for job in stopped]
    if as_json:
        print_json(stopped[0] if len(stopped) == 1 else stopped)
    else:
        click.echo("\n".join(ending(job) for job in stopped))
    return ExitCode.OK
