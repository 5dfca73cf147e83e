"""What tests arrange with: a test states only what matters to it, everything else has a sensible value.

All of it goes through the real services on a real database; only time is turned by SQL (`expire`, `due`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from threading import Event
from typing import Any, TypeVar
from uuid import UUID, uuid4

import psycopg2
from psycopg2.extensions import connection as Connection

from app.domain.job import DEFAULT_TENANT, Assignment, JobRequest
from app.domain.policy import Ending
from app.domain.priority import PriorityClass
from app.domain.resources import GIB, MIB, Gpu, Resources
from app.domain.states import JobState
from app.services import nodes, recover, report
from app.services.claim import Claimer, claim
from app.services.nodes import Held, NodeOffer, Renewal
from app.services.report import Answer, Finished, FinishResult, Started
from app.services.submit import submit
from app.storage.database import Database
from app.storage.faults import FaultPlan
from config.settings import Settings

FOREGROUND, BACKGROUND, BEST_EFFORT = PriorityClass
T = TypeVar("T")


def job(**changes: Any) -> JobRequest:
    """A background script that asks for nothing."""
    return replace(JobRequest(type="test", priority_class=BACKGROUND, script="true"), **changes)


def binary_job(**changes: Any) -> JobRequest:
    """A job that an external executor may take."""
    return job(script=None, binary_url="https://example.com/program", binary_sha256="ab" * 32, **changes)


def share(cpus: float = 0.1, memory_mib: int = 64, gpus: int = 0, gpu_memory: int = 0, model: str = "") -> Resources:
    """Resources in the units people think in; GPU memory in bytes."""
    return Resources(round(cpus * 1000), memory_mib * MIB, gpus, gpu_memory, model)


def gpu(number: int, model: str = "NVIDIA A100", memory_gb: int = 80) -> Gpu:
    """A GPU with a UUID of its number."""
    return Gpu(f"GPU-{number}", model, memory_gb * 10**9, number)


@dataclass
class Node:
    """A registered node, as its agent sees it: name and incarnation."""

    id: str
    incarnation: UUID
    runners: tuple[str, ...] = ("process",)


@dataclass
class Fabric:
    """The services of one database under short names."""

    db: Database
    settings: Settings
    tenant: UUID = DEFAULT_TENANT
    _nodes: int = field(default=0)

    # -- arranging ---------------------------------------------------------------------------------------------

    def submit(self, *requests: JobRequest, tenant: UUID | None = None) -> list[UUID]:
        """Pending jobs (one plain job if none is given); their ids in order."""
        made = submit(self.db, self.settings, tenant or self.tenant, requests or (job(),))
        return [one.id for one in made.jobs]

    def submit_one(self, tenant: UUID | None = None, **changes: Any) -> UUID:
        """One pending job."""
        return self.submit(job(**changes), tenant=tenant)[0]

    def add_tenant(self, name: str = "", **columns: Any) -> UUID:
        """A tenant; `columns` such as quota_jobs=2 or weight=3."""
        tenant = uuid4()
        names = ["id", "name", *columns]
        values = [tenant, name or f"tenant-{tenant.hex[:8]}", *columns.values()]
        self.sql(
            f"INSERT INTO tenant ({', '.join(names)}) VALUES ({', '.join('%s' for _ in names)})",
            *values,
        )
        return tenant

    def add_node(
        self,
        node_id: str = "",
        slots: int = 64,
        cpus: float = 64,
        memory: int = 256 * GIB,
        gpus: Sequence[Gpu] = (),
        runners: Sequence[str] = ("process",),
    ) -> Node:
        """A ready node with room for anything."""
        self._nodes += 1
        name = node_id or f"node-{self._nodes}"
        offer = NodeOffer(name, slots, round(cpus * 1000), memory, gpus, tuple(runners), ip="192.0.2.1")
        return Node(name, nodes.register(self.db, offer, self.settings.lease_s).incarnation, tuple(runners))

    # -- acting ------------------------------------------------------------------------------------------------

    def claim(self, node: Node, limit: int = 64, lease_s: float = 60.0) -> list[Assignment]:
        """What the node gets."""
        return claim(self.db, Claimer(node.id, node.incarnation, node.runners, lease_s), limit)

    def claim_one(self, node: Node) -> Assignment:
        """The one job the node gets now."""
        taken = self.claim(node, 1)
        assert len(taken) == 1, "there was no job to claim"
        return taken[0]

    def start(self, *taken: Assignment) -> set[UUID]:
        """The attempts' processes run."""
        now = datetime.now(UTC)
        return report.report_started(self.db, [Started(t.attempt_id, t.token, now) for t in taken])

    def run(self, node: Node) -> Assignment:
        """One more job is running on the node."""
        taken = self.claim_one(node)
        self.start(taken)
        return taken

    def finish(self, taken: Assignment, ending: Ending | None = None, **changes: Any) -> Answer:
        """The attempt ended (with 0 if nothing else is said); what became of the report."""
        end = finished(taken, ending, **changes)
        return report.finish(self.db, [end]).answers[taken.attempt_id]

    def finish_all(self, *ends: Finished) -> FinishResult:
        """Reports several ends at once, as an agent does."""
        return report.finish_each(self.db, ends)

    def renew(self, node: Node, *held: Assignment) -> Renewal:
        """One renewal that lists what the node holds."""
        listed = [Held(t.attempt_id, t.token) for t in held]
        return nodes.renew(self.db, node.id, node.incarnation, listed, self.settings.lease_s)

    # -- turning time ------------------------------------------------------------------------------------------

    def expire(self, *taken: Assignment, seconds: float = 1.0) -> None:
        """The leases of these attempts (of all, if none is named) ended some seconds ago."""
        ids = [one.attempt_id for one in taken]
        where = "attempt_id = ANY(%s::uuid[])" if ids else "%s::uuid[] = '{}'"
        self.sql(
            f"UPDATE lease SET expires_at = clock_timestamp() - make_interval(secs => {seconds}) WHERE {where}",
            ids,
        )

    def due(self) -> None:
        """All backoffs are over."""
        self.sql("UPDATE job SET not_before = now() WHERE state = 0 AND not_before IS NOT NULL")

    def reap(self, **changes: Any) -> recover.Pass:
        """One pass of the reaper in a database that has been up for long; the nodes' agents go on living."""
        done = recover.reap(self.db, replace(self.settings, **{"lease_s": 0.001, **changes}))
        self.sql("UPDATE node SET state = 'ready' WHERE state = 'offline'")
        return done

    # -- looking -----------------------------------------------------------------------------------------------

    def row(self, job_id: UUID) -> Any:
        """A job's row."""
        return self.one("SELECT * FROM job WHERE id = %s", job_id)

    def state(self, job_id: UUID) -> JobState:
        """A job's state."""
        return JobState(self.row(job_id).state)

    def attempts(self, job_id: UUID) -> list[Any]:
        """A job's attempts in order."""
        return self.all("SELECT * FROM attempt WHERE job_id = %s ORDER BY number", job_id)

    def one(self, statement: str, *values: Any) -> Any:
        """The only row of a query."""
        rows = self.all(statement, *values)
        assert len(rows) == 1, f"{len(rows)} rows from {statement!r}"
        return rows[0]

    def value(self, statement: str, *values: Any) -> Any:
        """The only value of a query."""
        return self.one(statement, *values)[0]

    def all(self, statement: str, *values: Any) -> list[Any]:
        """All rows of a query."""
        with self.db.engine.connect() as connection:
            return list(connection.exec_driver_sql(statement, tuple(values)).fetchall())

    def sql(self, statement: str, *values: Any) -> None:
        """Runs a statement."""
        with self.db.engine.begin() as connection:
            connection.exec_driver_sql(statement, tuple(values))

    def blocked(self) -> int:
        """How many of this database's other connections wait for a lock."""
        return int(
            self.value(
                """SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                AND wait_event_type = 'Lock'"""
            )
        )

    def assert_in_order(self) -> None:
        """Usage equals allocations, counts equal rows, every waiting job can be seen, nothing dangles."""
        assert recover.check_usage(self.db) == []
        assert self.all(COUNT_DRIFT) == []
        assert self.all(TOTAL_DRIFT) == []
        assert self.all(HIDDEN_JOBS) == []
        assert self.all(DANGLING) == []


