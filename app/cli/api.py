"""`cfab api`: the API under gunicorn, in this very process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from app.cli.role import refuse, role_settings

GRACEFUL_S = 5


@click.command("api")
def command() -> None:
    """Serve the API on CFAB_API_HOST and CFAB_API_PORT until SIGTERM.

    One process with CFAB_API_THREADS threads; a followed log holds a thread for as long as it is followed.
    """
    settings = role_settings("api")
    if not settings.database_url:
        raise refuse("api", "CFAB_DATABASE_URL must be set")
    if settings.auth == "required" and not settings.api_token and not settings.auth_keys:
        raise refuse(
            "api",
            "CFAB_API_TOKEN or CFAB_API_TOKEN_FILE must be set, or CFAB_AUTH_KEYS for signed tokens "
            "(or CFAB_AUTH=off, on loopback only)",
        )
    if settings.auth_keys and "://" not in settings.auth_keys and not Path(settings.auth_keys).is_file():
        raise refuse("api", f"CFAB_AUTH_KEYS={settings.auth_keys!r} is no file; name a JWKS or its https address")
    host = f"[{settings.api_host}]" if ":" in settings.api_host else settings.api_host
    words = [
        "--bind", f"{host}:{settings.api_port}", "--workers", "1", "--worker-class", "gthread",
        "--threads", str(settings.api_threads), "--graceful-timeout", str(GRACEFUL_S), "--timeout", "60",
        "--keep-alive", "30", "--log-level", settings.log_level, "--no-control-socket",
    ]  # fmt: skip
    # The worker's heartbeat is a file; on a slow disk it would count as a hang.
    if Path("/dev/shm").is_dir():
        words += ["--worker-tmp-dir", "/dev/shm"]
    os.execv(sys.executable, [sys.executable, "-m", "gunicorn", *words, "app.api.wsgi:app"])
