"""`cfab flower`: Flower on the fabric's broker, with a password unless it is told otherwise."""

from __future__ import annotations

import click

from app.cli.connection import is_loopback
from app.cli.role import refuse, role_settings


@click.command("flower")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind to.")
@click.option("--port", type=click.IntRange(1, 65535), default=5555, show_default=True, help="Port to bind to.")
@click.option("--url-prefix", default="", help="Path under which a proxy serves it.")
@click.option("--max-tasks", type=click.IntRange(1), default=10_000, show_default=True, help="Attempts kept in memory.")
def command(host: str, port: int, url_prefix: str, max_tasks: int) -> None:
    """Serve Flower until SIGTERM: every attempt as a task, by node and state; its terminate stops the job.

    User cfab, password: the API's token; open with CFAB_AUTH=off. Its /metrics and /healthcheck are always open,
    so bind it to loopback or put it behind a proxy.
    """
    settings = role_settings("flower")
    if not settings.broker_url:
        raise refuse("flower", "CFAB_BROKER_URL must be set: Flower watches the broker")
    if settings.auth == "required" and not settings.api_token:
        raise refuse("flower", "CFAB_API_TOKEN or CFAB_API_TOKEN_FILE must be set: it is Flower's password")
    if settings.auth == "off" and not is_loopback(host):
        raise refuse("flower", f"CFAB_AUTH=off works on a loopback address only, not on --host {host}")
    import flower.options  # noqa: F401
    from tornado.options import options

    from app.bells import make_celery

    if settings.auth == "required":
        # Not on the command line, which every user of the machine may read.
        options.basic_auth = [f"cfab:{settings.api_token}"]
    words = [f"--address={host}", f"--port={port}", f"--max-tasks={max_tasks}", "--persistent=False"]
    words += [f"--url-prefix={url_prefix}"] if url_prefix else []
    make_celery(settings).start(["flower", *words])
