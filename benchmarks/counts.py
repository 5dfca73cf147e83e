"""What counts, lists with their totals, and queue positions cost by the number of pending jobs; and what counting costs
those who write.

Calls the services themselves on a PostgreSQL of its own with the settings of the one-machine stack.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from uuid import UUID

from app.domain.job import DEFAULT_TENANT, JobRequest
from app.domain.priority import PriorityClass
from app.domain.states import JobState
from app.services import events, inspect, queue
from app.services.inspect import JobFilter
from app.services.submit import submit
from app.storage.database import Database
from benchmarks.backlog import Backlog, Keys, scratch_database
from benchmarks.claim_cost import cpu_ms
from benchmarks.figures import quantile
from config.settings import Settings

WRITERS, NAME = 8, "cfab-bench-counts"
Say = Callable[[str], None]

# What the maintained counts avoid, to see what that is worth: one row that every submit changes.
_HOT_ROW = """CREATE TABLE bench_hot (n bigint NOT NULL); INSERT INTO bench_hot VALUES (0);
CREATE FUNCTION bench_hot() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN UPDATE bench_hot SET n = n + (SELECT count(*) FROM added); RETURN NULL; END $$;
CREATE TRIGGER bench_hot AFTER INSERT ON job REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION bench_hot();
ALTER TABLE job DISABLE TRIGGER bench_hot"""
_COUNTED = """INSERT INTO job_count (tenant_id, class, state, type, phase, percent, n)
    SELECT tenant_id, class, state, type, job_phase(state, ready, reason, stop_cause), job_percent(priority), count(*)
    FROM job GROUP BY 1, 2, 3, 4, 5, 6;
