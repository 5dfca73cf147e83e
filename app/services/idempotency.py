"""Idempotency keys: what a request did and the answer it got become durable together, so a repeat gets that answer.

A key is held by a lock of its transaction, not by a row: a crash leaves nothing behind that would have to be undone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar
from uuid import UUID

from app.domain.errors import KeyInFlight, KeyReused
from app.storage import upkeep
from app.storage.database import Database, Tx

T = TypeVar("T")


@dataclass(frozen=True)
class IdempotencyKey:
    """A client's key for one request: scoped to tenant, method and full path; `body_sha256` tells requests apart."""

    tenant_id: UUID
    method: str
    path: str
    key: str
    body_sha256: bytes


@dataclass(frozen=True)
class Answer(Generic[T]):
    """Status and body for the client; `fresh` is what was done now, None when an earlier request did it."""

    status: int
    body: Any
    fresh: T | None


def answer_once(
    db: Database,
    name: str,
    key: IdempotencyKey | None,
    work: Callable[[Tx], T],
    render: Callable[[T], tuple[int, Any]],
) -> Answer[T]:
    """Does `work` in one transaction called `name`, once for each key; what it raises undoes all and is not kept.

    Raises KeyReused (same key, other request), KeyInFlight (the key's first request still runs), Unavailable (then
    nothing is known: repeat with the same key).
    """
    with db.transaction(name) as tx:
        before = replayed(tx, key) if key is not None else None
        if before is not None:
            return Answer(*before, None)
        done = work(tx)
        status, body = render(done)
        if key is not None:
            keep(tx, key, status, body)
    return Answer(status, body, done)


def earlier_answer(db: Database, key: IdempotencyKey) -> tuple[int, Any] | None:
    """The answer that the key gave before, if any. Raises KeyInFlight, KeyReused, Unavailable."""
    with db.transaction("read") as tx:
        return replayed(tx, key)


def replayed(tx: Tx, key: IdempotencyKey) -> tuple[int, Any] | None:
    """Holds the key until the transaction ends; the answer it gave before, if any. Raises KeyInFlight, KeyReused."""
    if not upkeep.try_key_lock(tx, key.tenant_id, key.method, key.path, key.key):
        raise KeyInFlight(key=key.key)
    answer = upkeep.stored_answer(tx, key.tenant_id, key.method, key.path, key.key)
    if answer is None:
        return None
    if bytes(answer.body_sha256) != key.body_sha256:
        raise KeyReused(key=key.key)
    return answer.status, answer.answer


def keep(tx: Tx, key: IdempotencyKey, status: int, body: Any) -> None:
    """Keeps the answer for the key's repeats; `replayed` must have been asked in this transaction."""
    upkeep.store_answer(tx, key.tenant_id, key.method, key.path, key.key, key.body_sha256, status, body)
