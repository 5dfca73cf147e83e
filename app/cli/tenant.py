"""`cfab tenant`: make, list, show and change tenants: what each may hold, and what it holds now."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import click

from app.cli.client import Client
from app.cli.failure import ExitCode
from app.cli.options import whole_fabric_command
from app.cli.render import plain, print_json, table
from app.cli.tenant_images import command as images

TIERS = ("low", "medium", "high", "critical")
WIDTH = 20
"""Characters of the bar that shows how much of a quota is in use."""
NEARLY = 0.8
_LABELS = {
    "jobs": "jobs",
    "cpus": "CPUs",
    "memory_mib": "memory",
    "gpus": "GPUs",
    "gpu_memory_mb": "GPU memory",
}
_BINARY = {"": 1.0, "M": 1.0, "G": 1024.0, "T": 1024.0**2, "MiB": 1.0, "GiB": 1024.0, "TiB": 1024.0**2}
_DECIMAL = {"": 1.0, "M": 1.0, "G": 1e3, "T": 1e6, "MB": 1.0, "GB": 1e3, "TB": 1e6}
_DECIMAL |= {"MiB": 2**20 / 1e6, "GiB": 2**30 / 1e6, "TiB": 2**40 / 1e6}

Command = TypeVar("Command", bound=Callable[..., Any])


class Limit(click.ParamType[float]):
    """A number of at least 0, with a unit where `units` has any; `none` is infinity: no limit."""

    name = "limit"

    def __init__(self, units: Mapping[str, float], whole: bool = False) -> None:
        self._units = units
        self._whole = whole

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number in the smallest unit; fails for anything else."""
        if str(value).lower() == "none":
            return math.inf
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([A-Za-z]*)", str(value).strip())
        if match is None or match[2] not in self._units or (self._whole and "." in match[1]):
            units = ", ".join(unit for unit in self._units if unit)
            kind = "a whole number" if self._whole else "a number" + (f" with or without {units}" if units else "")
            self.fail(f"{value!r} is no limit; give {kind}, or none for no limit", param, ctx)
        return float(match[1]) * self._units[match[2]]


