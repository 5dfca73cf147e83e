"""Members of gangs on this node: each waits here, prepared, until all are; then it starts and is told of the others.

A member that waits holds its lease like any other attempt; a stop, or the loss of a peer, ends the wait.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from uuid import UUID

from app.domain.errors import FabricError
from app.domain.gang import GangPlace, Gate, environment_of
from app.domain.policy import Ending
from app.services.gangs import Prepared, gates, miss_barrier, report_prepared
from app.storage.database import Database
from workers.agent.ports import Port, Ports
from workers.agent.registry import Entry, Registry
from workers.runners.base import RunSpec

log = logging.getLogger(__name__)

POLL_S = (0.2, 1.0)
"""How often waiting members look whether all are prepared: at first, and after they have waited for long."""
PORTS_S = 5.0
"""Ports of attempts that have ended are given back this late."""


@dataclass
class _Waiting:
    """A member that is prepared."""

    entry: Entry
    place: GangPlace
    spec: RunSpec
    gpus: int
    since: float
    told: bool = False


class Gangs:
    """Holds members back until their gang is complete, in one thread.

    `start` takes members that may start; `refuse` ends one that never will; `wake` makes other nodes look at once.
    """

    def __init__(
        self,
        db: Database,
        registry: Registry,
        address: str | None,
        ports: Ports,
        barrier_s: float,
        start: Callable[[list[tuple[Entry, RunSpec]]], None],
        refuse: Callable[[Entry, Ending, str], None],
        wake: Callable[[Iterable[str]], None],
        stopping: threading.Event,
    ) -> None:
        self._db = db
        self._registry = registry
        self._address = address
        self._ports = ports
        self._barrier_s = barrier_s
        self._start = start
        self._refuse = refuse
        self._wake = wake
        self._stopping = stopping
        self._lock = threading.Lock()
        self._waiting: dict[UUID, _Waiting] = {}
        self._kept: dict[UUID, Port] = {}
        self._news = threading.Event()
        self._thread: threading.Thread | None = None

    def join(self, entry: Entry, place: GangPlace, spec: RunSpec, gpus: int) -> None:
        """The member has all it needs: it starts as soon as all others have, too."""
        with self._lock:
            self._waiting[entry.attempt_id] = _Waiting(entry, place, spec, gpus, time.monotonic())
            self._run_on()

    def keep_port(self, attempt_id: UUID, number: int) -> None:
        """Keeps the port of a member that an earlier agent had started."""
        port = self._ports.keep(number)
        if port is None:
            log.warning("port %d of attempt %s is kept by another process", number, attempt_id)
            return
        with self._lock:
            self._kept[attempt_id] = port
            self._run_on()

    def look(self) -> None:
        """Something may have changed: waiting members look at once."""
        self._news.set()

    def stop(self) -> None:
        """Ends the thread (`stopping` must be set). Who waits is let go of, untold: the next agent hands it back."""
        self._news.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
        for port in self._kept.values():
            port.give_back()

    def _run_on(self) -> None:
        if self._thread is None and not self._stopping.is_set():
            self._thread = threading.Thread(target=self._run, name="gangs", daemon=True)
            self._thread.start()
        self._news.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._news.wait(self._pause_s())
            self._news.clear()
            if self._stopping.is_set():
                return
            try:
                self.turn()
            except FabricError as exc:
                log.warning("members of gangs wait for the database: %s", exc.message)
            except Exception:
                log.exception("members of gangs wait on")
                self._stopping.wait(POLL_S[1])

    def _pause_s(self) -> float | None:
        with self._lock:
            if not self._waiting:
                return PORTS_S if self._kept else None
            youngest = max(one.since for one in self._waiting.values())
            return POLL_S[0] if time.monotonic() - youngest < 10 * POLL_S[1] else POLL_S[1]

    def turn(self) -> None:
        """One look: tells who is prepared, starts whose gang is complete, ends whose gang is broken."""
        with self._lock:
            self._give_ports_back()
            waiting = [one for one in list(self._waiting.values()) if self._is_wanted(one)]
        if not waiting:
            return
        fresh = {one.place.leader_id for one in self._tell(waiting)}
        found = gates(self._db, sorted({one.place.leader_id for one in waiting}))
        self._miss({leader: gate for leader, gate in found.items() if gate.missing and gate.broken is None})
        ready = []
        for one in waiting:
            gate = found.get(one.place.leader_id)
            if gate is None or one.entry.attempt_id not in self._waiting:
                continue
            if gate.broken is not None:
                self._give_up(one, Ending(started=False, stopped=True), "stopped before it started")
            elif gate.is_open:
                ready.append(self._complete(one, gate))
        for leader in fresh:
            if leader in found and found[leader].is_open:
                self._wake({peer.node_id for peer in found[leader].peers})
        if ready:
            self._start(ready)

    def _is_wanted(self, one: _Waiting) -> bool:
        """Whether the member still waits: one that was lost or stopped does not, and has been seen to."""
        entry = one.entry
        if self._registry.get(entry.attempt_id) is entry and not entry.cancelled.is_set():
            return True
        del self._waiting[entry.attempt_id]
        return False

    def _tell(self, waiting: list[_Waiting]) -> list[_Waiting]:
        """Reports members as prepared, member 0 with a port of this host; those that were not reported before."""
        fresh = [one for one in waiting if not one.told and self._has_port(one)]
        if fresh:
            report_prepared(
                self._db,
                [
                    Prepared(one.entry.attempt_id, one.entry.token, self._address, self._port_of(one.entry.attempt_id))
                    for one in fresh
                ],
            )
        for one in fresh:
            # One that was not taken down has a gang that is broken, or none any more; the gate or the renewal tells.
            one.told = True
        return fresh

    def _has_port(self, one: _Waiting) -> bool:
        attempt_id = one.entry.attempt_id
        if one.place.member or attempt_id in self._kept:
            return True
        port = self._ports.take()
        if port is None:
            self._give_up(one, Ending(started=False, node_fault=True), "no port of CFAB_GANG_PORTS is free on its node")
            return False
        with self._lock:
            self._kept[attempt_id] = port
        return True

    def _port_of(self, attempt_id: UUID) -> int | None:
        port = self._kept.get(attempt_id)
        return None if port is None else port.number

    def _miss(self, incomplete: dict[UUID, Gate]) -> None:
        late = [leader for leader, gate in incomplete.items() if gate.waited_s >= self._barrier_s]
        if late:
            for leader, nodes in miss_barrier(self._db, sorted(late), self._barrier_s).items():
                log.warning("gang %s is given up: not all its members were ready in time", leader)
                self._wake(nodes)
            self._news.set()

    def _give_up(self, one: _Waiting, ending: Ending, message: str) -> None:
        with self._lock:
            self._waiting.pop(one.entry.attempt_id, None)
        self._refuse(one.entry, ending, message)

    def _complete(self, one: _Waiting, gate: Gate) -> tuple[Entry, RunSpec]:
        with self._lock:
            self._waiting.pop(one.entry.attempt_id, None)
            port = self._kept.get(one.entry.attempt_id)
        if port is not None:
            port.open_up()
        env = {**one.spec.env, **environment_of(one.place, gate, one.gpus)}
        return one.entry, replace(one.spec, env=env, member=one.place.member)

    def _give_ports_back(self) -> None:
        for attempt_id in [key for key in self._kept if self._registry.get(key) is None]:
            self._kept.pop(attempt_id).give_back()
