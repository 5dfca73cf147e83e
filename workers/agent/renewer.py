"""The renewing loop: extends leases by listed tokens and acts on where node and database differ."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from uuid import UUID

from app.domain.errors import FabricError, StaleIncarnation
from app.services.nodes import Drain, Held, Orphan, Renewal, renew
from app.services.operate import stop_overdue
from app.storage.database import Database
from config.settings import Settings
from workers.agent.claimer import ClaimLoop, boottime
from workers.agent.fitness import Fitness
from workers.agent.registry import Entry, Registry
from workers.gpus.watch import GpuWatch

log = logging.getLogger(__name__)


class Renewer:
    """Renews the node's leases in one thread; also at once, when woken."""

    def __init__(
        self,
        db: Database,
        settings: Settings,
        registry: Registry,
        claims: ClaimLoop,
        extend: Callable[[dict[UUID, float]], None],
        stop_entry: Callable[[Entry, str, float], None],
        lost: Callable[[Entry], None],
        hand_back: Callable[[list[Orphan]], None],
        stale: Callable[[], None],
        gpus: GpuWatch,
        fitness: Fitness,
    ) -> None:
        self._db = db
        self._settings = settings
        self._registry = registry
        self._claims = claims
        self._extend = extend
        self._stop_entry = stop_entry
        self._lost = lost
        self._hand_back = hand_back
        self._stale = stale
        self._gpus = gpus
        self._fitness = fitness
        self._drain: Drain | None = None
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._left: set[UUID] = set()
        self._suspects: dict[UUID, int] = {}
        self.failures = 0
        self._thread = threading.Thread(target=self._run, name="renewer", daemon=True)

    def start(self) -> None:
        """Begins to renew."""
        self._thread.start()

    def wake(self) -> None:
        """Renews at once: something is to be stopped, or a claim's outcome is unknown."""
        self._wake.set()

    def leave(self, attempts: Iterable[UUID]) -> None:
        """Never hands these back: only their lease says when another may have them."""
        self._left |= set(attempts)

    def has_left(self, attempt_id: UUID) -> bool:
        """Whether this attempt is left to its lease."""
        return attempt_id in self._left

    def stop(self) -> None:
        """Ends the loop. What runs is held until its deadline; the next agent goes on renewing."""
        self._stopped.set()
        self._wake.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._renew_once()
                self.failures = 0
            except StaleIncarnation:
                self._stale()
                return
            except FabricError as exc:
                self.failures += 1
                log.warning("leases could not be renewed (%d in a row): %s", self.failures, exc.message)
            except Exception:
                self.failures += 1
                log.exception("leases could not be renewed")
            pause = self._settings.renew_s if not self.failures else min(1.0, self._settings.renew_s)
            self._wake.wait(pause)
            self._wake.clear()

    def _renew_once(self) -> None:
        entries = {entry.attempt_id: entry for entry in self._registry.all()}
        # The deadline counts from before the request: the database's clock can only start later.
        sent = boottime()
        held = [Held(entry.attempt_id, entry.token) for entry in entries.values()]
        who = self._claims.who
        assert who.incarnation is not None
        gpus = self._gpus.news()
        answer = renew(self._db, who.node_id, who.incarnation, held, self._settings.lease_s, gpus)
        if gpus is not None and self._gpus.told(gpus):
            self._claims.ring()
        deadline = sent + self._settings.lease_s - self._settings.fence_margin_s
        for attempt_id in answer.renewed:
            entries[attempt_id].deadline = deadline
        self._extend({attempt_id: deadline for attempt_id in answer.renewed if entries[attempt_id].launched})
        self._heed_drain(answer.drain, entries.values())
        for attempt_id, (cause, grace_s) in answer.stops.items():
            self._stop_entry(entries[attempt_id], cause.word, grace_s)
        for attempt_id, grace_s in answer.broken.items():
            self._stop_entry(entries[attempt_id], "gang", grace_s)
        for attempt_id in answer.lost:
            self._lost(entries[attempt_id])
        self._settle_orphans(answer)
        if answer.placed:
            self._claims.fetch()
        self._fitness.heed(who.node_id, who.incarnation, answer.drain)

    def _heed_drain(self, drain: Drain | None, entries: Iterable[Entry]) -> None:
        """Says when a drain begins, changes or ends; past its deadline has what still runs stopped."""
        node = self._claims.who.node_id
        self._claims.draining = drain is not None
        before, self._drain = self._drain, drain
        if drain is None or drain.own:
            if before is not None and not before.own:
                log.warning("node %s takes jobs again", node)
                self._claims.ring()
            return
        if before is None or (before.reason, before.by, before.deadline) != (drain.reason, drain.by, drain.deadline):
            until = f"; what still runs is stopped at {drain.deadline:%Y-%m-%d %H:%M:%S %z}" if drain.deadline else ""
            log.warning("node %s is drained by %s: %s%s", node, drain.by or "?", drain.reason or "no reason", until)
        if drain.over and any(entry.stopping is None for entry in entries) and stop_overdue(self._db, node):
            self._wake.set()

    def _settle_orphans(self, answer: Renewal) -> None:
        """Hands back what the database gives us but nobody here has.

        An attempt of a claim that is under way looks the same. So an orphan counts only when every claim that had begun
        when it was seen has ended (and put what it took into the registry), and it is still not here.
        """
        begun = self._claims.claims_begun
        self._suspects = {o.attempt_id: self._suspects.get(o.attempt_id, begun) for o in answer.orphans}
        ended = self._claims.claims_ended
        here = set(self._registry.ids())
        orphans = [orphan for orphan in answer.orphans if orphan.attempt_id not in here | self._left]
        sure = [orphan for orphan in orphans if self._suspects[orphan.attempt_id] <= ended]
        if sure:
            log.warning("handing back %d allocations that this node does not run", len(sure))
            self._hand_back(sure)
        elif orphans:
            self._stopped.wait(0.05)
            self._wake.set()
