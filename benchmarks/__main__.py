"""`python -m benchmarks`: measures a fabric of its own; prints a table, writes JSON and a plot, leaves nothing."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from app.cli.failure import Failure
from app.local.demo.fabric import Fabric, temporary_directory
from app.local.failure import StackError
from app.local.ports import free_port
from app.local.postgres import PostgresServer
from benchmarks import claim_cost, counts, figures, planning
from benchmarks.fabric_load import Amounts, FabricLoad, log_tails
from benchmarks.http_load import Stuck, serve_no_op

PARTS = ("fabric", "claims", "counts", "planning")


def main() -> int:
    """Runs what was asked for; 0, or 1 with a message when it could not be measured."""
    asked = _arguments()
    results: dict[str, Any] = {"about": _about(asked.sandbox)}
    began = time.monotonic()
    try:
        if "fabric" in asked.parts:
            results |= _measure_fabric(asked.quick, asked.sandbox)
        if "claims" in asked.parts:
            results["claim_cost"] = _measure_claims(asked.quick)
        if "counts" in asked.parts:
            results |= _measure_counts(asked.quick)
        if "planning" in asked.parts:
            results |= planning.measure(planning.Extent().quick() if asked.quick else planning.Extent(), _say)
    except (Failure, StackError, Stuck) as exc:
        print(f"\nbenchmarks: {exc}", file=sys.stderr)
        return 1
    results["about"]["took_s"] = round(time.monotonic() - began, 1)
    results["about"]["load_after"] = os.getloadavg()[0]
    _say("")
    print(figures.table(results))
    stem = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}{'-quick' if asked.quick else ''}"
    for path in figures.write(results, asked.output, stem):
        print(f"wrote {path}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="about a minute instead of about ten; a rougher picture")
    parser.add_argument("--sandbox", choices=("off", "preferred", "required"), default="off", help="default: off")
    parser.add_argument("--only", dest="parts", action="append", choices=PARTS, help="one part; may be given twice")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="default: %(default)s")
    asked = parser.parse_args()
    asked.parts = asked.parts or list(PARTS)
    return asked


def _about(sandbox: str) -> dict[str, Any]:
    return {
        "at": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "machine": f"{platform.machine()}, {os.cpu_count()} CPUs, {psutil.virtual_memory().total >> 30} GiB",
        "python": platform.python_version(),
        "sandbox": sandbox,
        "load_before": os.getloadavg()[0],
    }


def _measure_fabric(quick: bool, sandbox: str) -> dict[str, Any]:
    # The fabric takes over what its parent's environment says of the sandbox, and nothing of servers.
    os.environ["CFAB_SANDBOX"] = sandbox
    with temporary_directory() as root, serve_no_op(root) as program:
        _say("starting a fabric")
        fabric = Fabric(root)
        try:
            fabric.wait_ready()
            amounts = Amounts().quick() if quick else Amounts()
            return FabricLoad(fabric, fabric.pid, program, amounts, _say).run()
        except Stuck as exc:
            raise Stuck(f"{exc}\n{log_tails(fabric.data)}") from exc
        finally:
            fabric.stop()


def _measure_claims(quick: bool) -> dict[str, Any]:
    extent = claim_cost.Extent().quick() if quick else claim_cost.Extent()
    with _server("claim cost") as url:
        return claim_cost.measure(url, extent, _say)


def _measure_counts(quick: bool) -> dict[str, Any]:
    extent = counts.Extent().quick() if quick else counts.Extent()
    with _server("counts") as url:
        return {f"counts_{name}": rows for name, rows in counts.measure(url, extent, _say).items()}


@contextmanager
def _server(part: str) -> Iterator[str]:
    """The address of a PostgreSQL of its own."""
    with temporary_directory() as root:
        _say(f"{part}: starting PostgreSQL")
        server = PostgresServer(root / "postgres", free_port(), "benchmark")
        server.create()
        server.start()
        try:
            yield server.url()
        finally:
            server.stop()


def _say(text: str) -> None:
    """Progress: one line that is written over on a terminal; elsewhere a line every few seconds."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text[:110]}", end="", file=sys.stderr, flush=True)
    elif text and time.monotonic() - _said[0] > SAY_EVERY_S:
        _said[0] = time.monotonic()
        print(text, file=sys.stderr, flush=True)


SAY_EVERY_S = 5.0
_said = [-SAY_EVERY_S]

if __name__ == "__main__":
    sys.exit(main())
