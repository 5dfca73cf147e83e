"""What a node tells of its attempts: started, new output, ended. Every write is guarded by the fence."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from app.domain.errors import Unavailable
from app.domain.policy import Ending, Verdict, judge
from app.domain.priority import PriorityClass
from app.domain.states import JobState, StopCause
from app.storage import attempts as stored
from app.storage import logs
from app.storage.database import Database, Row, Tx
from app.storage.keys import revive_keys

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
    """The answer for each attempt, its outcome, and the classes in which jobs became ready again."""

    answers: dict[UUID, Answer]
    outcomes: dict[UUID, str]
    ready_again: frozenset[PriorityClass]


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
    for part in parts:
        answers |= part.answers
        outcomes |= part.outcomes
        ready |= part.ready_again
    return FinishResult(answers, outcomes, frozenset(ready))


def finish_in(tx: Tx, ends: Sequence[Finished], node_id: str | None = None) -> FinishResult:
    """`finish` inside the caller's transaction, which goes on to claim for `node_id` if that is given."""
    by_id = {end.attempt_id: end for end in ends}
    rows = stored.lock_for_ending(tx, sorted(by_id), node_id=node_id)
    answers: dict[UUID, Answer] = dict.fromkeys(by_id, Answer.STALE)
    current = [row for row in rows if row.current == row.attempt_id and row.token == by_id[row.attempt_id].token]
    if len(current) < len(by_id):
        answers |= _known(tx, [end for end in ends if end.attempt_id not in {row.attempt_id for row in current}])
    chunks = [vars(chunk) for row in current for chunk in by_id[row.attempt_id].chunks]
    logs.insert_chunks(tx, chunks)
    verdicts = [(row, by_id[row.attempt_id], _judge(row, by_id[row.attempt_id].ending)) for row in current]
    ready = end_attempts(tx, verdicts)
    answers |= {row.attempt_id: Answer.ACCEPTED for row in current}
    return FinishResult(answers, {row.attempt_id: str(v.outcome) for row, _e, v in verdicts}, ready)


def end_attempts(tx: Tx, verdicts: Sequence[tuple[Row, Finished, Verdict]]) -> frozenset[PriorityClass]:
    """Writes verdicts on locked jobs whose fence was checked; the classes with jobs that may be claimed again."""
    if not verdicts:
        return frozenset()
    again: dict[int, int] = {}
    for row, _end, verdict in verdicts:
        if verdict.state == JobState.PENDING:
            again[row.key_id] = min(again.get(row.key_id, row.queue_seq), row.queue_seq)
    revive_keys(tx, again)
    stored.write_endings(tx, [_columns(row, end, verdict) for row, end, verdict in verdicts])
    images = {row.attempt_id: end.image_digest for row, end, _verdict in verdicts if end.image_digest is not None}
    if images:
        stored.write_images(tx, images)
    return frozenset(
        PriorityClass(row[9])
        for row, _end, verdict in verdicts
        if verdict.state == JobState.PENDING and not verdict.delay
    )


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


def storable(text: str) -> str:
    """`text` without what PostgreSQL refuses in a text: NUL and halves of surrogate pairs become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\ufffd")


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
    )


def _columns(row: Row, end: Finished, verdict: Verdict) -> Mapping[str, Any]:
    ending = end.ending
    pending = verdict.state == JobState.PENDING
    return {
        "job_id": row.job_id,
        "attempt_id": row.attempt_id,
        "state": int(verdict.state),
        "ready": pending and not verdict.delay,
        "reason": str(verdict.reason) if pending else None,
        "message": storable(end.message),
        "delay_s": verdict.delay.total_seconds(),
        "failed": int(verdict.spends_retry),
        "lost_node": row.node_id if verdict.lost_node else None,
        "exit_code": ending.exit_code,
        "signal": ending.signal,
        "oom": ending.oom,
        "limit_hit": ending.limit_hit,
        "outcome": str(verdict.outcome),
        "stopped_by": row.stop_by,
        "started_at": end.started_at,
        "ended_at": end.ended_at,
        "peak_memory_bytes": end.peak_memory_bytes,
        "cpu_seconds": end.cpu_seconds,
        "peak_cpu_cores": end.peak_cpu_cores,
        "peak_gpu_memory_bytes": end.peak_gpu_memory_bytes,
        "output_bytes": end.output_bytes,
        "truncated_bytes": end.truncated_bytes,
        "log_gap": end.log_gap,
    }
