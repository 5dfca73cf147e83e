"""`cfab nodes`: what each node has and what of it is free, as a picture; drain, resume, label, GPUs out and in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from app.cli.client import Client
from app.cli.explain import BAR_CELLS, bar
from app.cli.failure import ExitCode
from app.cli.options import Duration, whole_fabric_command
from app.cli.paths import part
from app.cli.render import moment, plain, print_json, size, span
from app.cli.terminal import ROOM_FOR_BARS
from app.cli.terminal import show as draw

JOB_CELLS, GPU_CELLS = 36, 42
_STATE = {"ready": "green", "draining": "magenta", "offline": "bright_black"}
_GPU = {"free": ("▯", "green"), "held": ("▮", "cyan"), "shared": ("▤", "cyan"), "out": ("✗", "red")}
_SHARED = {"yes": True, "no": False, "default": None}
_BARS = ("SLOTS", "CPUS", "MEMORY")
LEGEND = "free/has   █ ▯ free  ░ ▮ held  ▤ shared  ✗ out"
_RESOURCES = {"slots": "slots", "cpus": "CPUs", "memory_bytes": "memory"}


class LabelPair(click.ParamType[tuple[str, str | None]]):
    """NAME=VALUE sets a label, NAME- removes it."""

    name = "label"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str | None]:
        """The pair; a removed label has None."""
        if isinstance(value, tuple):
            return value
        name, given, wanted = str(value).partition("=")
        if given and name:
            return name, wanted
        if not given and name.endswith("-") and len(name) > 1:
            return name[:-1], None
        raise click.BadParameter(f"{value!r} is no label; write NAME=VALUE to set one, NAME- to remove one", ctx, param)


class Wait(Duration):
    """A duration, or 0."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number of seconds."""
        return 0.0 if str(value).strip() == "0" else super().convert(value, param, ctx)


@click.group("nodes")
def command() -> None:
    """List, show, drain, resume, label and forget nodes; take GPUs out and in (needs the role operator)."""


@command.command("ls")
@click.option("--state", type=click.Choice(tuple(_STATE)), help="Only nodes of this state.")
@click.option("--label", metavar="NAME=VALUE", help="Only nodes with this label.")
@whole_fabric_command
def list_all(*, client: Client, as_json: bool, state: str | None, label: str | None) -> ExitCode:
    """List nodes, with what is free of what each has."""
    nodes = client.nodes(state=state, label=label)
    if as_json:
        print_json(nodes)
    else:
        draw(lambda width: listed(nodes, width) if nodes else Text("No nodes.", style="dim"))
    return ExitCode.OK


@command.command("show")
@click.argument("name")
@whole_fabric_command
def show(*, client: Client, as_json: bool, name: str) -> ExitCode:
    """Show one node: what is free, each GPU, labels, and the jobs it holds."""
    return _print(client.node(name), as_json)


@command.command("drain")
@click.argument("name")
@click.option("--reason", help="Why; shown to everyone who asks about the node. Default: as it drains already.")
@click.option(
    "--deadline", type=Wait(), metavar="TIME", help="Then what still runs is stopped and runs elsewhere, such as 30m."
)
@whole_fabric_command
def drain(*, client: Client, as_json: bool, name: str, reason: str | None, deadline: float | None) -> ExitCode:
    """Give a node no more jobs until `cfab nodes resume`; without --deadline its jobs run to their end."""
    seconds = None if deadline is None else round(deadline)
    asked = {"deadline_seconds": seconds, **({} if reason is None else {"reason": reason})}
    return _print(client.change_node("POST", name, "/drain", **asked), as_json)


@command.command("resume")
@click.argument("name")
@whole_fabric_command
def resume(*, client: Client, as_json: bool, name: str) -> ExitCode:
    """End a drain: the node takes jobs again."""
    return _print(client.change_node("POST", name, "/resume"), as_json)


@command.command("forget")
@click.argument("name")
@whole_fabric_command
def forget(*, client: Client, as_json: bool, name: str) -> ExitCode:
    """Remove a node that is gone for good; one that comes back registers as a new one."""
    client.forget_node(name)
    if as_json:
        print_json({"name": name, "forgotten": True})
    else:
        print(f"{plain(name)} is forgotten.")
    return ExitCode.OK


@command.command("label")
@click.argument("name")
@click.argument("labels", nargs=-1, required=True, type=LabelPair(), metavar="NAME=VALUE|NAME- ...")
@whole_fabric_command
def label(*, client: Client, as_json: bool, name: str, labels: Sequence[tuple[str, str | None]]) -> ExitCode:
    """Set labels of a node, or remove them (NAME-)."""
    return _print(client.change_node("PATCH", name, labels=dict(labels)), as_json)


