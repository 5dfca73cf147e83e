"""`cfab top`: what running jobs use, as bars and sparklines that move."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from app.cli.client import Client
from app.cli.explain import bar
from app.cli.failure import ExitCode
from app.cli.live import redraw
from app.cli.options import Duration, fabric_command, full_id
from app.cli.render import coloured, moment, plain, print_json, size, span
from app.cli.terminal import console

SPARKS = "▁▂▃▄▅▆▇█"
SPARK_CELLS = 20
WIDE = 170
"""Columns that all of it takes; a narrower terminal gets shorter names and no second sparkline."""
NEARLY_FULL = 0.9


@click.command("top")
@click.argument("job_id", metavar="[ID]", required=False)
@click.option("--once", is_flag=True, help="Print it once; so does output that is no terminal.")
@click.option("--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="How many jobs at most.")
@click.option("--every", type=Duration(), default=2.0, help="Seconds between two looks; default 2.")
@fabric_command
def command(
    *, client: Client, as_json: bool, job_id: str | None, once: bool, limit: int, every: float
) -> ExitCode:  # fmt: skip
    """Show what running jobs use: CPUs and memory, now and lately."""
    found = None if job_id is None else full_id(client, job_id)
    used = client.usage(found, limit)
    if as_json:
        print_json(used)
    elif once or not sys.stdout.isatty():
        out = console()
        out.print(table(used, out.width))
    else:
        redraw(used, lambda: client.usage(found, limit), table, every)
    return ExitCode.OK


def table(used: Sequence[Mapping[str, Any]], width: int = WIDE, now: datetime | None = None) -> RenderableType:
    """One line a job, the busiest first: what it uses of what it holds, and how that went lately."""
    if not used:
        return Text("No job runs.")
    shown = Table(box=None, padding=(0, 2 if width >= WIDE else 1, 0, 0))
    gpus = any(one["holds"]["gpus"] for one in used)
    names = ["job", "type", "state", "node", "ran", "CPUs", "lately", "memory", "lately", *(["GPUs"] * gpus)]
    places = [n for n in range(len(names)) if width >= WIDE or n not in _ONLY_WIDE]
    for n in places:
        shown.add_column(names[n], no_wrap=True, max_width=_NODE_CELLS if n == _NODE and width < WIDE else None)
    for one in sorted(used, key=lambda one: -(_last(one, "cpu_cores") or 0.0)):
        cells = [*_cells(one, now or datetime.now(UTC), width >= WIDE), *([_gpus(one)] * gpus)]
        shown.add_row(*[cells[n] for n in places])
    return shown


_ONLY_WIDE = frozenset({1, 2, 8})
"""The places of type, state and the memory's sparkline among the columns."""
_NODE, _NODE_CELLS = 3, 10
_SHORT_ID = 18
"""Characters of an id that tell jobs of one tenant apart: its time, and its place among those submitted with it."""


def _cells(one: Mapping[str, Any], now: datetime, wide: bool) -> list[str | Text]:
    started, holds = moment(one["started_at"]), one["holds"]
    cores, memory = _last(one, "cpu_cores"), _last(one, "memory_bytes")
    cut = None if wide else _SHORT_ID
    name = str(one["job_id"])[:cut] + (f"#{one['member']}" if one["member"] else "")
    hard = bool(one["hard_limits"])
    return [
        name,
        escape(plain(one["type"])),
        Text.from_ansi(coloured(str(one["state_detail"]))),
        escape(plain(one["executor_id"])),
        span(now - started) if started else "-",
        _use(cores, holds["cpus"], "-" if cores is None else f"{cores:.2f}/{holds['cpus']:g}", False),
        sparkline([sample["cpu_cores"] for sample in one["recent"]], holds["cpus"])[
            -(SPARK_CELLS if wide else SPARK_CELLS // 2) :
        ],
        _use(memory, holds["memory_bytes"], f"{_bytes(memory)}/{_bytes(holds['memory_bytes'])}", hard),
        sparkline([sample["memory_bytes"] for sample in one["recent"]], holds["memory_bytes"]),
    ]


def _use(value: float | None, whole: float, text: str, alarming: bool) -> Text:
    """A bar with its figures; red where little is left of a limit that ends the job."""
    part = value or 0.0
    return bar(part, whole, alarming and whole > 0 and part > NEARLY_FULL * whole).append(f" {text}")


def sparkline(values: Sequence[float | None], whole: float) -> str:
    """The last values as blocks, against `whole` or the greatest of them, whichever is more; a gap is a space."""
    lately = list(values)[-SPARK_CELLS:]
    most = max([whole, *(value for value in lately if value is not None)])
    if most <= 0:
        return ""
    return "".join(
        " " if value is None else SPARKS[min(len(SPARKS) - 1, max(0, int(value / most * len(SPARKS))))]
        for value in lately
    )


def _gpus(one: Mapping[str, Any]) -> str:
    percent, memory = _last(one, "gpu_percent"), _last(one, "gpu_memory_bytes")
    held = one["holds"]["gpus"]
    if not held:
        return "-"
    return f"{held}" + (f" {percent:.0f}%" if percent is not None else "") + (f" {_bytes(memory)}" if memory else "")


def _last(one: Mapping[str, Any], name: str) -> float | None:
    known = [sample[name] for sample in one["recent"] if sample[name] is not None]
    return known[-1] if known else None


def _bytes(value: float | None) -> str:
    if value is None:
        return "-"
    return size(value)
