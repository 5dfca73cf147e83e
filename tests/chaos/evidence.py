"""What is left after a run: rows of the database, the witness, samples taken meanwhile.

It reads with SQL of its own and shares no code with the services that it is to judge.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2
import psycopg2.extras

from tests.chaos.witness import Line, read_witness
from tests.chaos.workload import Planned

STATES = ("pending", "starting", "running", "stopping", "completed", "failed", "cancelled")


@dataclass(frozen=True)
class Job:
    """A job's row, how many terminal events were told of it, and what was asked."""

    id: str
    state: str
    failures: int
    max_retries: int
    exit_code: int | None
    terminal_events: int
    members: int = 1


@dataclass(frozen=True)
class Attempt:
    """An attempt's row, with the share that its job reserves for it; of a gang, one member's."""

    job_id: str
    number: int
    node_id: str
    outcome: str | None
    exit_code: int | None
    cpus_milli: int = 0
    gpus: tuple[str, ...] = ()
    member: int = 0


@dataclass(frozen=True)
class Node:
    """What a node offers."""

    slots: int
    cpus_milli: int
    memory_bytes: int
    gpus: int


@dataclass(frozen=True)
class Sample:
    """One consistent look during the run: per node what is reserved by usage rows and by allocations; other faults."""

    used: Mapping[str, Node]
    allocated: Mapping[str, Node]
    drift: int
    gpus_held_twice: int


@dataclass(frozen=True)
class Evidence:
    """All of it."""

    planned: Mapping[str, Planned]
    jobs: Mapping[str, Job]
    attempts: list[Attempt]
    nodes: Mapping[str, Node]
    witness: list[Line]
    samples: list[Sample] = field(default_factory=list)
    counted: Mapping[tuple[int, str], int] = field(default_factory=dict)
    completed_by_node: Mapping[str, int] = field(default_factory=dict)
    left_over: Mapping[str, int] = field(default_factory=dict)
    classes: Mapping[tuple[int, str], int] = field(default_factory=dict)
    gpu_memory: Mapping[str, int] = field(default_factory=dict)


JOBS = """SELECT j.id::text AS id, j.state, j.failures, s.max_retries, j.exit_code, s.members,
    (SELECT count(*) FROM event e WHERE e.job_id = j.id AND e.state > 3) AS terminal_events
    FROM job j JOIN job_spec s ON s.job_id = j.id"""
ATTEMPTS = """SELECT a.job_id::text AS job_id, a.number, a.node_id, a.outcome, a.exit_code, a.gpu_uuids, s.cpus_milli,
    a.member FROM attempt a JOIN job_spec s ON s.job_id = a.job_id ORDER BY a.job_id, a.number, a.member"""
NODES = """SELECT id, slots, cpus_milli, memory_bytes, jsonb_array_length(gpus) AS gpus FROM node"""
GPU_MEMORY = """SELECT g ->> 'uuid' AS uuid, (g ->> 'memory_bytes')::bigint AS n
    FROM node CROSS JOIN jsonb_array_elements(gpus) g"""
COUNTED = """SELECT class, state, sum(n)::bigint AS n FROM (SELECT class, state, n FROM job_count
    UNION ALL SELECT class, state, n FROM job_count_delta) c GROUP BY 1, 2 HAVING sum(n) <> 0"""
CLASSES = "SELECT class, state, count(*) AS n FROM job GROUP BY 1, 2"
COMPLETED = "SELECT node_id, sum(completed)::bigint AS n FROM usage GROUP BY 1"
LEFT_OVER = """SELECT (SELECT count(*) FROM allocation) AS allocations, (SELECT count(*) FROM lease) AS leases,
    (SELECT count(*) FROM gpu_hold) AS gpu_holds, (SELECT count(*) FROM usage WHERE (jobs, cpus_milli, memory_bytes,
    gpus, gpu_memory_bytes) <> (0, 0, 0, 0, 0)) AS usage_rows"""

USED = """SELECT node_id AS id, sum(jobs)::bigint AS slots, sum(cpus_milli)::bigint AS cpus_milli,
    sum(memory_bytes)::bigint AS memory_bytes, sum(gpus)::bigint AS gpus FROM usage GROUP BY 1"""
ALLOCATED = """SELECT node_id AS id, count(*) AS slots, sum(cpus_milli)::bigint AS cpus_milli,
    sum(memory_bytes)::bigint AS memory_bytes, sum(gpus)::bigint AS gpus FROM allocation GROUP BY 1"""
GPUS_TWICE = """SELECT count(*) AS n FROM (SELECT gpu FROM allocation, unnest(gpu_uuids) gpu
    GROUP BY 1 HAVING count(*) > 1) twice"""


class Reader:
    """A connection that reads in one snapshot at a time."""

    def __init__(self, url: str) -> None:
        self._connection = psycopg2.connect(url, connect_timeout=2, options="-c statement_timeout=4000")
        self._connection.set_session(isolation_level="REPEATABLE READ", readonly=True)

    def rows(self, sql: str) -> list[dict[str, Any]]:
        """All rows of a statement."""
        with self._connection.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cursor:
            cursor.execute(sql)
            return [dict(row) for row in cursor.fetchall()]

    def nodes(self, sql: str) -> dict[str, Node]:
        """Rows of id, slots, cpus_milli, memory_bytes, gpus."""
        return {row.pop("id"): Node(**row) for row in self.rows(sql)}

    def done(self) -> None:
        """Ends the snapshot."""
        self._connection.rollback()

    def close(self) -> None:
        """Closes the connection."""
        self._connection.close()


def execute(url: str, statement: str) -> None:
    """Runs one statement as the database's owner."""
    connection = psycopg2.connect(url, connect_timeout=2)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
    finally:
        connection.close()


def take_sample(reader: Reader) -> Sample:
    """One look at what is reserved now."""
    used, allocated = reader.nodes(USED), reader.nodes(ALLOCATED)
    twice = reader.rows(GPUS_TWICE)[0]["n"]
    reader.done()
    return Sample(used, allocated, _drift(used, allocated), twice)


def _drift(used: Mapping[str, Node], allocated: Mapping[str, Node]) -> int:
    nothing = Node(0, 0, 0, 0)
    names = {*used, *allocated}
    return sum(used.get(name, nothing) != allocated.get(name, nothing) for name in names)


def gather(url: str, planned: Mapping[str, Planned], witness: Path, samples: list[Sample]) -> Evidence:
    """Everything that is left, by one snapshot of the database."""
    reader = Reader(url)
    try:
        jobs = [Job(**{**row, "state": STATES[row["state"]]}) for row in reader.rows(JOBS)]
        attempts = [Attempt(gpus=tuple(row.pop("gpu_uuids")), **row) for row in reader.rows(ATTEMPTS)]
        return Evidence(
            planned=planned,
            jobs={job.id: job for job in jobs},
            attempts=attempts,
            nodes=reader.nodes(NODES),
            witness=read_witness(witness),
            samples=samples,
            counted={(row["class"], STATES[row["state"]]): row["n"] for row in reader.rows(COUNTED)},
            classes={(row["class"], STATES[row["state"]]): row["n"] for row in reader.rows(CLASSES)},
            completed_by_node={row["node_id"]: row["n"] for row in reader.rows(COMPLETED)},
            left_over=reader.rows(LEFT_OVER)[0],
            gpu_memory={row["uuid"]: row["n"] for row in reader.rows(GPU_MEMORY)},
        )
    finally:
        reader.close()