@command.command("gpu")
@click.argument("name")
@click.argument("gpu", metavar="UUID|INDEX")
@click.option("--out", "reason", metavar="REASON", help="No job gets it from now on; one that has it goes on.")
@click.option("--in", "back", is_flag=True, help="Jobs get it again.")
@click.option(
    "--shared", type=click.Choice(tuple(_SHARED)), help="Whether jobs may share it; default: as CFAB_GPU_SHARING says."
)
@whole_fabric_command
def gpu(
    *, client: Client, as_json: bool, name: str, gpu: str, reason: str | None, back: bool, shared: str | None
) -> ExitCode:
    """Take a GPU out of a node, put it in again, or let jobs share it; the rest of the node works on."""
    if (back and reason is not None) or not (back or reason is not None or shared):
        raise click.UsageError("say --out REASON or --in, or --shared yes, no or default")
    changes: dict[str, Any] = {"out": reason} if back or reason is not None else {}
    changes |= {"shared": _SHARED[shared]} if shared else {}
    below = "/gpus/" + part("GPU of a node", gpu)
    return _print(client.change_node("PATCH", name, below, **changes), as_json)


def listed(nodes: Sequence[Mapping[str, Any]], width: int = ROOM_FOR_BARS) -> RenderableType:
    """Nodes as lines: state, bars of what is free, one sign per GPU; then what there is to say of some."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    bars = width >= ROOM_FOR_BARS
    for column in ("NODE", "STATE", *_BARS, "GPUS", "JOBS", "SEEN"):
        wide = column in _BARS and bars
        table.add_column(column, no_wrap=not wide, min_width=BAR_CELLS if wide else None)
    for node in nodes:
        table.add_row(
            escape(plain(node["name"])),
            _state(node),
            *[_free(node, name, bars) for name in _RESOURCES],
            signs(node["gpus"]),
            str(node["jobs"]),
            _ago(node["silent_seconds"]),
        )
    notes = [Text(f"{plain(node['name'])}: {note}", style="dim") for node in nodes if (note := _note(node))]
    return Group(table, *([Text("")] if notes else []), *notes, Text(""), Text(LEGEND, style="dim"))


def picture(node: Mapping[str, Any], width: int = ROOM_FOR_BARS) -> RenderableType:
    """One node for a terminal of so many columns."""
    bars = width >= ROOM_FOR_BARS
    parts: list[RenderableType] = [Text.assemble((plain(node["name"]), "bold"), "  ", _state(node))]
    parts += [Text(f"  {line}", style=style) for line, style in _facts(node)]
    free = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for name, word in _RESOURCES.items():
        free.add_row(word, _free(node, name))
    if node["gpus"]:
        free.add_row("GPUs", signs(node["gpus"]))
    parts += [Text(""), Text(LEGEND, style="dim"), free]
    if node["gpus"]:
        parts += [Text(""), _gpus(node["gpus"], bars)]
    if node.get("running"):
        parts += [Text(""), _jobs(node["running"], bars)]
    return Group(*parts)


def signs(gpus: Sequence[Mapping[str, Any]]) -> Text:
    """One sign per GPU (▯ free, ▮ held, ▤ shared, ✗ out) and how many are free."""
    text = Text()
    for one in gpus:
        sign, colour = _GPU[one["state"]]
        text.append(sign, style=colour)
    count = sum(one["state"] == "free" for one in gpus)
    return text.append(f" {count}/{len(gpus)}") if gpus else Text("-", style="dim")


def _facts(node: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    order = node["drain"]
    if order:
        who = f" by {plain(order['by'])}" if order["by"] else ""
        since = f" since {order['since']}" if order["since"] else ""
        why = f": {plain(order['reason'])}" if order["reason"] else ""
        yield f"Draining{who}{since}{why}", "magenta"
        count = node["jobs"]
        left = f"{count} {'job is' if count == 1 else 'jobs are'} left" if count else "It is empty"
        until = f"; what still runs is stopped at {order['deadline']}" if order["deadline"] and count else ""
        yield f"{left}{until}.", "magenta"
    facts = [f"{node['kind']} in cluster {plain(node['cluster'])}", f"seen {_ago(node['silent_seconds'])} ago"]
    facts += [plain(node["ip"])] if node["ip"] else []
    facts += [f"version {plain(node['version'])}"] if node["version"] else []
    yield ", ".join([*facts, "runs " + plain(", ".join(node["runners"]))]), "dim"
    if node["labels"]:
        yield "labels: " + plain(", ".join(f"{k}={v}" for k, v in sorted(node["labels"].items()))), ""


def _note(node: Mapping[str, Any]) -> str:
    notes = []
    order = node["drain"]
    if order:
        notes.append("drained" + (f" for {plain(order['reason'])}" if order["reason"] else ""))
        notes[-1] += f", jobs stop at {order['deadline']}" if order["deadline"] else ""
    notes += [f"GPU {one['index']} out: {plain(one['reason'])}" for one in node["gpus"] if one["state"] == "out"]
    notes += [plain(f"{k}={v}") for k, v in sorted(node["labels"].items())]
    return ", ".join(notes)


def _gpus(gpus: Sequence[Mapping[str, Any]], wide: bool) -> Table:
    """Two lines a GPU; where there is little room its model has a third."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("", "GPU", "IN USE", "UTIL", "TEMP", *(["MODEL"] * wide)):
        # Ids whole on any terminal: people copy them.
        table.add_column(column, min_width=GPU_CELLS if column == "GPU" else None)
    for one in gpus:
        sign, colour = _GPU[one["state"]]
        model = plain(one["model"])
        table.add_row(
            str(one["index"]),
            Text.assemble(
                plain(one["uuid"]), "\n", (f"{sign} {_words(one)}", colour), "" if wide else (f"\n{model}", "dim")
            ),
            _used(one, wide),
            "-" if one["utilization_percent"] is None else f"{one['utilization_percent']}%",
            "-" if one["temperature_celsius"] is None else f"{one['temperature_celsius']}°C",
            *([escape(model)] * wide),
        )
    return table


