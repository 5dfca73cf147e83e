"""Statements about whole queues. Their cost grows with the live keys, up to a cap; never with the backlog."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from app.storage.database import Row, Tx
from app.storage.jobs import VIEW

KEYS = 200
"""Keys looked at: those that reach back farthest, or those that go first."""


def oldest_age_s(tx: Tx, priority_class: int) -> float | None:
    """Seconds since the oldest ready job of a class was submitted; None when none waits."""
    age = tx.value(
        """SELECT extract(epoch FROM clock_timestamp() - min(j.created_at))::float FROM (
            SELECT id, low_water FROM scheduling_key WHERE live AND class = %(class)s
            ORDER BY low_water LIMIT %(keys)s) k
        CROSS JOIN LATERAL (
            SELECT created_at FROM job WHERE key_id = k.id AND state = 0 AND ready AND queue_seq >= k.low_water
            ORDER BY queue_seq LIMIT 1) j""",
        {"class": priority_class, "keys": KEYS},
    )
    return None if age is None else max(0.0, float(age))


def next_jobs(tx: Tx, priority_class: int, tenant_id: UUID | None, limit: int) -> Sequence[Row]:
    """Ready jobs of a class in the order of priority and age: of one tenant, or of all."""
    return tx.rows(
        f"""SELECT {VIEW} FROM (
            SELECT id, priority, low_water FROM scheduling_key
            WHERE live AND class = %(class)s AND (%(tenant)s::uuid IS NULL OR tenant_id = %(tenant)s)
            ORDER BY priority DESC, low_water LIMIT %(keys)s) k
        CROSS JOIN LATERAL (
            SELECT * FROM job WHERE key_id = k.id AND state = 0 AND ready AND queue_seq >= k.low_water
            ORDER BY queue_seq LIMIT %(limit)s) j
        ORDER BY k.priority DESC, j.queue_seq LIMIT %(limit)s""",
        {"class": priority_class, "tenant": tenant_id, "keys": KEYS, "limit": limit},
    )
