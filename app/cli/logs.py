"""`cfab logs`: a job's output, all of it or as it comes."""

from __future__ import annotations

from collections.abc import Mapping

import click

from app.cli.client import TERMINAL_WORDS, Client
from app.cli.failure import ExitCode
from app.cli.follow import follow
from app.cli.log_output import outputs
from app.cli.options import fabric_command, full_id
from app.cli.render import print_json


@click.command("logs")
@click.argument("job_id", metavar="ID")
@click.option("-f", "--follow", "follows", is_flag=True, help="Go on until the job ends: 0 completed, 1 failed.")
@click.option("--tail", type=click.IntRange(0), metavar="N", help="Only the last N lines (then what comes).")
@click.option("--timestamps", is_flag=True, help="Begin each line with its time.")
@click.option("--stream", type=click.Choice(("stdout", "stderr")), help="Only one of the two.")
@click.option("--attempt", type=click.IntRange(1), metavar="N", help="An earlier attempt; default: the last.")
@click.option("--member", type=click.IntRange(0), metavar="N", help="Of a gang: the member of this rank; default: 0.")
@click.option("--raw", is_flag=True, help="On a terminal: the bytes as they are, colours and all else.")
@fabric_command
def command(
    *,
    client: Client,
    as_json: bool,
    job_id: str,
    follows: bool,
    tail: int | None,
    timestamps: bool,
    stream: str | None,
    attempt: int | None,
    member: int | None,
    raw: bool,
) -> ExitCode:
    """Print a job's output; with -f its stderr goes to standard error.

    A terminal gets no escape sequences and no other control characters, unless --raw; a file or a pipe gets the bytes.
    """
    found = full_id(client, job_id)
    last, number = None if tail is None else str(tail), None if attempt is None else str(attempt)
    rank = None if member is None else str(member)
    if follows:
        ended = follow(client, found, as_json, last, stream, number, raw, timestamps, rank)
        # An attempt that is over says nothing yet about a job that is tried again.
        failed = ended["status"] in TERMINAL_WORDS - {"completed"}
        return ExitCode.JOB_FAILED if failed else ExitCode.OK
    options = {"tail": last, "stream": stream, "attempt": number, "member": rank}
    options["timestamps"] = "true" if timestamps else None
    if as_json:
        print_json(client.log_lines(found, **options))
        return ExitCode.OK
    with client.log_bytes(found, **options) as (headers, chunks):
        output = outputs(raw, timestamps=False)["stdout"]
        for chunk in chunks:
            output.write(chunk)
        output.close()
    _tell_missing(headers)
    return ExitCode.OK


def _tell_missing(headers: Mapping[str, str]) -> None:
    """Says on standard error what the output lacks, so that standard output carries nothing but it."""
    dropped = headers.get("X-Truncated-Bytes", "0")
    if dropped != "0":
        click.echo(f"[truncated: {dropped} bytes were dropped]", err=True)
    if headers.get("X-Log-Gap") == "true":
        click.echo("[log gap: some output is missing]", err=True)
