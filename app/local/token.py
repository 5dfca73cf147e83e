"""`cfab token`: prints the token of this machine's stack."""

from __future__ import annotations

from pathlib import Path

import click

from app.cli.failure import ExitCode
from app.local.data import DataDirectory
from config.settings import SettingsError, load_settings


@click.command("token")
@click.option("--data", type=click.Path(path_type=Path), help="Data of the stack; default: CFAB_DATA_DIR.")
def command(data: Path | None) -> None:
    """Print the token that `cfab up` made at its first start."""
    try:
        settings = load_settings()
        root = data.expanduser().absolute() if data is not None else settings.data
        given = settings.api_token if data is None else ""
        click.echo(given or DataDirectory(root).token_file.read_text(encoding="ascii").strip())
    except SettingsError as exc:
        _fail(str(exc))
    except FileNotFoundError:
        _fail(f"there is no token in {root}; run `cfab up` first, or name its data with --data")
    except OSError as exc:
        _fail(f"the token in {root} cannot be read: {exc.strerror}")


def _fail(message: str) -> None:
    click.echo(f"cfab token: {message}", err=True)
    raise click.exceptions.Exit(ExitCode.USAGE)
