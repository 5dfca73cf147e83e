"""What `cfab submit --dry-run` shows: whether the job would be admitted, what would hold it up, where it would run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from app.cli.explain import able, limits_table, nodes_table
from app.cli.failure import ExitCode
from app.cli.render import plain, print_json
from app.cli.terminal import ROOM_FOR_BARS, show


def show_rehearsal(told: Mapping[str, Any], as_json: bool) -> ExitCode:
    """Prints the answer; the exit code is that of the submit: 0 admitted, 4 refused."""
    if as_json:
        print_json(told)
    else:
        show(lambda width: picture(told, width))
    return ExitCode.OK if told["admitted"] else ExitCode.REFUSED


def picture(told: Mapping[str, Any], width: int = ROOM_FOR_BARS) -> RenderableType:
    """The answer for a terminal of so many columns."""
    if not told["admitted"]:
        status = told["refusal"]["status"]
        return Text.assemble(("would be refused", "bold red"), f" ({status}): {plain(told['message'])}")
    counts = f"{told['effective_class']} {told['effective_priority']}"
    capped = f" (asked {told['priority']})" if told["priority"] != told["effective_class"] else ""
    place = f", place {told['queue_position']:,} of {told['queue']['of']:,}" if told["queue_position"] else ""
    parts: list[RenderableType] = [
        Text.assemble(("would be admitted", "bold green"), f" as {counts}{capped}{place}  ", (told["code"], "yellow"))
    ]
    parts += [Text(f"  {plain(cause['message'])}") for cause in told["causes"]]
    parts += [Text(f"  {_where(told)}", style="dim")]
    limits = limits_table(told["tenant"])
    parts += [Text(""), limits] if limits is not None else []
    parts += [Text(""), nodes_table(told, width)] if able(told["nodes"]) else []
    return Group(*parts)


def _where(told: Mapping[str, Any]) -> str:
    now, ever = told["runs_now"], told["runs_ever"]
    return f"Room now on {_names(now)}; big enough: {_names(ever)}."


def _names(nodes: Mapping[str, Any]) -> str:
    shown = [plain(name) for name in nodes["names"][:3]]
    more = nodes["count"] - len(shown)
    return (", ".join(shown) + (f" and {more} more" if more > 0 else "")) or "no node"
