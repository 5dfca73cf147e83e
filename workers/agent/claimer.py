"""The claiming loop: on a bell, a freed slot, or a jittered poll, claim until nothing fits, and launch.

While there is a backlog most claims are made together with the report of the ends that free their slots.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence

from app.domain.errors import FabricError, StaleIncarnation, Unavailable
from app.domain.job import Assignment
from app.services.claim import Claimed, claim, finish_and_claim
from app.services.claim import Claimer as Who
from app.services.report import Finished, FinishResult, finish_each
from app.storage.database import Database
from config.settings import Settings
from workers.agent.caution import Caution
from workers.agent.registry import Registry

log = logging.getLogger(__name__)

BATCH = 64
GATHER_S = 0.006
"""How long a claim for freed slots waits for more of them: one claim for many costs little more than for one."""
AGAIN_S = (0.05, 0.1)
"""When a claim found a tenant's quota being decided by another node, the next one comes after a pause of this range."""


def boottime() -> float:
    """Seconds of CLOCK_BOOTTIME: monotonic, and it goes on while the host sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class ClaimLoop:
    """Claims for one node, one claim at a time. `launch` gets each batch with its lease's deadline.

    `wake` rings a node that should have a job rather than this one. `caution` says how many jobs the node may risk.
    """

    def __init__(
        self,
        db: Database,
        settings: Settings,
        who: Who,
        registry: Registry,
        launch: Callable[[list[Assignment], float], None],
        uncertain: Callable[[], None],
        stale: Callable[[], None],
        last_resort: Callable[[], None],
        wake: Callable[[str], None] = lambda _node: None,
        unfit: Callable[[], bool] = lambda: False,
        caution: Caution | None = None,
    ) -> None:
        self._db = db
        self._wake = wake
        self._unfit = unfit
        self._caution = caution or Caution()
        self._settings = settings
        self.who = who
        self._registry = registry
        self._launch = launch
        self._uncertain = uncertain
        self._stale = stale
        self._last_resort = last_resort
        self._bell = threading.Event()
        self._stopped = threading.Event()
        self._hungry = True
        self._gather = False
        self._again = False
        self._revisit_s: float | None = None
        self._resort_at = time.monotonic() + self._poll_s()
        self._placed = False
        self._claiming = threading.Lock()
        self._joined = False
        self.draining = False
        self.leaving = False
        self.claims_begun = 0
        self.claims_ended = 0
        self._thread = threading.Thread(target=self._run, name="claimer", daemon=True)

    def start(self) -> None:
        """Begins to claim."""
        self._thread.start()

    def ring(self) -> None:
        """There may be work. Returns at once; may be called from anywhere."""
        self._hungry = True
        self._gather = False
        self._bell.set()

    def fetch(self) -> None:
        """The scheduler has placed something here: worth a claim even while the node is drained."""
        self._placed = True
        self.ring()

    def slot_freed(self) -> None:
        """A slot is free again: worth a claim unless the last one found nothing waiting at all."""
        if self._hungry and not self._joined:
            self._gather = True
            self._bell.set()

    def worth_waiting_for(self) -> int:
        """How many ends make a good batch: a third of the slots while jobs wait for them; the others are at work."""
        return 1 if self._is_sated() else max(1, min(self._registry.slots // 3, len(self._registry), BATCH))

    def finish(self, ends: Sequence[Finished], settle: Callable[[FinishResult], None]) -> None:
        """Reports ends and `settle`s them; while jobs wait, their slots are filled in the same transaction.

        Raises what `finish_each` raises; then nothing was settled.
        """
        if self._is_sated():
            settle(finish_each(self._db, ends))
            return
        # A claim under way comes first: beside it these ends would only wait for its locks, and with it over they share
        # one transaction with the next claim.
        with self._claiming:
            if self._is_sated():
                settle(finish_each(self._db, ends))
                return
            try:
                self._finish_and_claim(ends, settle)
            finally:
                self._joined = False

    def _is_sated(self) -> bool:
        if not self._hungry or self._caution.is_on:
            return True
        return self.draining or self.leaving or self._stopped.is_set() or self._unfit()

    def _finish_and_claim(self, ends: Sequence[Finished], settle: Callable[[FinishResult], None]) -> None:
        limit = min(self._registry.free_after(end.attempt_id for end in ends), BATCH)
        sent = boottime()
        self.claims_begun += 1
        try:
            result, taken = self._joint_turn(ends, limit)
            self._joined = True
            try:
                settle(result)
            finally:
                # It was claimed in the same commit, whatever becomes of the ends here.
                if taken:
                    self._launch(taken, sent + self._settings.lease_s - self._settings.fence_margin_s)
        finally:
            self.claims_ended += 1
        self._heed(taken)

    def _heed(self, taken: Claimed) -> None:
        """What a claim says of the next one, and of other nodes."""
        # What did not fit, or what others held at that moment, is tried again as soon as a slot is free.
        self._hungry = bool(taken) or taken.more
        self._revisit_s = taken.put_off_s
        for node in taken.better:
            self._wake(node)
        if taken.passed_over:
            self._again = True
            self._bell.set()

    def _joint_turn(self, ends: Sequence[Finished], limit: int) -> tuple[FinishResult, Claimed]:
        try:
            return finish_and_claim(self._db, ends, self.who, limit)
        except Unavailable:
            # The ends are told again; what was claimed, if it was, is handed back.
            self._uncertain()
            raise
        except Exception as exc:
            log.warning("ends and claim did not go together, telling the ends alone: %s", exc)
            self._bell.set()
            return finish_each(self._db, ends), Claimed()

    def stop(self) -> None:
        """Ends the loop; a claim under way is completed."""
        self._stopped.set()
        self._bell.set()
        self._thread.join(timeout=30)

    def _run(self) -> None:
        while not self._stopped.is_set():
            rang = self._wait()
            # Clear first, claim after: a bell during the claim leads to one more round, never to a lost job.
            self._bell.clear()
            if self._again:
                # A bell ends the pause at once: what it tells of need not be what was passed over.
                self._again = False
                self._bell.wait(random.uniform(*AGAIN_S))
                self._bell.clear()
            if self._stopped.is_set():
                return
            if self._gather and self._registry.free_slots < self._registry.slots // 2:
                self._stopped.wait(GATHER_S)
            self._gather = False
            try:
                if not rang:
                    self._hungry = True
                if time.monotonic() >= self._resort_at:
                    # Also where bells never stop: they come from agents too, when nobody else is there to recover.
                    self._resort_at = time.monotonic() + self._poll_s()
                    self._last_resort()
                while not self._stopped.is_set() and self._round():
                    pass
            except StaleIncarnation:
                self._stale()
                return
            except FabricError as exc:
                log.warning("claim failed, what it took is handed back if it happened: %s", exc.message)
                self._uncertain()
                self._stopped.wait(random.uniform(0.2, 1.0))
                self._bell.set()
            except Exception:
                log.exception("claim failed")
                self._uncertain()
                self._stopped.wait(1.0)

    def _wait(self) -> bool:
        """Waits for a bell or something that is due; False when the time of a poll went by without either."""
        # What was left to another node for a moment is looked at again when that is over.
        pause_s, self._revisit_s = self._revisit_s, None
        due = [due_s for due_s in (pause_s, self._caution.left_s(time.monotonic())) if due_s is not None]
        return self._bell.wait(min(due, default=self._poll_s())) or bool(due)

    def _poll_s(self) -> float:
        return self._settings.poll_s * random.uniform(0.7, 1.3)

    def _round(self) -> bool:
        """One claim; whether another is worth it at once."""
        with self._claiming:
            limit = min(self._registry.free_slots, BATCH)
            if not self._placed:
                limit = self._caution.room(limit, time.monotonic())
            if limit < 1 or self.leaving or (self.draining and not self._placed):
                return False
            if self._unfit() and not self.draining:
                # Soon the node drains for it; then a claim brings what was placed here before, to be handed back.
                return False
            self._placed = False
            sent = boottime()
            self.claims_begun += 1
            try:
                taken = claim(self._db, self.who, limit)
                if taken:
                    self._caution.tries(time.monotonic())
                    deadline = sent + self._settings.lease_s - self._settings.fence_margin_s
                    self._launch(taken, deadline)
            finally:
                self.claims_ended += 1
            self._heed(taken)
            return len(taken) == limit
