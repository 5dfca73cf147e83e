"""`cfab explain`: why a job waits, as a picture of the nodes and a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from app.cli.client import Client
from app.cli.failure import ExitCode
from app.cli.options import fabric_command, full_id
from app.cli.render import plain, print_json, size
from app.cli.terminal import ROOM_FOR_BARS, show

BAR_CELLS = 10
HISTORY_LINES = 8
_COLOUR = {
    "starts_now": "green", "running": "cyan", "starting": "cyan", "completed": "green", "failed": "red",
    "cancelled": "bright_black", "stopping": "magenta", "quota_never": "red", "too_big": "red", "no_runner": "red",
    "no_gpu_model": "red", "no_shared_gpu": "red", "gpu_out": "red", "no_nodes": "red",
}  # fmt: skip
_FIT = {
    "fits": ("green", "has room"), "busy": ("yellow", "busy"), "excluded": ("magenta", "had it before"),
    "draining": ("magenta", "draining"), "offline": ("bright_black", "offline"), "too_small": ("red", "too small"),
    "gpu_out": ("red", "GPU out"), "not_shared": ("red", "shares no GPU"), "no_gpu": ("red", "no such GPU"),
    "no_runner": ("bright_black", "cannot run it"),
}  # fmt: skip


@click.command("explain")
@click.argument("job_id", metavar="ID")
@fabric_command
def command(*, client: Client, as_json: bool, job_id: str) -> ExitCode:
    """Say why a job waits, with numbers: its quota, the nodes, and what goes first."""
    told = client.explain(full_id(client, job_id))
    if as_json:
        print_json(told)
    else:
        show(lambda width: picture(told, width))
    return ExitCode.OK


def picture(told: Mapping[str, Any], width: int = ROOM_FOR_BARS) -> RenderableType:
    """The explanation for a terminal of so many columns: sentences, then what is free against what is asked."""
    colour = _COLOUR.get(str(told["code"]), "yellow")
    state = plain(told["state_detail"])
    parts: list[RenderableType] = [Text.assemble(str(told["id"]), "  ", (state, "bold"), "  ", (told["code"], colour))]
    parts += [Text(f"  {plain(cause['message'])}", style=colour if n == 0 else "") for n, cause in _numbered(told)]
    if told.get("queue"):
        parts.append(Text(f"  {_place(told)}", style="dim"))
    limits = limits_table(told["tenant"])
    if limits is not None:
        parts += [Text(""), limits]
    if able(told["nodes"]):
        parts += [Text(""), nodes_table(told, width)]
    parts += [Text(""), _history(told["history"])]
    return Group(*parts)


def _place(told: Mapping[str, Any]) -> str:
    """Where it waits, and how many of the same shape are before it."""
    queue, ahead = told["queue"], told["ahead"]
    least = "" if queue["exact"] else "at least "
    same = f"; {ahead} of the same shape {'was' if ahead == 1 else 'were'} submitted before it" if ahead else ""
    return f"Place {least}{queue['position']} of {queue['of']} pending in its class{same}."


def _numbered(told: Mapping[str, Any]) -> Sequence[tuple[int, Mapping[str, Any]]]:
    return list(enumerate(told["causes"]))


def limits_table(tenant: Mapping[str, Any]) -> Table | None:
    """The tenant's finite limits as bars; None where it has none."""
    finite = {name: limit for name, limit in tenant["quota"].items() if limit is not None}
    if not finite:
        return None
    table = Table(box=None, padding=(0, 2, 0, 0), title=f"tenant {escape(plain(tenant['name']))}", title_justify="left")
    for column in ("limit", "held", ""):
        table.add_column(column, style="dim" if not column else None)
    for name, limit in finite.items():
        used = tenant["used"][name]
        table.add_row(_word(name), bar(used, limit, used >= limit), f"{_figure(name, used)} of {_figure(name, limit)}")
    return table


def nodes_table(told: Mapping[str, Any], width: int = ROOM_FOR_BARS) -> Table:
    """What is free on the nodes, against what is asked; bars only where there is room for them."""
    asks, more = told["asks"], told["nodes_seen"] - len(told["nodes"])
    asked = {"slots": 1, "cpus": asks["cpus"], "memory_bytes": asks["memory_bytes"], "gpus": asks["gpus"]}
    columns = [name for name in asked if name != "gpus" or asks["gpus"]]
    title = "nodes: free now of what they have" + (f" ({more} more are not shown)" if more else "")
    table = Table(box=None, padding=(0, 2, 0, 0), title=title, title_justify="left")
    table.add_column("node")
    table.add_column("")
    for name in columns:
        table.add_column(f"{_word(name)}\n[dim]asks {_figure(name, asked[name])}[/dim]")
    for node in able(told["nodes"]):
        colour, word = _FIT.get(node["fit"], ("white", node["fit"]))
        table.add_row(
            escape(plain(node["id"])),
            Text(word, style=colour),
            *[_free(name, node, asked[name], width >= ROOM_FOR_BARS) for name in columns],
        )
    return table


def able(nodes: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The nodes without executors outside that are never given such a job: they say nothing about its wait."""
    return [node for node in nodes if node["kind"] != "external" or node["fit"] != "no_runner"]


def _free(name: str, node: Mapping[str, Any], asked: float, with_bar: bool) -> Text:
    if node["kind"] == "external":
        return Text("-", style="dim")
    amount = node[name]
    lacking = amount["free"] < asked
    text = bar(amount["free"], amount["total"], lacking, good="green").append(" ") if with_bar else Text()
    text.append(f"{_figure(name, amount['free'])}/{_figure(name, amount['total'])}", style="red" if lacking else "")
    return text


def bar(part: float, whole: float, bad: bool, good: str = "cyan") -> Text:
    """A bar of BAR_CELLS cells, as full as `part` is of `whole`; red when `bad`."""
    cells = 0 if whole <= 0 else max(0, min(BAR_CELLS, round(BAR_CELLS * part / whole)))
    filled = Text("█" * cells, style="red" if bad else good)
    return filled.append("░" * (BAR_CELLS - cells), style="red" if bad else "bright_black")


def _history(changes: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    left_out = len(changes) - HISTORY_LINES
    if left_out > 0:
        table.add_row(
            Text(f"{left_out} earlier {'change' if left_out == 1 else 'changes'}: --json shows all", style="dim")
        )
    for change in changes[-HISTORY_LINES:]:
        reason = f" ({plain(change['reason'])})" if change["reason"] else ""
        where = f"on {plain(change['executor_id'])}" if change["executor_id"] and change["attempt"] else ""
        table.add_row(Text(change["timestamp"], style="dim"), Text(change["state_detail"] + reason), Text(where))
    return table


def _word(name: str) -> str:
    return {"cpus": "CPUs", "cpus_milli": "CPUs", "memory_bytes": "memory", "gpus": "GPUs",
            "gpu_memory_bytes": "GPU memory", "jobs": "running jobs"}.get(name, name)  # fmt: skip


def _figure(name: str, value: float) -> str:
    if name == "gpu_memory_bytes":
        # As printed on the card, and as `cfab tenant` counts it.
        return f"{value / 1e9:.6g} GB"
    if name.endswith("_bytes"):
        return size(value)
    return f"{value / 1000 if name == 'cpus_milli' else value:.15g}"
