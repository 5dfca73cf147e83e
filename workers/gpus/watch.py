"""Watches the node's GPUs: takes out by UUID what errs, takes it in again when it is well, and tells what they do."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from app.domain.resources import Gpu
from workers.gpus.health import Health
from workers.gpus.reading import GpuSource, Reading
from workers.gpus.source import select

log = logging.getLogger(__name__)

TELL_S = 15.0
"""Readings that changed are told at most this often; what concerns health, at once."""
SILENT_S = 60.0
"""A driver that does not answer for so long has hung, and no GPU of it may be given away."""
HUNG = "the driver does not answer"
_NOTICEABLE = {"utilization_percent": 10, "temperature_celsius": 5, "memory_used_bytes": 2**30, "processes": 1}

Record = dict[str, Any]


class GpuWatch:
    """Looks at the GPUs of `source` every `every_s` in one thread, which is all that a hung driver can stop.

    `held` gives the UUIDs that jobs of this node have; `changed` is called when a GPU went out or came back. `sharing`:
    jobs may share them by memory.
    """

    def __init__(
        self,
        source: GpuSource | None,
        wanted: str,
        held: Callable[[], Collection[str]],
        changed: Callable[[], None],
        every_s: float,
        stranger_bytes: int,
        sharing: bool = False,
    ) -> None:
        self._source = source
        self._sharing = sharing
        self._held = held
        self._changed = changed
        self._every_s = every_s
        self._health = Health(stranger_bytes)
        self._readings: dict[str, Reading] = {}
        self._records: list[Record] = []
        self._told: list[Record] = []
        self._told_at = self._read_at = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpus", daemon=True)
        self._chosen: frozenset[str] | None = None
        if source is not None:
            first = source.read()
            self._chosen = select(first, wanted)
            self._take(first, ())
            # Registering tells which GPUs there are and their health, no readings.
            self._told = [{**one, **dict.fromkeys(_NOTICEABLE)} for one in self._records]

    def offered(self) -> tuple[Gpu, ...]:
        """What the node registers."""
        return tuple(
            Gpu(r["uuid"], r["model"], r["memory_bytes"], r["index"], r["healthy"], r["reason"], r["sharing"])
            for r in self._records
        )

    def start(self) -> None:
        """Begins to watch, where there is anything to watch."""
        # Registering may have waited for the database for any time, in which nobody looked.
        self._read_at = time.monotonic()
        if self._source is not None:
            self._thread.start()

    def stop(self) -> None:
        """Ends the thread, unless the driver holds it."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2)
        if self._source is not None and not self._thread.is_alive():
            self._source.close()

    def news(self) -> list[Record] | None:
        """What the database should say of the GPUs now; None when what it was told is still good."""
        records = self._records
        if time.monotonic() - self._read_at > max(SILENT_S, 3 * self._every_s):
            records = [{**one, "healthy": False, "reason": HUNG} for one in records]
        if _health(records) != _health(self._told):
            return records
        if time.monotonic() - self._told_at >= TELL_S and _differ(records, self._told):
            return records
        return None

    def told(self, records: Sequence[Record]) -> bool:
        """The database says so now; whether there is a GPU to give away that was none before."""
        before = {one["uuid"] for one in self._told if one["healthy"]}
        self._told, self._told_at = list(records), time.monotonic()
        return any(one["healthy"] and one["uuid"] not in before for one in records)

    def use(self, uuids: Sequence[str]) -> tuple[float | None, int | None]:
        """Of a job that has these GPUs to itself: their mean utilisation in percent, and its processes' memory there.

        None where the driver does not tell, or knows no process there.
        """
        readings = [self._readings.get(uuid) for uuid in uuids]
        rates = [one.utilization_percent for one in readings if one is not None]
        used = [None if one is None or not one.processes else one.processes for one in readings]
        sizes = [process.memory_bytes for processes in used if processes for process in processes]
        rate = sum(r for r in rates if r is not None) / len(rates) if rates and None not in rates else None
        return rate, sum(s for s in sizes if s is not None) if sizes and None not in sizes else None

    def use_of(self, uuids: Sequence[str], pids: Collection[int]) -> int | None:
        """The memory of these processes on these GPUs; None where the driver does not tell, or knows none of them.

        Its numbers are those of the host: an agent in a container needs the host's, too.
        """
        readings = [self._readings.get(uuid) for uuid in uuids]
        found = [one for reading in readings if reading for one in reading.processes or () if one.pid in pids]
        sizes = [one.memory_bytes for one in found if one.memory_bytes is not None]
        return sum(sizes) if sizes and len(sizes) == len(found) else None

    def look(self) -> None:
        """Reads all GPUs once and judges them."""
        assert self._source is not None
        before = _health(self._records)
        self._take(self._source.read(), self._held())
        if _health(self._records) != before:
            self._changed()

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            try:
                self.look()
            except Exception:
                log.exception("the GPUs could not be read")

    def _take(self, readings: Sequence[Reading], held: Collection[str]) -> None:
        mine = [one for one in readings if self._chosen is None or one.uuid in self._chosen]
        was = {one["uuid"]: one["reason"] for one in self._records}
        self._records = [_record(one, self._health.problem(one, one.uuid in held), self._sharing) for one in mine]
        self._readings = {one.uuid: one for one in mine}
        self._read_at = time.monotonic()
        for one in self._records:
            reason = was.get(one["uuid"], "")
            if one["reason"] and not reason:
                log.error("GPU %d (%s) is taken out: %s", one["index"], one["uuid"], one["reason"])
            elif reason and not one["reason"]:
                log.warning("GPU %d (%s) is well again and taken in", one["index"], one["uuid"])


def _record(reading: Reading, problem: str, sharing: bool) -> Record:
    """A GPU as the node's row has it."""
    return {
        "uuid": reading.uuid,
        "model": reading.model,
        "memory_bytes": reading.memory_bytes,
        "index": reading.index,
        "healthy": not problem,
        "reason": problem[:500],
        "sharing": sharing,
        "utilization_percent": reading.utilization_percent,
        "temperature_celsius": reading.temperature_celsius,
        "memory_used_bytes": reading.memory_used_bytes,
        "processes": None if reading.processes is None else len(reading.processes),
    }


def _health(records: Sequence[Record]) -> list[tuple[str, str]]:
    return [(one["uuid"], one["reason"]) for one in records]


def _differ(records: Sequence[Record], told: Sequence[Record]) -> bool:
    """Whether any reading has changed so much that somebody might care."""
    for now, then in zip(records, told, strict=True):
        for name, least in _NOTICEABLE.items():
            new, old = now[name], then[name]
            if (new is None) != (old is None) or (new is not None and abs(new - old) >= least):
                return True
    return False
