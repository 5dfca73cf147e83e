"""`cfab worker`: runs jobs on this host."""

from __future__ import annotations

import click

from app.cli.role import role_settings


@click.command("worker", context_settings={"ignore_unknown_options": True})
@click.argument("celery_options", nargs=-1, type=click.UNPROCESSED)
def command(celery_options: tuple[str, ...]) -> None:
    """Run jobs on this host until SIGTERM, which detaches: jobs go on, and the next worker takes them over.

    CELERY_OPTIONS are handed to Celery's worker.
    """
    from workers.main import run

    raise click.exceptions.Exit(run(role_settings("worker"), celery_options))