def _fields(command: Command) -> Command:
    """Adds the options for all that can be said about a tenant."""
    options = (
        click.option("--tier", type=click.Choice(TIERS), help="How far up its jobs may ask."),
        click.option("--weight", type=float, help="Its share against other tenants; most have 1."),
        click.option("--quota-jobs", type=Limit({"": 1.0}, whole=True), metavar="N", help="Jobs at a time, or none."),
        click.option("--quota-cpus", type=Limit({"": 1.0}), metavar="N", help="CPUs at a time, or none."),
        click.option("--quota-memory", type=Limit(_BINARY), metavar="SIZE", help="Memory, such as 64G (GiB), or none."),
        click.option("--quota-gpus", type=Limit({"": 1.0}, whole=True), metavar="N", help="GPUs at a time, or none."),
        click.option(
            "--quota-gpu-memory",
            type=Limit(_DECIMAL),
            metavar="SIZE",
            help="GPU memory over all GPUs, such as 80G (10^9 bytes, as on the card) or 80GiB, or none.",
        ),
        click.option("--email", help="Whom to write to."),
        click.option("--organization", help="Whom it belongs to."),
        click.option("--allow-preemption/--no-allow-preemption", default=None, help="May its jobs be put back?"),
        click.option("--can-preempt-others/--cannot-preempt-others", default=None, help="May it put others back?"),
        click.option("--active/--inactive", default=None, help="Inactive: submits and starts nothing."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.group("tenant")
def command() -> None:
    """Make, list, show and change tenants (make and set need the role admin)."""


command.add_command(images)


@command.command("create")
@click.argument("name")
@_fields
@whole_fabric_command
def create(*, client: Client, as_json: bool, name: str, **given: Any) -> ExitCode:
    """Make a tenant: of tier medium and without limits, unless told otherwise."""
    made = client.make_tenant({"name": name, **body_of(given)})
    _print(made, as_json)
    return ExitCode.OK


@command.command("ls")
@whole_fabric_command
def list_all(*, client: Client, as_json: bool) -> ExitCode:
    """List tenants by name, with what each holds of what it may hold."""
    tenants = client.tenants()
    if as_json:
        print_json(tenants)
    else:
        head = ("NAME", "TIER", "WEIGHT", "JOBS", "CPUS", "MEMORY", "GPUS", "GPU MEMORY", "STATE")
        click.echo(table(head, [_row(tenant) for tenant in tenants]))
    return ExitCode.OK


@command.command("show")
@click.argument("name", metavar="NAME_OR_ID")
@whole_fabric_command
def show(*, client: Client, as_json: bool, name: str) -> ExitCode:
    """Show one tenant, and how much of each quota is in use."""
    _print(client.tenant(name), as_json)
    return ExitCode.OK


@command.command("set")
@click.argument("name", metavar="NAME_OR_ID")
@_fields
@whole_fabric_command
def change(*, client: Client, as_json: bool, name: str, **given: Any) -> ExitCode:
    """Change what the options name, and nothing else. Nothing that runs is stopped."""
    changes = body_of(given)
    if not changes:
        raise click.UsageError("nothing to change was given; see --help")
    _print(client.change_tenant(name, changes), as_json)
    return ExitCode.OK


def body_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options that were given as the API's body."""
    named = {"quota_memory": "memory_mib", "quota_gpu_memory": "gpu_memory_mb"}
    quota: dict[str, int | float | None] = {}
    body: dict[str, Any] = {}
    for name, value in given.items():
        if value is None:
            continue
        if name.startswith("quota_"):
            quota[named.get(name, name.removeprefix("quota_"))] = _number(value)
        else:
            body[name] = value
    return body | ({"quota": quota} if quota else {})


def _number(value: float) -> int | float | None:
    if math.isinf(value):
        return None
    return int(value) if value == int(value) else value


def describe(tenant: Mapping[str, Any]) -> Iterator[str]:
    """The tenant as lines for people."""
    facts: dict[str, object] = {"name": plain(tenant["name"]), "id": tenant["id"], "tier": tenant["tier"]}
    facts["weight"] = f"{tenant['weight']:.15g}"
    facts["state"] = _state(tenant)
    facts["preemption"] = _preemption(tenant)
    facts |= {name: plain(tenant[name]) for name in ("email", "organization") if tenant.get(name)}
    facts["created"] = tenant["created_at"]
    yield from (f"{name:<14}{value}" for name, value in facts.items())
    yield ""
    for name, label in _LABELS.items():
        yield f"{label:<14}{bar(tenant['usage'][name], tenant['quota'][name])}  {_of(tenant, name)}"


def bar(used: float, limit: float | None) -> str:
    """A picture of how much of a limit is in use: green, yellow when nearly all of it is, red when all of it is."""
    if limit is None:
        return click.style("·" * WIDTH, fg="bright_black")
    part = 1.0 if used >= limit else used / limit
    full = min(WIDTH, max(int(used > 0), int(part * WIDTH)))
    colour = "red" if part >= 1 and used else "yellow" if NEARLY <= part < 1 else "green"
    return click.style("█" * full, fg=colour) + click.style("░" * (WIDTH - full), fg="bright_black")


def _of(tenant: Mapping[str, Any], name: str) -> str:
    used, limit = tenant["usage"][name], tenant["quota"][name]
    held = _amount(name, used)
    return f"{held}, no limit" if limit is None else f"{held} of {_amount(name, limit)}"


def _amount(name: str, value: float) -> str:
    if name == "memory_mib":
        return f"{round(value / 1024, 2):.15g} GiB" if value >= 1024 else f"{value:g} MiB"
    if name == "gpu_memory_mb":
        return f"{round(value / 1000, 2):.15g} GB" if value >= 1000 else f"{value:g} MB"
    return f"{value:.15g}"


def _row(tenant: Mapping[str, Any]) -> tuple[str, ...]:
    parts = []
    for name in _LABELS:
        used, limit = tenant["usage"][name], tenant["quota"][name]
        parts.append(f"{_amount(name, used)} / {'-' if limit is None else _amount(name, limit)}")
    return (plain(tenant["name"]), tenant["tier"], f"{tenant['weight']:.15g}", *parts, _state(tenant))


def _state(tenant: Mapping[str, Any]) -> str:
    return click.style("active", fg="green") if tenant["active"] else click.style("inactive", fg="red")


def _preemption(tenant: Mapping[str, Any]) -> str:
    back = "may be put back" if tenant["allow_preemption"] else "is never put back"
    return f"{back}, {'may' if tenant['can_preempt_others'] else 'may not'} put others back"


def _print(tenant: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(tenant)
    else:
        click.echo("\n".join(describe(tenant)))
