"""Statements about scheduling keys whose jobs no registered node could ever run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from uuid import UUID

from app.storage.database import Row, Tx


def live_keys(tx: Tx, most: int) -> Sequence[Row]:
    """Live keys with the name of their tenant, the oldest first."""
    return tx.rows(
        """SELECT k.*, t.name AS tenant FROM scheduling_key k JOIN tenant t ON t.id = k.tenant_id
        WHERE k.live ORDER BY k.id LIMIT %(most)s""",
        {"most": most},
    )


def marked(tx: Tx) -> dict[int, str]:
    """What is noted, by key."""
    return {row.key_id: row.message for row in tx.rows("SELECT key_id, message FROM unrunnable_key")}


def note(tx: Tx, found: Mapping[int, tuple[str, str]], gone: Sequence[int]) -> None:
    """Notes code and message of keys, and forgets those in `gone`."""
    if gone:
        tx.run("DELETE FROM unrunnable_key WHERE key_id = ANY(%(ids)s)", {"ids": list(gone)})
    if found:
        tx.run(
            """INSERT INTO unrunnable_key AS u (key_id, code, message)
            SELECT * FROM unnest(%(ids)s::bigint[], %(codes)s::text[], %(messages)s::text[])
            ON CONFLICT (key_id) DO UPDATE SET code = EXCLUDED.code, message = EXCLUDED.message""",
            {
                "ids": list(found),
                "codes": [code for code, _message in found.values()],
                "messages": [message for _code, message in found.values()],
            },
        )


def message_of(tx: Tx, job_id: UUID) -> str | None:
    """Why no node could run a job, if that is so."""
    told: str | None = tx.value(
        "SELECT u.message FROM job j JOIN unrunnable_key u ON u.key_id = j.key_id WHERE j.id = %(id)s", {"id": job_id}
    )
    return told


def waiting(tx: Tx, keys: Sequence[int], most: int) -> int:
    """How many ready jobs wait behind these keys, counted up to `most` for each."""
    return int(
        tx.value(
            """SELECT COALESCE(sum(n), 0) FROM unnest(%(keys)s::bigint[]) AS k (id) CROSS JOIN LATERAL (
                SELECT count(*) AS n FROM (SELECT 1 FROM job WHERE key_id = k.id AND state = 0 AND ready
                    LIMIT %(most)s) w) c""",
            {"keys": list(keys), "most": most},
        )
    )
