"""What one claim costs: by the number of pending jobs, of live keys, behind what is blocked, under a held snapshot.

Calls the claim service itself, commit included, on a PostgreSQL of its own with the settings of the one-machine stack.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psycopg2
from sqlalchemy.engine import make_url

from app.domain.policy import Ending
from app.services.claim import Claimer, claim
from app.services.nodes import NodeOffer, register
from app.services.ranking import Ranking
from app.services.recover import sweep
from app.services.report import Finished, finish
from app.storage.database import Database
from benchmarks.backlog import Backlog, Keys, scratch_database
from benchmarks.figures import quantile

NODE, LEASE_S = "bench", 60.0
SWEEP_EVERY_S = 1.0
REPLACE_AT = 200
Say = Callable[[str], None]


@dataclass(frozen=True)
class Extent:
    """How far to measure."""

    sizes: tuple[int, ...] = (1_000, 100_000, 1_000_000)
    claims: int = 400
    batches: int = 60
    batch: int = 16
    held_s: float = 90.0

    def quick(self) -> Extent:
        """Smaller and shorter."""
        return replace(self, sizes=(1_000, 20_000), claims=100, batches=20, held_s=12.0)


class ClaimCost:
    """Measures on one scratch database; each scenario loads its own backlog."""

    def __init__(self, url: str, extent: Extent, say: Say) -> None:
        self._extent = extent
        self._say = say
        self._url = url
        self._backlog = Backlog(url)
        self._db = Database(url, pool_size=1)
        node = NodeOffer(NODE, slots=10_000, cpus_milli=10**9, memory_bytes=1 << 45)
        # As an agent claims: it keeps what it knows of the order of tenants.
        self._who = Claimer(NODE, register(self._db, node, LEASE_S).incarnation, ranking=Ranking())
        self._swept, self._gone = 0.0, 0
        self._cpu: list[tuple[float, float]] = []
        with self._db.transaction() as tx:
            self._backend = int(tx.value("SELECT pg_backend_pid()"))

    def run(self) -> dict[str, Any]:
        """All scenarios in order."""
        biggest = self._extent.sizes[-1]
        few, many = Keys(100, 3, 2), Keys(100, 3, 34)
        rows: list[dict[str, Any]] = []
        for keys, sizes in ((Keys(), self._extent.sizes), (few, self._extent.sizes), (many, (biggest,)),
                            (Keys(1000, 1, 10), (biggest,))):  # fmt: skip
            self._backlog.empty(keys)
            for size in sizes:
                rows.append(self._scenario(f"{size:,} pending, {_told(keys)}", size))
        rows += self._blocked(few, biggest)
        held = self._under_a_held_snapshot(few)
        self._backlog.close()
        self._db.close()
        return {"scenarios": rows, "under_a_held_snapshot": held}

    def _blocked(self, keys: Keys, size: int) -> list[dict[str, Any]]:
        """Nine tenths of the backlog, the oldest, belong to one tenant: without quota, then too large for the node."""
        greedy, most = self._backlog.tenant(1), size * 9 // 10
        self._backlog.empty(keys)
        self._backlog.add(most, greedy)
        self._backlog.block(greedy)
        rows = [self._scenario(f"{size:,} pending, {most:,} without quota, {_told(keys)}", size)]
        self._backlog.outgrow(greedy)
        rows.append(self._scenario(f"{size:,} pending, {most:,} too large, {_told(keys)}", size))
        return rows

    def _scenario(self, name: str, size: int) -> dict[str, Any]:
        self._say(f"claim cost: loading {name}")
        self._backlog.fill(size)
        self._say(f"claim cost: {name}")
        self._times(20, 1)
        self._cpu.clear()
        single = self._times(self._extent.claims, 1)
        server, client = (quantile([row[at] for row in self._cpu], 0.5) for at in (0, 1))
        batches = self._times(self._extent.batches, self._extent.batch)
        return {
            "scenario": name,
            "p50_ms": quantile(single, 0.5),
            "p99_ms": quantile(single, 0.99),
            "server_cpu_p50_ms": server,
            "client_cpu_p50_ms": client,
            f"p50_ms_of_{self._extent.batch}": quantile(batches, 0.5),
            f"p99_ms_of_{self._extent.batch}": quantile(batches, 0.99),
        }

    def _times(self, count: int, limit: int) -> list[float]:
        """Milliseconds of `count` claims of `limit` jobs. In between, what was claimed is finished and replaced."""
        took = []
        for _ in range(count):
            began, server, client = time.perf_counter(), cpu_ms(self._backend), time.thread_time()
            taken = claim(self._db, self._who, limit)
            took.append((time.perf_counter() - began) * 1000)
            self._cpu.append((cpu_ms(self._backend) - server, (time.thread_time() - client) * 1000))
            if len(taken) != limit:
                raise AssertionError(f"a claim of {limit} took {len(taken)}")
            finish(self._db, [Finished(one.attempt_id, one.token, Ending(exit_code=0)) for one in taken])
            self._gone += limit
            if self._gone >= REPLACE_AT:
                self._backlog.replace(self._gone)
                self._gone = 0
            if time.monotonic() - self._swept > SWEEP_EVERY_S:
                self._swept = time.monotonic()
                sweep(self._db)
        return took

    def _under_a_held_snapshot(self, keys: Keys) -> list[dict[str, float]]:
        """Claims and finishes go on while another session holds one snapshot, as a backup or a report would."""
        self._backlog.empty(keys)
        self._backlog.fill(100_000)
        holder = psycopg2.connect(make_url(self._url).set(drivername="postgresql").render_as_string(False))
        holder.set_session(isolation_level="REPEATABLE READ")
        holder.cursor().execute("SELECT count(*) FROM tenant")
        rows: list[dict[str, float]] = []
        began, jobs = time.monotonic(), 0
        while time.monotonic() - began < self._extent.held_s and jobs < 90_000:
            took = self._times(50, self._extent.batch)
            jobs += 50 * self._extent.batch
            now = time.monotonic() - began
            self._say(f"claim cost: snapshot held for {now:.0f} s, {jobs:,} jobs claimed and finished under it")
            rows.append({"second": now, "jobs": jobs, "p50_ms": quantile(took, 0.5), "p99_ms": quantile(took, 0.99)})
        holder.close()
        step = max(1, len(rows) // 12)
        return rows[::step]


def measure(server_url: str, extent: Extent, say: Say) -> dict[str, Any]:
    """All of it on a scratch database of the server, whose login must be a superuser."""
    with scratch_database(server_url, "cfab_bench_claims") as url:
        return ClaimCost(url, extent, say).run()


def cpu_ms(pid: int) -> float:
    """CPU time of a process of this machine, in milliseconds: what a claim costs even where others keep it waiting."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e6
    except OSError:
        return math.nan


def _told(keys: Keys) -> str:
    return f"{keys.count:,} key{'s' if keys.count > 1 else ''}" + (
        f" of {keys.tenants:,} tenants" if keys.tenants > 1 else ""
    )
