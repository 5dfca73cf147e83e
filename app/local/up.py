"""`cfab up`: the one-machine stack in the foreground, until Ctrl-C."""

from __future__ import annotations

from pathlib import Path

import click

from app.cli.failure import ExitCode
from app.local.failure import AnotherVersion, StackError
from app.local.stack import Shape, Stack, prepare
from config.settings import SettingsError, load_settings
from workers.gpus.simulated import SimulatedGpus


@click.command("up")
@click.option("--data", type=click.Path(path_type=Path), help="Where everything is kept; default: CFAB_DATA_DIR.")
@click.option("--host", help="Address of the API; default: CFAB_API_HOST, else 127.0.0.1.")
@click.option("--port", type=click.IntRange(1, 65535), help="Port of the API; default: CFAB_API_PORT, else 8080.")
@click.option("--ai-port", type=click.IntRange(0, 65535), help="Port with the ai contract at /api/v1; 0: none.")
@click.option("--gpu-port", type=click.IntRange(0, 65535), help="Port with the gpu contract at /api/v1; 0: none.")
@click.option("--flower-port", type=click.IntRange(1, 65535), default=5555, show_default=True, help="Port of Flower.")
@click.option("--workers", type=click.IntRange(0, 64), default=1, show_default=True, help="Number of workers.")
@click.option("--slots", type=click.IntRange(1, 100_000), help="Jobs a worker runs at a time at most.")
@click.option("--simulate-gpus", metavar="SPEC", default="", help="GPUs to pretend, such as 4xA100-80GB,2xT4-16GB.")
@click.option("--no-auth", is_flag=True, help="Serve without tokens, on a loopback address only.")
def command(
    data: Path | None,
    host: str | None,
    port: int | None,
    ai_port: int | None,
    gpu_port: int | None,
    flower_port: int,
    workers: int,
    slots: int | None,
    simulate_gpus: str,
    no_auth: bool,
) -> None:
    """Run the whole fabric on this machine until Ctrl-C.

    PostgreSQL, Valkey, API, scheduler, workers and Flower start under one supervisor, which restarts what dies. What
    was accepted survives a stop or a crash of any part; the next `cfab up` on the same data goes on with it. Where
    CFAB_DATABASE_URL or CFAB_BROKER_URL is set, that server is used and none of our own started.
    """
    try:
        settings = load_settings()
        # Worth refusing before there is a database: workers would, one after the other, long after it.
        if spec := simulate_gpus or settings.simulate_gpus:
            SimulatedGpus(spec, settings.node)
        shape = Shape(
            host or settings.api_host, port or settings.api_port, flower_port, workers, slots or 0, simulate_gpus,
            settings.auth == "required" and not no_auth,
            settings.ai_port if ai_port is None else ai_port, settings.gpu_port if gpu_port is None else gpu_port,
        )  # fmt: skip
        root = data.expanduser().absolute() if data is not None else settings.data
        stack = prepare(settings, root, shape, _say)
    except (StackError, SettingsError) as exc:
        click.echo(f"cfab up: {exc}", err=True)
        raise click.exceptions.Exit(ExitCode.USAGE) from exc
    raise click.exceptions.Exit(_run(stack, root, shape))


def _run(stack: Stack, root: Path, shape: Shape) -> ExitCode:
    try:
        stack.start()
        token = (
            "none needed (--no-auth)"
            if not shape.auth
            else f"{root / 'secrets' / 'api_token'} (`cfab token` prints it; `cfab token create` signs others)"
        )
        _say(f"API     {stack.api_url}/api/v1")
        for name, url in stack.secondary_urls.items():
            _say(f"  {name:<5} {url}/api/v1")
        _say(f"Flower  {stack.flower_url}" + ("  (user cfab, password: the token)" if shape.auth else ""))
        _say(f"token   {token}")
        _say(f"data    {root}")
        _say("ready; Ctrl-C stops everything")
        stack.watch()
    except (StackError, OSError) as exc:
        if not stack.stopping:
            click.echo(f"cfab up: {exc}", err=True)
            return ExitCode.USAGE if isinstance(exc, AnotherVersion) else ExitCode.JOB_FAILED
    finally:
        _say("stopping: running jobs are told to end and wait for the next start (Ctrl-C again: at once)")
        stack.stop()
    return ExitCode.OK


def _say(line: str) -> None:
    click.echo(line)
