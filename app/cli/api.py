"""`cfab api`: the API under gunicorn, in this very process."""

from __future__ import annotations

import json
import os
import resource
import socket
import sys
from pathlib import Path

import click

from app.cli.role import refuse, role_settings
from config.settings import Settings, SettingsError

GRACEFUL_S = 5
KEPT_ALIVE = 1000
"""Idle connections that are kept besides those that are served."""
OTHER_FILES = 100


@click.command("api")
def command() -> None:
    """Serve the API on CFAB_API_HOST and CFAB_API_PORT until SIGTERM.

    CFAB_AI_PORT and CFAB_GPU_PORT serve the same with the ai and the gpu contract at /api/v1.
    One process with CFAB_API_THREADS threads for requests and up to CFAB_API_STREAMS more for followed logs.
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
    if settings.auth_keys and "://" not in settings.auth_keys and not _is_key_set(Path(settings.auth_keys)):
        raise refuse(
            "api", f"CFAB_AUTH_KEYS={settings.auth_keys!r} is no JWKS; name a file of one or its https address"
        )
    if settings.rate_limits:
        _check_limits(settings)
    # gunicorn takes either addresses or open sockets, never both.
    binds = [word for one in _sockets(settings) for word in ("--bind", f"fd://{one.detach()}")]
    # Streams have threads of their own beside those of requests; both are started when first needed.
    threads = settings.api_threads + settings.api_streams
    _raise_file_limit(threads + KEPT_ALIVE + settings.database_pool + OTHER_FILES)
    words = [
        *binds, "--workers", "1", "--worker-class", "gthread",
        "--threads", str(threads), "--worker-connections", str(threads + KEPT_ALIVE),
        "--graceful-timeout", str(GRACEFUL_S), "--timeout", "60",
        "--keep-alive", "30", "--log-level", settings.log_level, "--no-control-socket",
    ]  # fmt: skip
    # The worker's heartbeat is a file; on a slow disk it would count as a hang.
    if Path("/dev/shm").is_dir():
        words += ["--worker-tmp-dir", "/dev/shm"]
    os.execv(sys.executable, [sys.executable, "-m", "gunicorn", *words, "app.api.wsgi:app"])


def _check_limits(settings: Settings) -> None:
    """Refuses limits for groups that do not exist here, in one line: gunicorn would show its worker's traceback."""
    from app.api.limits.table import Table

    try:
        Table(settings.rate_limits)
    except SettingsError as exc:
        raise refuse("api", str(exc)) from exc


def _sockets(settings: Settings) -> list[socket.socket]:
    """Open sockets: the main port's, and those of the ports where another contract is the primary one.

    A busy main port is refused; another that is busy is only told, for its contract is served on the main one as well.
    """
    try:
        opened = [_listen(settings.api_host, settings.api_port)]
    except OSError as exc:
        told = f"CFAB_API_PORT={settings.api_port} on {settings.api_host} cannot be used: {exc.strerror}"
        raise refuse("api", told) from exc
    for name, port in (("ai", settings.ai_port), ("gpu", settings.gpu_port)):
        if port in {0, settings.api_port}:
            continue
        try:
            opened.append(_listen(settings.api_host, port))
        except OSError as exc:
            at = f"the {name} contract is served at /{name}/api/v1 of port {settings.api_port} alone"
            told = f"CFAB_{name.upper()}_PORT={port} cannot be used ({exc.strerror}); {at}"
            click.echo(f"cfab api: {told}", err=True)
    return opened


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    one = socket.create_server((host, port), family=family, backlog=2048)
    one.set_inheritable(True)
    return one


def _raise_file_limit(wanted: int) -> None:
    """Lets the process have a socket for each stream, as far as the host allows; most shells give 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def _is_key_set(path: Path) -> bool:
    """Whether the file could be a JWKS: said here in a line, before a server would say it in a traceback."""
    try:
        return isinstance(json.loads(path.read_bytes())["keys"], list)
    except (OSError, ValueError, KeyError, TypeError):
        return False