COUNT_DRIFT = """SELECT * FROM (
    SELECT tenant_id, class, state, type, phase, percent, sum(n) AS n FROM (
        SELECT tenant_id, class, state, type, phase, percent, n FROM job_count
        UNION ALL SELECT tenant_id, class, state, type, phase, percent, n FROM job_count_delta) c
    GROUP BY 1, 2, 3, 4, 5, 6 HAVING sum(n) <> 0) counted
FULL JOIN (SELECT tenant_id, class, state, type, job_phase(state, ready, reason, stop_cause) AS phase,
        job_percent(priority) AS percent, count(*) AS real FROM job GROUP BY 1, 2, 3, 4, 5, 6) held
    USING (tenant_id, class, state, type, phase, percent)
WHERE n IS DISTINCT FROM real"""

TOTAL_DRIFT = """SELECT * FROM job_total
FULL JOIN (SELECT tenant_id, class, state, phase, percent, sum(n) AS typed FROM job_count GROUP BY 1, 2, 3, 4, 5) c
    USING (tenant_id, class, state, phase, percent)
WHERE COALESCE(n, 0) <> COALESCE(typed, 0)"""

HIDDEN_JOBS = """SELECT j.id, j.queue_seq, k.live, k.low_water FROM job j JOIN scheduling_key k ON k.id = j.key_id
WHERE j.state = 0 AND j.ready AND NOT (k.live AND j.queue_seq >= k.low_water)"""

