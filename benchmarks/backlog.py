"""A database full of pending jobs, made by set statements in seconds. For measurements only: no service writes so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

import psycopg2
from psycopg2.extensions import connection as Connection
from sqlalchemy.engine import make_url

from app.storage.migrate import upgrade

_TENANT = "('00000000-0000-4000-9000-' || lpad(to_hex(t), 12, '0'))::uuid"
_JOB = "('00000000-0000-7000-8000-' || lpad(to_hex(i), 12, '0'))::uuid"


@dataclass(frozen=True)
class Keys:
    """How pending jobs are spread: `tenants` times `classes` times `shapes` scheduling keys, the jobs in turn."""

    tenants: int = 1
    classes: int = 1
    shapes: int = 1

    @property
    def count(self) -> int:
        """How many scheduling keys that makes."""
        return self.tenants * self.classes * self.shapes


@contextmanager
def scratch_database(server_url: str, name: str) -> Iterator[str]:
    """A migrated database of its own on the server; dropped at the end. Needs a login that may create databases."""
    url = make_url(server_url)
    admin = _connect(server_url)
    try:
        _run(admin, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        _run(admin, f'CREATE DATABASE "{name}"')
        made = url.set(database=name).render_as_string(hide_password=False)
        upgrade(made)
        yield made
    finally:
        _run(admin, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        admin.close()


class Backlog:
    """Loads and empties one scratch database. Needs a superuser: triggers and foreign keys rest while it loads."""

    def __init__(self, url: str) -> None:
        self._connection = _connect(url)
        self._keys = Keys()
        self._last = 0
        self._pending = 0

    def close(self) -> None:
        """Ends its connection."""
        self._connection.close()

    def empty(self, keys: Keys) -> None:
        """Drops all jobs, keys and tenants; makes tenants and keys anew. Odd shapes get one priority, even another."""
        self._keys = keys
        self._last = self._pending = 0
        self.run(
            "TRUNCATE job, job_spec, attempt, allocation, lease, gpu_hold, usage, scheduling_key, event, "
            "job_count, job_total, job_count_delta, log_chunk CASCADE"
        )
        self.run("DELETE FROM tenant WHERE name LIKE 'bench %'")
        self.run(
            f"""INSERT INTO tenant (id, name) SELECT {_TENANT}, 'bench ' || t FROM generate_series(1, %(tenants)s) t""",
            tenants=keys.tenants,
        )
        self.run(
            f"""INSERT INTO scheduling_key (tenant_id, class, priority, runner, external_ok, cpus_milli, memory_bytes,
                gpus, gpu_memory_bytes, gpu_model)
            SELECT {_TENANT}, c, 50 + s %% 2, 'process', true, 10 + s, 1048576, 0, 0, ''
            FROM generate_series(1, %(tenants)s) t, generate_series(0, %(classes)s - 1) c,
                generate_series(1, %(shapes)s) s""",
            tenants=keys.tenants, classes=keys.classes, shapes=keys.shapes,
        )  # fmt: skip

    def fill(self, count: int) -> None:
        """Adds pending jobs till there are `count`, on all keys in turn."""
        self.add(count - self._pending)
        self.run("VACUUM (ANALYZE) job")
        for table in ("job_spec", "scheduling_key", "tenant", "usage"):
            self.run(f"ANALYZE {table}")

    def add(self, count: int, tenant: UUID | None = None) -> None:
        """Adds `count` pending jobs, to all keys in turn or to those of one tenant."""
        if count <= 0:
            return
        self.run(
            f"""WITH k AS (SELECT id, tenant_id, class, row_number() OVER (ORDER BY id) - 1 AS place FROM scheduling_key
                    WHERE %(tenant)s::uuid IS NULL OR tenant_id = %(tenant)s::uuid)
            INSERT INTO job (id, tenant_id, key_id, class, contract, type, reason)
            SELECT {_JOB}, k.tenant_id, k.id, k.class, 'jobs', 'bench', 'new'
            FROM generate_series(%(first)s, %(last)s) i JOIN k ON k.place = i %% %(n)s ORDER BY i""",
            tenant=None if tenant is None else str(tenant), first=self._last + 1, last=self._last + count,
            n=self._keys.count if tenant is None else self._keys.count // self._keys.tenants,
        )  # fmt: skip
        self.run(
            f"""INSERT INTO job_spec (job_id, runner, script, cpus_milli, memory_bytes, grace_s)
            SELECT {_JOB}, 'process', 'true', 10, 1048576, 10 FROM generate_series(%(first)s, %(last)s) i""",
            first=self._last + 1, last=self._last + count,
        )  # fmt: skip
        self._last += count
        self._pending += count

    def replace(self, count: int) -> None:
        """Adds as many as were claimed."""
        self._pending -= count
        self.add(count)

    def tenant(self, number: int) -> UUID:
        """The id of a tenant, from 1 on."""
        return UUID(f"00000000-0000-4000-9000-{number:012x}")

    def block(self, tenant: UUID) -> None:
        """Leaves a tenant no quota at all."""
        self.run("UPDATE tenant SET quota_jobs = 0 WHERE id = %(id)s", id=str(tenant))

    def outgrow(self, tenant: UUID) -> None:
        """Makes all jobs of a tenant ask for more memory than any node has, and takes its quota away."""
        self.run("UPDATE tenant SET quota_jobs = NULL WHERE id = %(id)s", id=str(tenant))
        self.run("UPDATE scheduling_key SET memory_bytes = 1::bigint << 50 WHERE tenant_id = %(id)s", id=str(tenant))

    def setting(self, name: str) -> str:
        """A setting of the server."""
        with self._connection.cursor() as cursor:
            cursor.execute("SELECT current_setting(%s)", (name,))
            row = cursor.fetchone()
        return str(row[0]) if row else ""

    def run(self, sql: str, **params: object) -> None:
        """One statement with triggers and foreign keys at rest."""
        _run(self._connection, "SET session_replication_role = replica")
        _run(self._connection, sql, **params)


def _connect(url: str) -> Connection:
    plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    connection = psycopg2.connect(plain)
    connection.autocommit = True
    return connection


def _run(connection: Connection, sql: str, **params: object) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql, params or None)
