"""From a runner's exit record to what the core is told: an ending with a message that a user understands."""

from __future__ import annotations

import signal

from app.domain.policy import Ending
from workers.agent import overuse
from workers.artifacts import ArtifactError
from workers.runners.base import ExitRecord

OURS = frozenset({"keeper_shutdown", "no longer ours", "lease lost"})
"""Causes of a kill that the node decided by itself: the job has not failed, and nobody is charged."""


def ending_of(record: ExitRecord) -> Ending:
    """The ending that a record tells of. A signal is never folded into the exit code."""
    if record.spawn_error is not None:
        return Ending(exit_code=None, started=False, refused=True)
    if record.node_fault is not None:
        return Ending(started=False, node_fault=True)
    if record.keeper_lost or record.lease_lost:
        # A lease runs out when we cannot reach the database; only a dead keeper may be the job's doing.
        return Ending(lost=True, started=record.keeper_lost)
    if record.stop_cause in OURS:
        return Ending(lost=True, started=False)
    if record.stop_cause == overuse.CAUSE:
        return Ending(exit_code=record.exit_code, signal=record.signal, oom=True, limit_hit="gpu_memory")
    return Ending(
        exit_code=record.exit_code,
        signal=record.signal,
        oom=record.oom,
        limit_hit=record.limit_hit,
        stopped=record.stop_cause is not None,
    )


def message_of(record: ExitRecord) -> str:
    """Why it ended, in words; empty for an exit with 0."""
    if record.spawn_error is not None:
        return f"the program could not be started: {record.spawn_error}"
    if record.node_fault is not None:
        return record.node_fault
    if record.stop_cause in OURS:
        return f"its node ended it ({record.stop_cause})"
    if record.stop_cause == overuse.CAUSE:
        return "out of GPU memory"
    if record.keeper_lost:
        return "the process that kept the job on its node died"
    if record.lease_lost:
        return "the node could not renew its lease in time and ended the job"
    if record.oom:
        return "out of memory: the job used more than it was given"
    if record.limit_hit is not None:
        return f"the {record.limit_hit} limit was reached"
    if record.signal is not None:
        try:
            name = signal.Signals(record.signal).name
        except ValueError:
            name = f"signal {record.signal}"
        return f"ended by {name}" + (f" ({record.stop_cause})" if record.stop_cause else "")
    return f"exited with {record.exit_code}" if record.exit_code else ""


def peak_cpu_cores(record: ExitRecord, sampled: float | None) -> float | None:
    """The most CPUs used at a time as far as known: the greatest sample, or the average of the whole run."""
    if record.cpu_seconds is None or record.started_boottime is None or record.ended_boottime is None:
        return sampled
    ran_s = record.ended_boottime - record.started_boottime
    return round(max(sampled or 0.0, record.cpu_seconds / ran_s), 3) if ran_s > 0 else sampled


def ending_of_failed_fetch(error: ArtifactError) -> Ending:
    """How an attempt without its program ends: refused for good, the node's fault, or a plain failure."""
    if error.node_fault:
        return Ending(started=False, node_fault=True)
    if error.retryable:
        return Ending(started=False)
    return Ending(started=False, refused=True)
