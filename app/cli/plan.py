"""`cfab plan`: what the planner keeps for whom, who makes room, and what of each node is held and reserved."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from app.cli.client import Client
from app.cli.explain import BAR_CELLS
from app.cli.failure import ExitCode
from app.cli.live import redraw
from app.cli.options import Duration, whole_fabric_command
from app.cli.render import moment, plain, print_json, size, span
from app.cli.terminal import console

NAMED_NODES = 4
_WHY = {
    "gang": "its members start together",
    "large": "it needs more at a time than others",
    "starved": "it has waited too long",
    "preempting": "others make room for it",
}
_BARS = ("SLOTS", "CPUS", "MEMORY")
_PARTS = (("█", "cyan"), ("▓", "yellow"), ("▒", "yellow"), ("░", "bright_black"))
_GPU = {"free": ("▯", "green"), "held": ("▮", "cyan"), "shared": ("▤", "cyan"), "out": ("✗", "red")}
_GPU_KEPT = {"free": ("▨", "yellow"), "held": ("◆", "yellow"), "shared": ("◆", "yellow"), "out": ("✗", "red")}
_STATE = {"ready": "green", "draining": "magenta", "offline": "bright_black"}
LEGEND = "held/has +reserved   █ ▮ held  ▓ ◆ held, then reserved  ▒ ▨ reserved  ░ ▯ free"


@dataclass
class Kept:
    """What is reserved on one node, for all jobs together."""

    members: int = 0
    cpus: float = 0.0
    memory_bytes: int = 0
    gpus: set[str] = field(default_factory=set)


@click.command("plan")
@click.option("--watch", is_flag=True, help="Show it again and again until Ctrl-C.")
@click.option("--every", type=Duration(), default=2.0, help="Seconds between two looks of --watch; default 2.")
@whole_fabric_command
def command(*, client: Client, as_json: bool, watch: bool, every: float) -> ExitCode:
    """Show what the planner does: reserved room, kept quotas, who makes room, each node (needs the role operator)."""

    def look() -> tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]:
        return client.plan(), [] if as_json else client.nodes()

    on_terminal = sys.stdout.isatty()
    if watch and on_terminal and not as_json:
        redraw(look(), look, lambda found, _width: picture(*found), every)
    while True:
        plan, nodes = look()
        if as_json:
            print_json(plan)
        else:
            console().print(picture(plan, nodes))
        if not watch:
            return ExitCode.OK
        time.sleep(every)


def picture(plan: Mapping[str, Any], nodes: Sequence[Mapping[str, Any]], now: datetime | None = None) -> RenderableType:
    """The plan for a terminal: the last cycle, reserved jobs, who makes room, a line for each node."""
    now = now or datetime.now(UTC)
    parts: list[RenderableType] = list(_cycle(plan))
    if plan["reservations"]:
        parts += [Text(""), Text("reserved", style="dim"), *_reservations(plan["reservations"], now)]
    else:
        parts.append(Text("Nothing is reserved.", style="dim"))
    if plan.get("quota_holds"):
        parts += [Text(""), Text("quotas that are kept", style="dim"), *_quota_holds(plan["quota_holds"], now)]
    if plan["making_room"]:
        parts += [Text(""), Text("told to make room, and ending", style="dim"), *_making_room(plan["making_room"], now)]
    planned = [node for node in nodes if node["kind"] == "agent"]
    if planned:
        parts += [Text(""), _nodes(planned, kept_on(plan["reservations"])), Text(""), Text(LEGEND, style="dim")]
    return Group(*parts)


def kept_on(reservations: Sequence[Mapping[str, Any]]) -> dict[str, Kept]:
    """What is reserved on each node."""
    kept: dict[str, Kept] = {}
    for one in reservations:
        on = kept.setdefault(one["node"], Kept())
        on.members += one["members"]
        on.cpus += one["cpus"]
        on.memory_bytes += one["memory_bytes"]
        on.gpus.update(one["gpus"])
    return kept


def _cycle(plan: Mapping[str, Any]) -> Iterator[Text]:
    cycle, totals = plan["cycle"], plan["totals"]
    if plan["late"]:
        silent = plan["silent_seconds"]
        heard = "No plan was ever made" if silent is None else f"The planner was last heard of {_span(silent)} ago"
        yield Text(f"{heard}: nobody places gangs, reserves room or preempts. Does `cfab scheduler` run?", style="red")
    if cycle is None:
        return
    nodes = f"{cycle['nodes']} {'node' if cycle['nodes'] == 1 else 'nodes'}"
    saw = f"{nodes}, {cycle['running']} running, {cycle['waiting']} waiting"
    did = f"placed {cycle['placed']}, reserved {cycle['reserved']}, preempted {cycle['preempted']}"
    yield Text(f"Planned {_span(cycle['age_seconds'])} ago in {_took(cycle['seconds'])}: {saw}; {did}.")
    if totals["cycles"]:
        mean = _took(totals["seconds"] / totals["cycles"])
        done = f"{totals['placed']:,} placed, {totals['refused']:,} refused, {totals['preempted']:,} preempted"
        yield Text(f"In {totals['cycles']:,} cycles of {mean} on average: {done}.", style="dim")


def _reservations(reservations: Sequence[Mapping[str, Any]], now: datetime) -> Iterator[Text]:
    """Two lines a job, so that its id stays whole on any terminal."""
    jobs: dict[str, list[Mapping[str, Any]]] = {}
    for one in reservations:
        jobs.setdefault(one["job_id"], []).append(one)
    for job_id, places in jobs.items():
        first = places[0]
        counts = "" if first["counts_as"] == first["effective_class"] else f" as {first['counts_as']}"
        where = [plain(one["node"]) + (f" ×{one['members']}" if one["members"] > 1 else "") for one in places]
        members = f"{first['job_members']} members" if first["job_members"] > 1 else "it"
        yield Text(f"{job_id}  {plain(first['tenant'])}  {first['effective_class']}{counts}", style="yellow")
        starts = _starts(moment(first["starts_at"]), now)
        yield Text(f"  starts {starts}: {_WHY.get(first['why'], plain(first['why']))}; {members} on {_named(where)}")


def _quota_holds(holds: Sequence[Mapping[str, Any]], now: datetime) -> Iterator[Text]:
    for one in holds:
        since = moment(one["made_at"])
        when = "" if since is None else f" for {span(now - since)}"
        members = f"{one['job_members']} members" if one["job_members"] > 1 else "it"
        yield Text(f"{one['job_id']}  {plain(one['tenant'])}  {one['effective_class']}", style="yellow")
        yield Text(f"  {', '.join(_kept_of(one))} of its tenant's quota kept{when}, until {members} can start")


def _kept_of(hold: Mapping[str, Any]) -> Iterator[str]:
    for name, word in (("jobs", "job"), ("cpus", "CPU"), ("gpus", "GPU")):
        if hold[name]:
            yield f"{hold[name]:g} {word}" + ("" if hold[name] == 1 else "s")
    for name, word in (("memory_bytes", "memory"), ("gpu_memory_bytes", "GPU memory")):
        if hold[name]:
            yield f"{size(hold[name])} of {word}"


def _making_room(jobs: Sequence[Mapping[str, Any]], now: datetime) -> Iterator[Text]:
    for job in jobs:
        since = moment(job["since"])
        when = "" if since is None else f" {span(now - since)} ago"
        gpus = f", {job['gpus']} {'GPU' if job['gpus'] == 1 else 'GPUs'}" if job["gpus"] else ""
        gives = f"{job['cpus']:g} CPUs, {size(job['memory_bytes'])}{gpus}"
        yield Text(f"{job['job_id']}  {plain(job['tenant'])}", style="magenta")
        whom = f" for {job['for_job_id']}" if job["for_job_id"] else ""
        yield Text(f"  told{when}{whom}; gives back {gives} on {_named([plain(name) for name in job['nodes']])}")


def _nodes(nodes: Sequence[Mapping[str, Any]], kept: Mapping[str, Kept]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("NODE", "STATE", *_BARS, "GPUS"):
        wide = column in _BARS
        table.add_column(column, no_wrap=not wide, min_width=BAR_CELLS if wide else None)
    for node in nodes:
        on = kept.get(node["name"], Kept())
        table.add_row(
            escape(plain(node["name"])),
            Text(node["state"], style=_STATE.get(node["state"], "")),
            _amount(node["slots"], on.members),
            _amount(node["cpus"], on.cpus),
            _amount(node["memory_bytes"], on.memory_bytes, in_bytes=True),
            signs(node["gpus"], on.gpus),
        )
    return table


def _amount(amount: Mapping[str, float], kept: float, in_bytes: bool = False) -> Text:
    has, held = amount["total"], amount["total"] - amount["free"]
    figure = size if in_bytes else "{:g}".format
    more = f" +{figure(kept)}" if kept else ""
    return bar(held, kept, has).append(f" {figure(held)}/{figure(has)}{more}", style="default")


def bar(held: float, kept: float, has: float) -> Text:
    """Cells for what is held, held and reserved, reserved, free; what is held and what is reserved may overlap."""
    both = max(0.0, held + kept - has)
    ends = (held - both, held, held + kept - both, has)
    text, before = Text(), 0
    for end, (sign, colour) in zip(ends, _PARTS, strict=True):
        cells = 0 if has <= 0 else max(before, min(BAR_CELLS, int(BAR_CELLS * end / has + 0.5)))
        text.append(sign * (cells - before), style=colour)
        before = max(before, cells)
    return text if has > 0 else Text("░" * BAR_CELLS, style=_PARTS[-1][1])


def signs(gpus: Sequence[Mapping[str, Any]], kept: set[str]) -> Text:
    """One sign for each GPU, and how many are reserved."""
    text = Text()
    for one in gpus:
        sign, colour = (_GPU_KEPT if one["uuid"] in kept else _GPU)[one["state"]]
        text.append(sign, style=colour)
    if not gpus:
        return Text("-", style="dim")
    held = sum(one["state"] in {"held", "shared"} for one in gpus)
    count = sum(one["uuid"] in kept for one in gpus)
    return text.append(f" {held}/{len(gpus)}" + (f" +{count}" if count else ""))


def _starts(at: datetime | None, now: datetime) -> str:
    if at is None:
        return "when what runs there ends, some of it without a time limit"
    return f"within {span(at - now)}" if at > now else "now"


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED_NODES} more" if len(names) > NAMED_NODES else ""
    return ", ".join(names[:NAMED_NODES]) + more


def _span(seconds: float) -> str:
    return span(timedelta(seconds=seconds))


def _took(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