DANGLING = """SELECT 'allocation without current attempt' AS fault, l.attempt_id FROM allocation l
    JOIN attempt a ON a.id = l.attempt_id LEFT JOIN job j ON j.attempt_id = COALESCE(a.leader_id, a.id)
    WHERE j.id IS NULL OR a.outcome IS NOT NULL
UNION ALL SELECT 'active job without allocation', j.attempt_id FROM job j WHERE j.state IN (1, 2, 3) AND NOT EXISTS (
    SELECT 1 FROM allocation l JOIN attempt a ON a.id = l.attempt_id WHERE COALESCE(a.leader_id, a.id) = j.attempt_id)
UNION ALL SELECT 'allocation without lease', l.attempt_id FROM allocation l
    LEFT JOIN lease s ON s.attempt_id = l.attempt_id WHERE s.attempt_id IS NULL
UNION ALL SELECT 'attempt open, job elsewhere', a.id FROM attempt a
    JOIN job j ON j.id = a.job_id WHERE a.outcome IS NULL AND j.attempt_id IS DISTINCT FROM COALESCE(a.leader_id, a.id)
UNION ALL SELECT 'attempt open without allocation', a.id FROM attempt a
    LEFT JOIN allocation l ON l.attempt_id = a.id WHERE a.outcome IS NULL AND l.attempt_id IS NULL
UNION ALL SELECT 'gang not whole', a.leader_id FROM attempt a JOIN job_spec s ON s.job_id = a.job_id
    WHERE a.leader_id IS NOT NULL GROUP BY a.leader_id, s.members HAVING count(*) <> s.members
UNION ALL SELECT 'gpus promised but not held', l.attempt_id FROM allocation l
    WHERE l.gpus <> (SELECT count(*) FROM gpu_hold h WHERE h.attempt_id = l.attempt_id)"""


def finished(taken: Assignment, ending: Ending | None = None, **changes: Any) -> Finished:
    """The report of an attempt that ended with 0, unless told otherwise."""
    return Finished(taken.attempt_id, taken.token, ending or Ending(exit_code=0), **changes)


def make_fabric(database_url: str, faults: FaultPlan | None = None, **settings: Any) -> Fabric:
    """A fabric on a migrated database."""
    values = Settings(database_url=database_url, **settings)
    return Fabric(Database(database_url, pool_size=16, application_name="test", faults=faults), values)


@contextmanager
def raw(database_url: str) -> Iterator[Connection]:
    """A plain connection with a transaction of the test's own, to stand in for another process mid-way."""
    connection = psycopg2.connect(database_url, options="-c TimeZone=UTC")
    try:
        yield connection
    finally:
        connection.close()


def until(condition: Callable[[], Any], within_s: float = 20.0) -> None:
    """Waits for a condition that another thread or process brings about."""
    end, pause = time.monotonic() + within_s, Event()
    while not condition():
        assert time.monotonic() < end, f"{condition} was not met within {within_s} s"
        pause.wait(0.01)


@contextmanager
def in_thread(work: Callable[[], T]) -> Iterator[Future[T]]:
    """Runs `work` beside the test; its result is the future's."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(work)


def at_once(count: int, work: Callable[[int], T]) -> list[T]:
    """Runs `work(0)` to `work(count - 1)` at the same time; their results in order."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))
