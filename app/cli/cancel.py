"""`cfab cancel`: take back jobs that have not started."""

from __future__ import annotations

import click

from app.cli.client import Client
from app.cli.control import each
from app.cli.failure import ExitCode
from app.cli.options import fabric_command
from app.cli.render import ending


@click.command("cancel")
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@fabric_command
def command(*, client: Client, as_json: bool, ids: tuple[str, ...]) -> ExitCode:
    """Cancel pending jobs; one that has started is refused (`cfab stop` ends it)."""
    return each(client, ids, as_json, client.cancel, ending)
