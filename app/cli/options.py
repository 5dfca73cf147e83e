"""What the user's commands share: --server, --json, and the way a failure becomes an exit code."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, ParamSpec
from uuid import UUID

import click

from app.cli.client import Client, token_of
from app.cli.failure import ExitCode, Failure, output_lost
from app.cli.paths import part
from config.settings import SettingsError, load_settings

P = ParamSpec("P")
PRIORITIES = ("foreground", "background", "best_effort")
STATUSES = ("pending", "running", "completed", "failed", "cancelled")
# A prefix of a job's id is looked up among this many of the newest jobs, the most that one request lists.
PREFIX_WINDOW = 1000
_UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


def fabric_command(run: Callable[P, ExitCode | None]) -> Callable[P, None]:
    """A command about a tenant's jobs that returns its exit code; adds --server, --tenant and --json."""
    named = click.option("--tenant", "acts_for", metavar="NAME", help="For admins: act for this tenant.")
    return named(whole_fabric_command(run))


def whole_fabric_command(run: Callable[P, ExitCode | None]) -> Callable[P, None]:
    """A command about nodes, tenants or the plan; adds --server and --json, as `client` and `as_json`."""

    @click.option("--server", metavar="URL", help="The fabric to ask; default: CFAB_SERVER_URL.")
    @click.option("--json", "as_json", is_flag=True, help="Print JSON, as the API gives it.")
    @functools.wraps(run)
    def command(*args: P.args, **kwargs: P.kwargs) -> None:
        server, tenant = kwargs.pop("server"), kwargs.pop("acts_for", None)
        try:
            client = connect(server if isinstance(server, str) else None)
            if isinstance(tenant, str):
                client.act_for(tenant)
            code = run(*args, client=client, **kwargs)  # type: ignore[arg-type]
        except Failure as failure:
            click.echo(failure.line(bool(kwargs.get("as_json"))), err=True)
            raise click.exceptions.Exit(failure.code) from failure
        except OSError as exc:
            lost = output_lost(exc)
            click.echo(lost.line(bool(kwargs.get("as_json"))), err=True)
            raise click.exceptions.Exit(lost.code) from exc
        except KeyboardInterrupt:
            raise click.exceptions.Exit(ExitCode.INTERRUPTED) from None
        raise click.exceptions.Exit(code or ExitCode.OK)

    return command


def connect(server: str | None = None) -> Client:
    """A client of `server` (default: the setting), with the token that the settings give."""
    try:
        settings = load_settings()
    except SettingsError as exc:
        raise Failure(ExitCode.USAGE, str(exc)) from exc
    url = server or settings.server_url
    return Client(url, token_of(settings, url))


def full_id(client: Client, job_id: str) -> str:
    """`job_id`, or the one id of the newest jobs that begins with it when it is a prefix of 6 digits or more.

    An id as the ai, gpu and compute contracts write it (job-0190b3…, job_0190b3…) becomes the one that all know.

    Raises Failure NOT_FOUND when none does, USAGE when several do and for what can be no id.
    """
    part("id of a job", job_id)
    other = re.fullmatch(r"(?:job[-_])?([0-9a-fA-F]{32})", job_id)
    if other:
        return str(UUID(other[1]))
    if not re.fullmatch(r"[0-9a-fA-F][0-9a-fA-F-]{5,34}", job_id):
        return job_id
    found = [job["id"] for job in client.jobs(PREFIX_WINDOW) if job["id"].startswith(job_id.lower())]
    if len(found) > 1:
        raise Failure(ExitCode.USAGE, f"{job_id} begins {len(found)} ids; give more of it: {', '.join(found[:3])}")
    if not found:
        message = f"no id of the newest {PREFIX_WINDOW} jobs begins with {job_id}; give the whole id"
        raise Failure(ExitCode.NOT_FOUND, message, {"job_id": job_id})
    return str(found[0])


class Duration(click.ParamType[float]):
    """Seconds: 90, 1.5, or with a unit: 90s, 15m, 2h, 1d."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number of seconds; fails for anything that is no positive duration."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", str(value).strip())
        seconds = float(match[1]) * _UNITS_S[match[2]] if match else 0.0
        if seconds <= 0:
            self.fail(f"{value!r} is no duration; use seconds or a unit, such as 90, 15m, 2h", param, ctx)
        return seconds


class Mebibytes(click.ParamType[int]):
    """Whole MiB: 512, or with a unit: 512M, 512MiB, 4G, 4GiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of MiB; fails for anything that is no positive size."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(?:([MG])(?:iB)?)?", str(value).strip())
        mebibytes = float(match[1]) * (1024 if match[2] == "G" else 1) if match else 0.0
        if mebibytes < 1 or mebibytes != int(mebibytes):
            self.fail(f"{value!r} is no size; use whole MiB or a unit, such as 512, 512M, 4G", param, ctx)
        return int(mebibytes)