INSERT INTO job_total (tenant_id, class, state, phase, percent, n)
    SELECT tenant_id, class, state, phase, percent, sum(n) FROM job_count GROUP BY 1, 2, 3, 4, 5"""


@dataclass(frozen=True)
class Extent:
    """How far to measure."""

    sizes: tuple[int, ...] = (1_000, 1_000_000)
    reads: int = 100
    write_s: float = 3.0
    deltas: int = 1_000_000

    def quick(self) -> Extent:
        """Smaller and shorter."""
        return replace(self, sizes=(1_000, 20_000), reads=20, write_s=1.0, deltas=50_000)


class CountCost:
    """Measures on one scratch database."""

    def __init__(self, url: str, extent: Extent, say: Say) -> None:
        self._extent = extent
        self._say = say
        self._backlog = Backlog(url)
        self._db = Database(url, WRITERS, NAME)
        self._settings = Settings(database_url=url)

    def run(self) -> dict[str, Any]:
        """All parts in order."""
        keys = Keys(tenants=100, classes=3, shapes=2)
        reads: list[dict[str, Any]] = []
        for size in self._extent.sizes:
            self._say(f"counts: loading {size:,} pending")
            self._backlog.empty(keys)
            self._backlog.fill(size)
            self._backlog.run(_COUNTED)
            reads += self._reads(size)
        writes = self._writes()
        unfolded = self._unfolded()
        feed = self._feed()
        self._backlog.close()
        self._db.close()
        return {"reads": reads, "writes": writes, "unfolded": unfolded, "feed": feed}

    # -- reading -------------------------------------------------------------------------------------------------

    def _reads(self, size: int) -> list[dict[str, Any]]:
        tenant = self._backlog.tenant(1)
        pending = JobFilter(states=frozenset({JobState.PENDING}), type="bench")
        mine = self._ids(tenant)
        looks: dict[str, Callable[[], object]] = {
            "totals of all": lambda: inspect.stats(self._db, None),
            "list of 20, filtered, with total": lambda: inspect.list_jobs(self._db, tenant, pending, 20, 0),
            "position at the head": lambda: queue.position(self._db, tenant, mine[0]),
            "position in the middle": lambda: queue.position(self._db, tenant, mine[len(mine) // 2]),
            "position at the tail": lambda: queue.position(self._db, tenant, mine[-1]),
        }
        rows = []
        for name, look in looks.items():
            self._say(f"counts: {name} of {size:,}")
            rows.append({"read": name, "pending": size, **self._cost(look)})
        return rows

    def _ids(self, tenant: UUID) -> list[UUID]:
        """The tenant's jobs of the first class in their order."""
        with self._db.transaction() as tx:
            rows = tx.rows("SELECT id FROM job WHERE tenant_id = %(t)s AND class = 0 ORDER BY queue_seq", {"t": tenant})
        return [row.id for row in rows]

    def _cost(self, look: Callable[[], object]) -> dict[str, float]:
        """Wall-clock time, and CPU time of the server, which says more where other work goes on besides."""
        look()
        took, before = [], self._server_cpu_ms()
        for _ in range(self._extent.reads):
            began = time.perf_counter()
            look()
            took.append((time.perf_counter() - began) * 1000)
        server = (self._server_cpu_ms() - before) / self._extent.reads
        return {"p50_ms": quantile(took, 0.5), "p99_ms": quantile(took, 0.99), "server_cpu_ms": server}

    def _server_cpu_ms(self) -> float:
        """CPU time of all server processes that serve these connections, so far."""
        with self._db.transaction() as tx:
            rows = tx.rows("SELECT pid FROM pg_stat_activity WHERE application_name = %(n)s", {"n": NAME})
        return sum(cpu_ms(row.pid) for row in rows)

    # -- writing -------------------------------------------------------------------------------------------------

    def _writes(self) -> list[dict[str, Any]]:
        """Submits with counting and events, without, and with a hot row; by one writer and by several, twice each in
        turn, since what else the machine does changes from one minute to the next."""
        self._backlog.run(_HOT_ROW)
        with self._db.transaction() as tx:
            tx.run("UPDATE tenant SET active = true")
        found: dict[tuple[str, int, int], list[tuple[float, float]]] = {}
        for _ in range(2):
            for bulk in (1, 100):
                for writers in (1, WRITERS):
                    for counting in ("counted", "not counted", "hot row"):
                        self._say(f"counts: {writers} writers of {bulk}, {counting}")
                        with self._triggers(counting):
                            seen = self._rate(writers, bulk)
                        found.setdefault((counting, writers, bulk), []).append(seen)
        return [
            {
                "writers": writers,
                "jobs_a_submit": bulk,
                "counting": counting,
                "jobs_per_s": max(rate for rate, _cpu in seen),
                "server_cpu_ms_per_job": min(cpu for _rate, cpu in seen),
            }
            for (counting, writers, bulk), seen in found.items()
        ]

    @contextmanager
    def _triggers(self, counting: str) -> Iterator[None]:
        """`counted` is what is shipped; `hot row` counts in one row and tells no events."""
        self._backlog.run(f"ALTER TABLE job {'ENABLE' if counting == 'counted' else 'DISABLE'} TRIGGER job_added")
        self._backlog.run(f"ALTER TABLE job {'ENABLE' if counting == 'hot row' else 'DISABLE'} TRIGGER bench_hot")
        try:
            yield
        finally:
            self._backlog.run("ALTER TABLE job ENABLE TRIGGER job_added, DISABLE TRIGGER bench_hot")

    def _rate(self, writers: int, bulk: int) -> tuple[float, float]:
        """Jobs submitted per second by so many at once, and the server's CPU time for each."""
        request = JobRequest("bench", PriorityClass.BACKGROUND, script="true")
        end = time.monotonic() + self._extent.write_s

        def write(_number: int) -> int:
            made = 0
            while time.monotonic() < end:
                submit(self._db, self._settings, DEFAULT_TENANT, [request] * bulk)
                made += bulk
            return made

        began, before = time.monotonic(), self._server_cpu_ms()
        with ThreadPoolExecutor(writers) as pool:
            made = sum(pool.map(write, range(writers)))
        took = time.monotonic() - began
        return made / took, (self._server_cpu_ms() - before) / made

    # -- a dead scheduler ----------------------------------------------------------------------------------------

    def _unfolded(self) -> list[dict[str, Any]]:
        """Readers in a row, after so many changes that nobody has folded."""
        self._say(f"counts: {self._extent.deltas:,} changes that nobody folded")
        self._backlog.run(
            """INSERT INTO job_count_delta (tenant_id, class, state, type, phase, percent, n)
            SELECT '00000000-0000-0000-0000-000000000001', 1, i %% 2, 'bench', 3 * (i %% 2), 30, 1 - 2 * (i %% 2)
            FROM generate_series(1, %(n)s) i""",
            n=self._extent.deltas,
        )
        rows = []
        for number in range(1, 13):
            with self._db.transaction() as tx:
                waiting = int(tx.value("SELECT count(*) FROM job_count_delta"))
            began = time.perf_counter()
            inspect.stats(self._db, None)
            rows.append({"read": number, "unfolded": waiting, "ms": (time.perf_counter() - began) * 1000})
        return [rows[0], rows[1], rows[-1]]

    # -- the feed ------------------------------------------------------------------------------------------------

    def _feed(self) -> list[dict[str, Any]]:
        """Pages of the event feed, at its beginning and at its end, of a tenant among all."""
        self._say("counts: pages of the feed")
        with self._db.transaction() as tx:
            told = int(tx.value("SELECT count(*) FROM event"))
        newest = events.now(self._db)
        rows = []
        for name, tenant, cursor in (
            ("all, from the beginning", None, events.START),
            ("all, nothing new", None, newest),
            ("one tenant, from the beginning", DEFAULT_TENANT, events.START),
            ("one tenant without any, from the beginning", self._backlog.tenant(1), events.START),
        ):
            rows.append({"page": name, "events": told, **self._cost(partial(events.after, self._db, tenant, cursor))})
        return rows


def measure(server_url: str, extent: Extent, say: Say) -> dict[str, Any]:
    """All of it on a scratch database of the server, whose login must be a superuser."""
    with scratch_database(server_url, "cfab_bench_counts") as url:
        return CountCost(url, extent, say).run()
