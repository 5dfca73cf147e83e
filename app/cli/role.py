"""What the roles' commands share: settings from the environment, and a sentence instead of a traceback."""

from __future__ import annotations

import click

from app.cli.failure import ExitCode
from config.settings import Settings, SettingsError, load_settings


def role_settings(role: str) -> Settings:
    """The settings; ends with a message and exit code 2 when one of them cannot be used."""
    try:
        return load_settings()
    except SettingsError as exc:
        raise refuse(role, str(exc)) from exc


def refuse(role: str, message: str) -> click.exceptions.Exit:
    """Says why a role cannot start; raise what it returns."""
    click.echo(f"cfab {role}: {message}", err=True)
    return click.exceptions.Exit(ExitCode.USAGE)
