"""`cfab scheduler`: decides what should happen next."""

from __future__ import annotations

import click

from app.cli.role import role_settings


@click.command("scheduler")
def command() -> None:
    """Reap, promote, sweep and retain until SIGTERM. Two of them do no harm."""
    from scheduler.main import run

    raise click.exceptions.Exit(run(role_settings("scheduler")))
