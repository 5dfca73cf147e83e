"""`cfab migrate`: brings the database to this version's schema."""

from __future__ import annotations

import click

from app.cli.failure import ExitCode
from app.cli.role import refuse, role_settings
from app.domain.errors import FabricError


@click.command("migrate")
def command() -> None:
    """Bring the database of CFAB_DATABASE_URL to this version's schema; harmless to repeat."""
    settings = role_settings("migrate")
    if not settings.database_url:
        raise refuse("migrate", "CFAB_DATABASE_URL must be set")
    from app.storage.migrate import SchemaTooNew, upgrade

    try:
        revision = upgrade(settings.database_url)
    except FabricError as exc:
        click.echo(f"cfab migrate: {exc.message} {dict(exc.context) or ''}".rstrip(), err=True)
        newer = isinstance(exc, SchemaTooNew)
        raise click.exceptions.Exit(ExitCode.USAGE if newer else ExitCode.JOB_FAILED) from exc
    click.echo(f"the database is at revision {revision}")
