"""What a node tells of its attempts: started, new output, ended. Every write is guarded by the fence."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from app.domain.errors import Unavailable
from app.domain.policy import Ending, Verdict, judge
from app.domain.priority import PriorityClass
from app.domain.states import StopCause
from app.services.endings import end_attempts
from app.services.gangs import Roll
from app.storage import attempts as stored
from app.storage import logs
from app.storage.database import Database, Row, Tx

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Started:
    """An attempt's process runs since `started_at`."""

    attempt_id: UUID
    token: UUID
    started_at: datetime


@dataclass(frozen=True)
class Chunk:
    """A stretch of an attempt's framed output from byte `position` on; codec 0 is plain, 1 is zlib."""

    attempt_id: UUID
    log_day: Any
    position: int
    length: int
    codec: int
    data: bytes


@dataclass(frozen=True)
class Finished:
    """How an attempt ended, with what its record keeps."""

    attempt_id: UUID
    token: UUID
    ending: Ending
    message: str = ""
    started_at: datetime | None = None
    ended_at: datetime | None = None
    peak_memory_bytes: int | None = None
    cpu_seconds: float | None = None
    peak_cpu_cores: float | None = None
    peak_gpu_memory_bytes: int | None = None
    output_bytes: int = 0
    truncated_bytes: int = 0
    log_gap: bool = False
    image_digest: str | None = None
    chunks: Sequence[Chunk] = field(default_factory=tuple)


class Answer(StrEnum):
    """What became of a report: accepted, known (the same was accepted before), stale (another holds or ended it)."""

    ACCEPTED = "accepted"
    KNOWN = "known"
    STALE = "stale"


@dataclass(frozen=True)
class FinishResult:
    """The answer for each attempt, its outcome, the classes in which jobs became ready again, and the nodes that have
    something to stop now."""

    answers: dict[UUID, Answer]
    outcomes: dict[UUID, str]
    ready_again: frozenset[PriorityClass]
    wake: frozenset[str] = frozenset()


def report_started(db: Database, starts: Sequence[Started]) -> set[UUID]:
    """Starting becomes running for those that still hold their fence; the others are missing from the answer."""
    with db.transaction("start") as tx:
        return stored.mark_started(tx, [vars(start) for start in starts])


def append_output(db: Database, chunks: Sequence[Chunk]) -> None:
    """Stores output. A repeat of the same chunks changes nothing."""
    with db.transaction("output") as tx:
        logs.insert_chunks(tx, [vars(chunk) for chunk in chunks])


def finish(db: Database, ends: Sequence[Finished]) -> FinishResult:
    """Ends attempts and moves their jobs on: output first, then the terminal state, in one transaction.

    Repeating it is safe: what was accepted before answers KNOWN. A late result is accepted while the job still waits
    on that very attempt; one whose attempt is over, or whose token differs, answers STALE and changes nothing.
    """
    with db.transaction("finish") as tx:
        return finish_in(tx, ends)


def finish_each(db: Database, ends: Sequence[Finished]) -> FinishResult:
    """`finish`, but a batch that PostgreSQL refuses is halved until the poison row stands alone.

    Every other row is finished; a row that is refused even alone is missing from the answers, and logged. An output
    that cannot be stored never blocks the end: it is left out with `log_gap`. Raises Unavailable, as `finish` does.
    """
    try:
        return finish(db, ends)
    except Unavailable:
        raise
    except Exception as exc:
        if len(ends) > 1:
            half = len(ends) // 2
            return _merge([finish_each(db, ends[:half]), finish_each(db, ends[half:])])
        bare = _without_output(ends[0])
        if bare is not None:
            return finish_each(db, [bare])
        log.error("the end of attempt %s cannot be stored: %s", ends[0].attempt_id, exc)
        return FinishResult({}, {}, frozenset())


def _without_output(end: Finished) -> Finished | None:
    if end.log_gap and not end.chunks:
        return None
    kept = {
        **vars(end),
        "chunks": (),
        "log_gap": True,
    }
    return Finished(**kept)


def _merge(parts: Sequence[FinishResult]) -> FinishResult:
    answers: dict[UUID, Answer] = {}
    outcomes: dict[UUID, str] = {}
    ready: set[PriorityClass] = set()
    wake: set[str] = set()
    for part in parts:
        answers |= part.answers
        outcomes |= part.outcomes
        ready |= part.ready_again
        wake |= part.wake
    return FinishResult(answers, outcomes, frozenset(ready), frozenset(wake))


def finish_in(tx: Tx, ends: Sequence[Finished], node_id: str | None = None) -> FinishResult:
    """`finish` inside the caller's transaction, which goes on to claim for `node_id` if that is given."""
    by_id = {end.attempt_id: end for end in ends}
    rows = stored.lock_for_ending(tx, sorted(by_id), node_id=node_id)
    answers: dict[UUID, Answer] = dict.fromkeys(by_id, Answer.STALE)
    roll = Roll.call(tx, rows)
    current = [row for row in rows if roll.has(row) and row.token == by_id[row.attempt_id].token]
    if len(current) < len(by_id):
        answers |= _known(tx, [end for end in ends if end.attempt_id not in {row.attempt_id for row in current}])
    chunks = [vars(chunk) for row in current for chunk in by_id[row.attempt_id].chunks]
    logs.insert_chunks(tx, chunks)
    verdicts = [(row, by_id[row.attempt_id], _judge(row, by_id[row.attempt_id].ending)) for row in current]
    ended = end_attempts(tx, roll, verdicts)
    answers |= {row.attempt_id: Answer.ACCEPTED for row in current}
    return FinishResult(answers, dict(ended.outcomes), ended.ready, ended.wake)


def _known(tx: Tx, ends: Sequence[Finished]) -> dict[UUID, Answer]:
    """Fresh look at attempts that are not current: ended by the same token's own report, or by somebody else."""
    rows = tx.rows(
        "SELECT id, token, outcome FROM attempt WHERE id = ANY(%(ids)s)",
        {"ids": [end.attempt_id for end in ends]},
    )
    tokens = {end.attempt_id: end.token for end in ends}
    return {
        row.id: Answer.KNOWN
        for row in rows
        if row.token == tokens[row.id] and row.outcome is not None and row.outcome != "lost"
    }


def _judge(row: Row, ending: Ending) -> Verdict:
    cause = None if row.stop_cause is None else StopCause(row.stop_cause)
    known = row.node_id in row.lost_nodes
    return judge(
        ending,
        cause,
        row.failures,
        row.max_retries,
        lost_nodes=len(row.lost_nodes) - known,
        backoff_s=row.backoff_s,
        multiplier=row.backoff_multiplier,
        uncharged=row.number - 1 - row.failures,
    )
