"""`cfab worker`: runs jobs on this host, or shows the GPUs that it would offer."""

from __future__ import annotations

import sys

import click

from app.cli.role import refuse, role_settings
from config.settings import SettingsError


@click.command("worker", context_settings={"ignore_unknown_options": True})
@click.option("--gpus", "shows", is_flag=True, help="Show the GPUs that it would offer, as gpustat does, and end.")
@click.argument("celery_options", nargs=-1, type=click.UNPROCESSED)
def command(shows: bool, celery_options: tuple[str, ...]) -> None:
    """Run jobs on this host until SIGTERM, which detaches: jobs go on, and the next worker takes them over.

    CELERY_OPTIONS are handed to Celery's worker.
    """
    settings = role_settings("worker")
    if shows:
        from workers.gpus.inventory import inventory, show

        try:
            show(inventory(settings), sys.stdout)
        except SettingsError as exc:
            raise refuse("worker", str(exc)) from exc
        return
    from workers.main import run

    raise click.exceptions.Exit(run(settings, celery_options))