def _words(one: Mapping[str, Any]) -> str:
    jobs = one["job_ids"]
    if one["state"] == "out":
        by = f" (by {plain(one['out_by'])})" if one["out_by"] else ""
        who = f"job {jobs[0]} still has" if len(jobs) == 1 else f"{len(jobs)} jobs still share"
        still = f"; {who} it" if jobs else ""
        return f"out: {plain(one['reason'])}{by}{still}"
    if one["state"] == "shared":
        count = f"{len(jobs)} {'job' if len(jobs) == 1 else 'jobs'}"
        return f"shared by {count}: {size(one['slice_bytes'])} of {size(one['memory_bytes'])}"
    return f"job {jobs[0]}" if jobs else "free, may be shared" if one["sharing"] else "free"


def _used(one: Mapping[str, Any], with_bar: bool) -> Text:
    total, used = one["memory_bytes"], one["memory_used_bytes"]
    if used is None:
        return Text(f"- of {size(total)}", style="dim")
    text = bar(used, total, False).append(" ") if with_bar else Text()
    return text.append(f"{size(used)}/{size(total)}", style="default")


def _jobs(jobs: Sequence[Mapping[str, Any]], wide: bool) -> Table:
    """A line a job; where there is little room its type and tenant have a second."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("JOB", "STATE", "FOR", *(["TYPE", "TENANT"] * wide), "CPUS", "MEMORY", "GPUS"):
        table.add_column(column, min_width=JOB_CELLS if column == "JOB" else None)
    now = datetime.now(UTC)
    for job in jobs:
        names = [plain(job["type"]), plain(job["tenant"])]
        table.add_row(
            Text.assemble(job["id"], "" if wide else (f"\n{', '.join(names)}", "dim")),
            job["state_detail"],
            span(now - (moment(job["since"]) or now)),
            *(escape(name) for name in names if wide),
            f"{job['cpus']:g}",
            size(job["memory_bytes"]),
            str(len(job["gpus"]) or "-"),
        )
    return table


def _free(node: Mapping[str, Any], name: str, with_bar: bool = True) -> Text:
    if node["kind"] == "external":
        # An executor outside asks for one job after another; nobody knows what it has.
        return Text("-", style="dim")
    amount = node[name]
    text = bar(amount["free"], amount["total"], False, good="green").append(" ") if with_bar else Text()
    figures = [size(v) if name == "memory_bytes" else f"{v:g}" for v in (amount["free"], amount["total"])]
    return text.append("/".join(figures), style="default")


def _ago(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f}s"
    return f"{seconds / 60:.0f}m" if seconds < 3600 else f"{seconds / 3600:.0f}h"


def _state(node: Mapping[str, Any]) -> Text:
    return Text(node["state"], style=_STATE.get(node["state"], ""))


def _print(node: Mapping[str, Any], as_json: bool) -> ExitCode:
    if as_json:
        print_json(node)
    else:
        draw(lambda width: picture(node, width))
    return ExitCode.OK
