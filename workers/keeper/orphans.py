"""Processes that lost their parent and became the keeper's children: finding out whose they are.

Only needed where no control group holds a job together. Standard library only.
"""

from __future__ import annotations

from collections.abc import Collection

from workers.keeper import processes
from workers.keeper.attempt import Attempt


class Orphans:
    """The keeper's children that are no attempt's main process."""

    def __init__(self, mains: dict[int, Attempt], *others: Collection[int]) -> None:
        """Watch beside `mains` (by process id) and the keeper's own `others`."""
        self._mains = mains
        self._others = others
        self._owners: dict[int, Attempt] = {}

    def of(self, attempt: Attempt) -> list[int]:
        """Return the orphans of one attempt.

        By its slot's own user, the session it began in, or the marker in the environment. One that hides all of
        these belongs to the attempt if that is the only one that could have made it; with several running it stays
        until it is the last one's.
        """
        found = []
        for pid in processes.own_children():
            if pid in self._mains or any(pid in others for others in self._others):
                continue
            owner = self._owners.get(pid)
            if owner is None and (self._is_of(pid, attempt) or not self._mains):
                owner = self._owners[pid] = attempt
            if owner is attempt:
                found.append(pid)
        return found

    def reaped(self, pid: int, cpu_seconds: float, peak_bytes: int) -> None:
        """Book a reaped orphan's use to its attempt."""
        owner = self._owners.pop(pid, None)
        if owner is not None:
            owner.orphan_cpu_seconds += cpu_seconds
            owner.orphan_peak_bytes = max(owner.orphan_peak_bytes, peak_bytes)

    @staticmethod
    def _is_of(pid: int, attempt: Attempt) -> bool:
        if attempt.uid is not None:
            return processes.owner_uid(pid) == attempt.uid
        return processes.session_of(pid) == attempt.pid or processes.marker_of(pid) == attempt.token
