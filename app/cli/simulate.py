"""`cfab simulate`: what the scheduler would do with a load, in virtual time, beside FIFO and EASY backfill."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from app.cli.failure import ExitCode, output_lost

if TYPE_CHECKING:
    from scheduler.simulate.fabric import Ways

POLICIES = ("fabric", "easy", "fifo")
SAY_EVERY_S = 5.0


class Finite(click.FloatRange):
    """A number of a range; neither nan, which no range keeps out, nor inf."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is no finite number", param, ctx)
        return number


@click.command("simulate")
@click.option("--trace", type=click.Path(path_type=Path), help="Jobs from a CSV file instead of the generator.")
@click.option("--jobs", type=click.IntRange(1, 10_000_000), default=3000, show_default=True, help="Jobs to generate.")
@click.option(
    "--load",
    type=Finite(0.01, 100),
    default=1.0,
    show_default=True,
    help="Work asked for, as a part of what the GPUs can give.",
)
@click.option("--seed", type=int, default=1, show_default=True, help="The same seed generates the same jobs.")
@click.option("--write-trace", type=click.Path(path_type=Path), help="Write the jobs as CSV and end.")
@click.option(
    "--nodes",
    type=click.IntRange(1, 100_000),
    default=100,
    show_default=True,
    help="A quarter has 40 GB cards, the others 80 GB.",
)
@click.option("--gpus", type=click.IntRange(1, 64), default=8, show_default=True, help="GPUs of each node.")
@click.option(
    "--policy", "policies", type=click.Choice(POLICIES), multiple=True, help="Only this; may be repeated. Default: all."
)
@click.option(
    "--plan-every",
    type=Finite(0.1, 3600),
    default=10.0,
    show_default=True,
    help="Seconds between cycles of the planner.",
)
@click.option("--preempt", is_flag=True, help="Foreground jobs may take the place of lower classes.")
@click.option(
    "--checkpoint-every",
    type=Finite(0),
    default=0.0,
    show_default=True,
    help="Seconds between jobs' checkpoints; 0: none.",
)
@click.option(
    "--half-life",
    type=Finite(0),
    default=86_400.0,
    show_default=True,
    help="Seconds, of past use in the fair share.",
)
@click.option("--max-reservations", type=click.IntRange(0), default=None, help="Jobs with a reservation at a time.")
@click.option("--reserve-after", type=Finite(0), default=None, help="Seconds until a plain job gets a reservation.")
@click.option(
    "--starvation", type=Finite(0), default=None, help="Seconds until a job goes before all others; 0: never."
)
@click.option("--tenants", is_flag=True, help="Print the waits of each tenant too.")
@click.option("--plot", type=click.Path(path_type=Path), help="Write a picture (PNG, SVG, PDF); needs matplotlib.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(**asked: Any) -> None:
    """Simulate the scheduler on a load: its real rules of order and its real planner, without a server.

    Prints how busy the GPUs were, how long jobs waited, how evenly tenants were served, and what planning cost, for the
    fabric and, on the same jobs, for FIFO and EASY backfill. A trace has the columns submit_s, tenant, class, gpus,
    gpu_memory_gb, runtime_s, limit_s, gang.
    """
    try:
        _simulate(asked)
    except KeyboardInterrupt:
        click.echo("", err=True)
        raise click.exceptions.Exit(ExitCode.INTERRUPTED) from None
    except OSError as exc:
        lost = output_lost(exc)
        click.echo(lost.line(asked["as_json"]), err=True)
        raise click.exceptions.Exit(lost.code) from exc


def _simulate(asked: dict[str, Any]) -> None:
    from scheduler.simulate.cluster import Cluster
    from scheduler.simulate.comparison import compare, fitting
    from scheduler.simulate.generator import Load, generate
    from scheduler.simulate.picture import draw
    from scheduler.simulate.report import report, table
    from scheduler.simulate.trace import TraceError, read_trace, write_trace

    if asked["plot"]:
        _check(asked["plot"])
    say = _sayer()
    cluster = Cluster(asked["nodes"], asked["gpus"])
    try:
        if asked["trace"]:
            jobs = read_trace(asked["trace"])
        else:
            say("generating jobs")
            jobs = generate(Load(asked["jobs"], cluster.all_gpus, asked["load"], asked["seed"]))
        if asked["write_trace"]:
            write_trace(asked["write_trace"], jobs)
            say("")
            return
    except (TraceError, OSError) as exc:
        raise click.UsageError(str(exc)) from exc
    fit = fitting(jobs, cluster)
    if not fit:
        raise click.UsageError(f"none of the {len(jobs)} jobs fits {cluster.nodes} nodes of {cluster.gpus} GPUs")
    began = time.monotonic()
    tallies = compare(fit, cluster, asked["policies"] or POLICIES, _ways(asked), say)
    say("")
    found = report(tallies)
    about = {"jobs": len(fit), "jobs_too_large": len(jobs) - len(fit), "nodes": cluster.nodes, "gpus": cluster.all_gpus,
             "window_h": round(fit[-1].submit_s / 3600, 1), "took_s": round(time.monotonic() - began, 1)}  # fmt: skip
    if asked["plot"]:
        draw(tallies, found, asked["plot"])
    if asked["as_json"]:
        click.echo(json.dumps({"about": about, **_finite(found)}, indent=2))
        return
    click.echo(", ".join(f"{name.replace('_', ' ')}: {value:,}" for name, value in about.items()))
    click.echo(table(found, asked["tenants"]))


def _ways(asked: dict[str, Any]) -> Ways:
    from scheduler.planner import Rules
    from scheduler.simulate.fabric import Ways

    names = {"max_reservations": "max_reservations", "reserve_after": "reserve_after_s", "starvation": "starvation_s"}
    rules = Rules(**{rule: asked[name] for name, rule in names.items() if asked[name] is not None})
    return Ways(asked["plan_every"], asked["preempt"], asked["checkpoint_every"], asked["half_life"], rules)


def _check(path: Path) -> None:
    """Refuses a picture that could not be written, before the simulation has taken its time."""
    from scheduler.simulate.picture import check

    try:
        check(path)
    except ImportError as exc:
        raise click.UsageError("--plot needs matplotlib: pip install matplotlib") from exc
    except OSError as exc:
        raise click.UsageError(f"--plot: {path} cannot be written: {exc.strerror}") from exc
    except ValueError as exc:
        raise click.UsageError(f"--plot: {path} cannot be written: {exc}") from exc


def _finite(value: Any) -> Any:
    """The same with null for NaN, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _sayer() -> Callable[[str], None]:
    """Progress on standard error: one line that is written over on a terminal, elsewhere a line every few seconds."""
    last = [time.monotonic()]

    def say(text: str) -> None:
        if sys.stderr.isatty():
            click.echo(f"\r\033[K{text[:110]}", nl=False, err=True)
        elif text and time.monotonic() - last[0] > SAY_EVERY_S:
            last[0] = time.monotonic()
            click.echo(text, err=True)

    return say
