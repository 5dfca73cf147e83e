"""`cfab logs`: a job's output, all of it or as it comes."""

from __future__ import annotations

import sys

import click

from app.cli.client import Client
from app.cli.failure import ExitCode
from app.cli.follow import follow
from app.cli.options import fabric_command, full_id
from app.cli.render import print_json


@click.command("logs")
@click.argument("job_id", metavar="ID")
@click.option("-f", "--follow", "follows", is_flag=True, help="Go on until the job ends.")
@click.option("--tail", type=click.IntRange(0), metavar="N", help="Only the last N lines (then what comes).")
@click.option("--stream", type=click.Choice(("stdout", "stderr")), help="Only one of the two.")
@fabric_command
def command(
    *, client: Client, as_json: bool, job_id: str, follows: bool, tail: int | None, stream: str | None
) -> ExitCode:
    """Print a job's output; with -f its stderr goes to standard error."""
    found = full_id(client, job_id)
    last = None if tail is None else str(tail)
    if follows:
        follow(client, found, as_json, last, stream)
    elif as_json:
        print_json(client.log_lines(found, tail=last, stream=stream))
    else:
        output = sys.stdout.buffer
        with client.log_bytes(found, tail=last, stream=stream) as chunks:
            for chunk in chunks:
                output.write(chunk)
        output.flush()
    return ExitCode.OK
