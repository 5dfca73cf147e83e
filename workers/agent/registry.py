"""What this node holds at the moment: one entry per attempt, from its claim to its accepted end."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from uuid import UUID

from app.domain.gang import GangPlace
from app.services.report import Chunk
from workers.artifacts import Artifact
from workers.runners.base import ExitRecord


@dataclass
class Entry:
    """One attempt on this node. `stored` is the position up to which its output is in the database.

    `slot` is None for one that had ended when this agent found it: the runner has no slot for it any more.
    `gpu_slice_bytes`: its share of a GPU's memory; None when it has its GPUs to itself.
    """

    attempt_id: UUID
    token: UUID
    job_id: UUID
    attempt: int
    type: str
    tenant_id: UUID
    log_day: date
    slot: int | None
    runner: str
    deadline: float
    claimed_wall: float
    grace_s: float
    gpu_uuids: tuple[str, ...] = ()
    gang: GangPlace | None = None
    gpu_slice_bytes: int | None = None
    gpu_strikes: int = 0
    cancelled: threading.Event = field(default_factory=threading.Event)
    artifact: Artifact | None = None
    launched: bool = False
    started_wall: float | None = None
    started_told: bool = False
    spool_bytes: int = 0
    stored: int = 0
    unsure: Chunk | None = None
    log_broken: bool = False
    record: ExitRecord | None = None
    stopping: str | None = None
    peak_memory_bytes: int | None = None
    peak_cpu_cores: float | None = None
    peak_gpu_memory_bytes: int | None = None

    @property
    def leading_id(self) -> UUID:
        """The attempt by which its job knows it: the leader's, of a gang."""
        return self.attempt_id if self.gang is None else self.gang.leader_id

    @property
    def started_at(self) -> datetime | None:
        """When its process started."""
        return None if self.started_wall is None else datetime.fromtimestamp(self.started_wall, UTC)


class Registry:
    """Entries and slots of one node; all methods may be called from any thread. `taken` counts entries ever held."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._lock = threading.Lock()
        self._entries: dict[UUID, Entry] = {}
        self._free = list(range(slots - 1, -1, -1))
        self.taken = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def free_slots(self) -> int:
        """How many more attempts have a slot."""
        return len(self._free)

    def free_after(self, ended: Iterable[UUID]) -> int:
        """How many more attempts will have a slot once these are removed."""
        with self._lock:
            gone = (self._entries.get(attempt_id) for attempt_id in ended)
            return len(self._free) + len({one.slot for one in gone if one is not None and one.slot is not None})

    def take_slot(self, wanted: int | None = None) -> int | None:
        """Reserves a slot (a particular one for an attempt found running), or None when there is none."""
        with self._lock:
            if wanted is None:
                return self._free.pop() if self._free else None
            if wanted in self._free:
                self._free.remove(wanted)
            return wanted

    def add(self, entry: Entry) -> None:
        """Holds an attempt from now on."""
        with self._lock:
            self.taken += entry.attempt_id not in self._entries
            self._entries[entry.attempt_id] = entry

    def keep(self, entry: Entry, artifact: Artifact) -> bool:
        """Holds a program with its attempt. False, and the program may be evicted, when that is no longer here."""
        with self._lock:
            here = self._entries.get(entry.attempt_id) is entry
            if here:
                entry.artifact = artifact
        if not here:
            artifact.release()
        return here

    def remove(self, attempt_id: UUID) -> Entry | None:
        """Lets go of an attempt: its slot, if it has one, is free, its artifact may be evicted."""
        with self._lock:
            entry = self._entries.pop(attempt_id, None)
            if entry is not None and entry.slot is not None and entry.slot not in self._free:
                self._free.append(entry.slot)
        if entry is not None and entry.artifact is not None:
            entry.artifact.release()
        return entry

    def get(self, attempt_id: UUID) -> Entry | None:
        """The entry of an attempt."""
        return self._entries.get(attempt_id)

    def all(self) -> list[Entry]:
        """All entries, as of now."""
        with self._lock:
            return list(self._entries.values())

    def held_gpus(self) -> set[str]:
        """The GPUs that attempts here have, by UUID."""
        return {uuid for entry in self.all() for uuid in entry.gpu_uuids}

    def ids(self) -> Iterable[UUID]:
        """All attempts, as of now."""
        with self._lock:
            return list(self._entries)
