"""Jobs that use more GPU memory than their slice has: said once in the worker's log and at their end, or ended."""

from __future__ import annotations

import logging

from workers.agent.registry import Entry
from workers.runners.base import Runner, RunnerError

log = logging.getLogger(__name__)

CAUSE = "gpu memory limit"
"""The cause of the kill, by which its end is recognised."""
STRIKES = 2
"""Samples in a row that must be too large before a job is ended: a reading may be of a moment of growth."""


class Overuse:
    """Judges each sample of a job that has a slice; `kills`: ends it, instead of only telling of it."""

    def __init__(self, runner: Runner, kills: bool) -> None:
        self._runner = runner
        self._kills = kills

    def judge(self, entry: Entry, used_bytes: int) -> None:
        """What a job's processes hold of its GPU now."""
        if entry.gpu_slice_bytes is None or used_bytes <= entry.gpu_slice_bytes:
            entry.gpu_strikes = 0
            return
        entry.gpu_strikes += 1
        if entry.gpu_strikes == 1:
            log.warning(
                "job %s (attempt %d) uses %s of GPU memory and has a slice of %s",
                entry.job_id, entry.attempt, gigabytes(used_bytes), gigabytes(entry.gpu_slice_bytes),
            )  # fmt: skip
        if self._kills and entry.gpu_strikes >= STRIKES:
            try:
                self._runner.kill(str(entry.attempt_id), CAUSE)
            except RunnerError as exc:
                log.warning("job %s could not be ended, the next sample tries again: %s", entry.job_id, exc)


def overused(entry: Entry) -> str:
    """What its owner is told at the end of a job that used more than its slice; empty for any other."""
    peak, slice_bytes = entry.peak_gpu_memory_bytes, entry.gpu_slice_bytes
    if slice_bytes is None or peak is None or peak <= slice_bytes:
        return ""
    return f"it used {gigabytes(peak)} of GPU memory and had a slice of {gigabytes(slice_bytes)}"


def gigabytes(size: int) -> str:
    """A size of GPU memory in the unit that cards are sold in."""
    return f"{size / 1e9:.3g} GB"
