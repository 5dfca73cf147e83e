"""`cfab cancel`: take back jobs that have not started."""

from __future__ import annotations

import click

from app.cli.client import Client
from app.cli.failure import ExitCode
from app.cli.options import fabric_command, full_id
from app.cli.render import ending, print_json


@click.command("cancel")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@fabric_command
def command(*, client: Client, as_json: bool, ids: tuple[str, ...]) -> ExitCode:
    """Cancel pending jobs; one that has started is refused (`cfab stop` ends it)."""
    cancelled = [client.cancel(full_id(client, job_id)) for job_id in ids]
    if as_json:
        print_json(cancelled[0] if len(cancelled) == 1 else cancelled)
    else:
        click.echo("\n".join(ending(job) for job in cancelled))
    return ExitCode.OK
