"""Writing down how attempts ended and what that means for their jobs. The jobs are locked, the fence is checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import UUID

from app.domain.policy import Verdict
from app.domain.priority import PriorityClass
from app.domain.states import JobState
from app.services.gangs import Roll
from app.storage import attempts as stored
from app.storage.database import Row, Tx
from app.storage.holds import hold_again
from app.storage.keys import revive_keys

if TYPE_CHECKING:
    from app.services.report import Finished


@dataclass(frozen=True)
class Ended:
    """What ends led to: how each attempt ended, the classes in which jobs may be claimed again, and the nodes that
    now have something to stop."""

    outcomes: Mapping[UUID, str] = field(default_factory=dict)
    ready: frozenset[PriorityClass] = frozenset()
    wake: frozenset[str] = frozenset()


def end_attempts(tx: Tx, roll: Roll, verdicts: Sequence[tuple[Row, Finished, Verdict]]) -> Ended:
    """Writes verdicts on attempts that `roll` says are current, and moves their jobs on.

    A member of a gang ends by itself, whatever its verdict says: its job moves on with the last member.
    """
    if not verdicts:
        return Ended()
    outcomes: dict[UUID, str] = {}
    records: list[Mapping[str, Any]] = []
    moves: list[tuple[Row, Verdict]] = []
    for row, end, verdict in verdicts:
        if row.leader_id is None:
            outcomes[row.attempt_id] = str(verdict.outcome)
            moves.append((row, verdict))
            records.append(_job_columns(row, end, verdict) | _attempt_columns(row, end, str(verdict.outcome)))
        else:
            own, message = roll.end(tx, row, end)
            outcomes[row.attempt_id] = str(own)
            records.append(_attempt_columns(row, end, str(own), message))
    for row, end, verdict in roll.verdicts():
        moves.append((row, verdict))
        records.append(_job_columns(row, end, verdict))
    again: dict[int, int] = {}
    for row, verdict in moves:
        if verdict.state == JobState.PENDING:
            again[row.key_id] = min(again.get(row.key_id, row.queue_seq), row.queue_seq)
    revive_keys(tx, again)
    stored.write_endings(tx, records)
    # Only who stops a job can ask for that, so that the ends of all others cost no look.
    stopped = [row.job_id for row, verdict in moves if verdict.state == JobState.PENDING and row.stop_cause is not None]
    if stopped:
        hold_again(tx, stopped)
    images = {row.attempt_id: end.image_digest for row, end, _verdict in verdicts if end.image_digest is not None}
    if images:
        stored.write_images(tx, images)
    ready = frozenset(
        PriorityClass(row._mapping["class"])
        for row, verdict in moves
        if verdict.state == JobState.PENDING and not verdict.delay
    )
    return Ended(outcomes, ready, roll.wake)


def storable(text: str) -> str:
    """`text` without what PostgreSQL refuses in a text: NUL and halves of surrogate pairs become U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\0", "\ufffd")


def _job_columns(row: Row, end: Finished, verdict: Verdict) -> dict[str, Any]:
    pending = verdict.state == JobState.PENDING
    return {
        "job_id": row.job_id,
        "state": int(verdict.state),
        "ready": pending and not verdict.delay,
        "reason": str(verdict.reason) if pending else None,
        "message": storable(end.message),
        "delay_s": verdict.delay.total_seconds(),
        "failed": int(verdict.spends_retry),
        "lost_node": row.node_id if verdict.lost_node else None,
        "exit_code": end.ending.exit_code,
        "signal": end.ending.signal,
        "started_at": end.started_at,
        "ended_at": end.ended_at,
    }


def _attempt_columns(row: Row, end: Finished, outcome: str, message: str | None = None) -> dict[str, Any]:
    ending = end.ending
    return {
        "attempt_id": row.attempt_id,
        "message": storable(end.message if message is None else message),
        "exit_code": ending.exit_code,
        "signal": ending.signal,
        "oom": ending.oom,
        "limit_hit": ending.limit_hit,
        "outcome": outcome,
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
