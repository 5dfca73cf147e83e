"""`cfab ps`: the newest jobs as a table, once or again and again."""

from __future__ import annotations

import time

import click

from app.cli.client import Client
from app.cli.failure import ExitCode
from app.cli.options import PRIORITIES, STATUSES, Duration, fabric_command
from app.cli.render import job_table, print_json


@click.command("ps")
@click.option("--status", type=click.Choice(STATUSES), help="Only jobs in this state.")
@click.option("--type", "job_type", metavar="WORD", help="Only jobs of this type.")
@click.option("--priority", type=click.Choice(PRIORITIES), help="Only jobs of this class.")
@click.option("--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="How many at most.")
@click.option("--watch", is_flag=True, help="Show them again and again until Ctrl-C.")
@click.option("--every", type=Duration(), default=2.0, help="Seconds between two looks of --watch; default 2.")
@fabric_command
def command(
    *,
    client: Client,
    as_json: bool,
    status: str | None,
    job_type: str | None,
    priority: str | None,
    limit: int,
    watch: bool,
    every: float,
) -> ExitCode:
    """List jobs, the newest first."""
    while True:
        jobs = client.jobs(limit, status=status, type=job_type, priority=priority)
        if watch:
            # click.clear does nothing where output is no terminal.
            click.clear()
        if as_json:
            print_json(jobs)
        else:
            click.echo(job_table(jobs))
        if not watch:
            return ExitCode.OK
        time.sleep(every)
