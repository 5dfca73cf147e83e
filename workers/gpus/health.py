"""Whether a GPU may be given away: it answers, and no stranger fills its memory."""

from __future__ import annotations

from app.domain.resources import MIB
from workers.gpus.reading import Reading

STRIKES = 2
"""Looks in a row that must find a stranger's memory: what a job of ours has just left is given back a moment later."""


class Health:
    """Judges readings in the order of time. `stranger_bytes`: memory in use above this is a stranger's; 0: never."""

    def __init__(self, stranger_bytes: int) -> None:
        self._limit = stranger_bytes
        self._strikes: dict[str, int] = {}

    def problem(self, reading: Reading, ours: bool) -> str:
        """Why the GPU may not be given away; empty when it may. `ours`: a job of this node has it."""
        if reading.error:
            return reading.error
        used = reading.memory_used_bytes or 0
        strange = not ours and 0 < self._limit < used
        self._strikes[reading.uuid] = self._strikes.get(reading.uuid, 0) + 1 if strange else 0
        if self._strikes[reading.uuid] < STRIKES:
            return ""
        pids = ", ".join(str(one.pid) for one in (reading.processes or ())[:5])
        whose = f" (process {pids})" if pids else ""
        # Rounded, so that the reason does not change with every look.
        return f"somebody else uses about {max(1, round(used / (1024 * MIB)))} GiB of its memory{whose}"
