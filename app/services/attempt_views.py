"""The attempts of a job as a reader sees them: one entry for each try; that of a gang sums its members up."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TypeVar

from app.domain.gang import gravest
from app.domain.states import Outcome
from app.services.views import AttemptView, attempt_view, word_of_outcome
from app.storage.database import Row

T = TypeVar("T", int, float)


def attempts_of(rows: Iterable[Row]) -> tuple[AttemptView, ...]:
    """Views of attempt rows that come by number and member. A gang's has its leader's node and the times of all."""
    found = []
    for _number, group in groupby(rows, key=lambda row: row.number):
        tried = [*group]
        members = [attempt_view(row) for row in tried]
        gang = members[0].leader_id is not None
        found.append(_together(members, tried[0].broken) if gang else members[0])
    return tuple(found)


def _together(members: Sequence[AttemptView], broken: str | None) -> AttemptView:
    """One entry for all members: started with the first, over with the last, ended as the gravest end says."""
    ended = [one.ended_at for one in members if one.ended_at is not None]
    started = [one.started_at for one in members if one.started_at is not None]
    over = len(ended) == len(members)
    whole = replace(
        members[0],
        members=tuple(members),
        started_at=min(started, default=None),
        ended_at=max(ended) if over else None,
        state_word="running",
        outcome=None,
        exit_code=None,
        signal=None,
        oom=False,
        limit_hit=None,
        reason=broken,
        stopped_by=next((one.stopped_by for one in members if one.stopped_by), None),
        gpu_uuids=tuple(uuid for one in members for uuid in one.gpu_uuids),
        peak_memory_bytes=_sum(one.peak_memory_bytes for one in members),
        cpu_seconds=_sum(one.cpu_seconds for one in members),
        peak_cpu_cores=_sum(one.peak_cpu_cores for one in members),
        peak_gpu_memory_bytes=_sum(one.peak_gpu_memory_bytes for one in members),
        output_bytes=sum(one.output_bytes for one in members),
        truncated_bytes=sum(one.truncated_bytes for one in members),
        log_gap=any(one.log_gap for one in members),
    )
    return _ended(whole) if over else whole


def _ended(whole: AttemptView) -> AttemptView:
    outcomes = {one.member: Outcome(one.outcome or "") for one in whole.members}
    ended_at = {one.member: one.ended_at for one in whole.members if one.ended_at is not None}
    worst = next(one for one in whole.members if one.member == gravest(outcomes, ended_at))
    outcome = outcomes[worst.member]
    reason = worst.reason
    if outcome == Outcome.CANCELLED and whole.stopped_by is None:
        # Nobody asked for it: the gang never came together.
        outcome, reason = Outcome.NODE_FAULT, whole.reason
    elif outcome != Outcome.COMPLETED and reason:
        reason = f"member {worst.member} on {worst.executor_id}: {reason}"
    return replace(
        whole,
        state_word=word_of_outcome(outcome),
        outcome=str(outcome),
        exit_code=worst.exit_code,
        signal=worst.signal,
        oom=worst.oom,
        limit_hit=worst.limit_hit,
        reason=reason,
    )


def _sum(values: Iterable[T | None]) -> T | None:
    """The sum of what is known; None when nothing is."""
    known = [value for value in values if value is not None]
    return sum(known[1:], known[0]) if known else None
