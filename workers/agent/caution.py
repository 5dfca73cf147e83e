"""What a node risks after faults of its own: one job at a time, ever more rarely, until a start works again.

Without it a node whose disk is full, or whose keeper refuses everything, would take jobs faster than any other.
"""

from __future__ import annotations

import logging
import threading
from uuid import UUID

log = logging.getLogger(__name__)

FAULTS = 3
"""So many jobs in a row that the node could not start make it cautious; fewer may be those jobs' own doing."""
PAUSE_S = (1.0, 60.0)
"""The pause before the first job that a cautious node tries, doubled with each, and the longest one."""
UNTIL = "this node tries one job at a time, ever more rarely, until a start works"


class Caution:
    """Counts faults in a row; may be used from any thread. `now` is in seconds of a clock that never goes back."""

    def __init__(self) -> None:
        """Nothing has gone wrong yet."""
        self._lock = threading.Lock()
        self._faulted: set[UUID] = set()
        self._pause_s = PAUSE_S[0]
        self._next_at = 0.0

    @property
    def is_on(self) -> bool:
        """Whether the node holds back."""
        return len(self._faulted) >= FAULTS

    def fault(self, job_id: UUID, why: str, now: float) -> None:
        """The node could not start a job, and not by that job's doing. One job counts once, however often it comes."""
        with self._lock:
            if self.is_on:
                return
            self._faulted.add(job_id)
            if len(self._faulted) == FAULTS:
                self._pause_s, self._next_at = PAUSE_S[0], now + PAUSE_S[0]
                log.error("%d jobs in a row could not be started here, the last one for: %s; %s", FAULTS, why, UNTIL)

    def works(self) -> bool:
        """A start has worked: all is forgotten. Whether the node had held back."""
        with self._lock:
            was_on = self.is_on
            self._faulted.clear()
        if was_on:
            log.warning("a start has worked: this node takes jobs as before")
        return was_on

    def room(self, most: int, now: float) -> int:
        """How many of `most` jobs may be claimed now: all, one, or none before the pause is over."""
        if not self.is_on:
            return most
        return 0 if now < self._next_at else min(1, most)

    def tries(self, now: float) -> None:
        """A job was claimed: the next one only after a pause, unless this one starts."""
        with self._lock:
            if self.is_on:
                self._next_at = now + self._pause_s
                self._pause_s = min(PAUSE_S[1], self._pause_s * 2)

    def left_s(self, now: float) -> float | None:
        """How long the pause still lasts; None when there is none."""
        return self._next_at - now if self.is_on and now < self._next_at else None
