"""`cfab top`: what running jobs use, as bars and sparklines that move."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from app.cli.client import Client
from app.cli.explain import bar
from app.cli.failure import ExitCode, Failure
from app.cli.options import Duration, fabric_command, full_id
from app.cli.render import coloured, moment, plain, print_json, span

SPARKS = "▁▂▃▄▅▆▇█"
SPARK_CELLS = 20
NEARLY_FULL = 0.9
OUTAGE_S = 60.0


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
    found = full_id(client, job_id) if job_id else None
    used = client.usage(found, limit)
    if as_json:
        print_json(used)
    elif once or not sys.stdout.isatty():
        Console(highlight=False).print(table(used))
    else:
        _watch(client, found, limit, every, used)
    return ExitCode.OK


def _watch(client: Client, job_id: str | None, limit: int, every_s: float, used: Sequence[Mapping[str, Any]]) -> None:
    """Draws until Ctrl-C; a server that is away for a while is waited for, and said so."""
    heard, note = time.monotonic(), ""
    with Live(_screen(used, note), screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(every_s)
            try:
                used, heard, note = client.usage(job_id, limit), time.monotonic(), ""
            except Failure as failure:
                if failure.code is not ExitCode.UNREACHABLE or time.monotonic() - heard > OUTAGE_S:
                    raise
                note = failure.message
            live.update(_screen(used, note), refresh=True)


def _screen(used: Sequence[Mapping[str, Any]], note: str) -> RenderableType:
    last = Text(plain(note), style="red") if note else Text("Ctrl-C ends this", style="dim")
    return Group(table(used), Text(""), last)


def table(used: Sequence[Mapping[str, Any]], now: datetime | None = None) -> RenderableType:
    """One line a job, the busiest first: what it uses of what it holds, and how that went lately."""
    if not used:
        return Text("No job runs.")
    shown = Table(box=None, padding=(0, 2, 0, 0))
    gpus = any(one["holds"]["gpus"] for one in used)
    for name in ("job", "type", "state", "node", "ran", "CPUs", "lately", "memory", "lately", *(["GPUs"] * gpus)):
        shown.add_column(name, no_wrap=True)
    for one in sorted(used, key=lambda one: -(_last(one, "cpu_cores") or 0.0)):
        shown.add_row(*_cells(one, now or datetime.now(UTC)), *([_gpus(one)] * gpus))
    return shown


def _cells(one: Mapping[str, Any], now: datetime) -> list[str | Text]:
    started, holds = moment(one["started_at"]), one["holds"]
    cores, memory = _last(one, "cpu_cores"), _last(one, "memory_bytes")
    name = str(one["job_id"]) + (f"#{one['member']}" if one["member"] else "")
    hard = bool(one["hard_limits"])
    return [
        name,
        escape(plain(one["type"])),
        Text.from_ansi(coloured(str(one["state_detail"]))),
        escape(plain(one["executor_id"])),
        span(now - started) if started else "-",
        _use(cores, holds["cpus"], "-" if cores is None else f"{cores:.2f}/{holds['cpus']:g}", False),
        sparkline([sample["cpu_cores"] for sample in one["recent"]], holds["cpus"]),
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
    return f"{value / 2**30:.3g}G" if value >= 2**30 else f"{value / 2**20:.3g}M"
