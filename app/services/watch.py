"""Wakes readers when PostgreSQL may hold something new for them: one poller and one listener for a whole process.

However many follow, each look is one short statement for all of them. Hints from the broker make the next look
immediate; without them, or without PostgreSQL for a while, only latency grows.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import redis

from app.domain.errors import Unavailable
from app.services import hints
from app.storage import watch as stored
from app.storage.database import Database

log = logging.getLogger(__name__)

LOOK_S = 0.25
"""Between two looks while no hints come in."""
HINTED_LOOK_S = 0.5
IDLE_LOOK_S = 1.0
IDLE_AFTER_S = 20.0
"""So long without news makes looks rarer."""
SPACING_S = 0.03
"""Hints come from many nodes; looks never follow each other closer than this."""
OUTAGE_PAUSE_S = 0.5
EVENTS_AT_A_TIME = 5000
EVENTS_BACK = 1000

# No version comes twice: who subscribes anew must not share what an earlier reader of the same subject read.
_versions = itertools.count(1)


class Subscription:
    """One reader's bell. Subscribe, then read, then wait: so nothing falls between."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.version = 0
        """Grows with the news of this subject; two readers with the same version may share what they read."""

    def wait(self, timeout_s: float) -> bool:
        """Waits for news; False after `timeout_s` without. True may come without any news, rarely twice for one."""
        woken = self._event.wait(timeout_s)
        if woken:
            self._event.clear()
        return woken

    def wake(self) -> None:
        """Ends the wait of whoever waits, or the next one. From any thread."""
        self._event.set()


@dataclass
class _Subject:
    """What readers share: they, what the last look showed, and how often that has changed."""

    readers: set[Subscription] = field(default_factory=set)
    seen: Any = None
    version: int = field(default_factory=lambda: next(_versions))

    def news(self) -> None:
        self.version = next(_versions)
        for reader in self.readers:
            reader.version = self.version
            reader.wake()


class Watch:
    """The watch of one process. Threads start with the first subscription, so a process may fork before."""

    def __init__(self, db: Database, broker_url: str, closing: threading.Event) -> None:
        self._db = db
        self._broker_url = broker_url
        self._closing = closing
        self._changed = threading.Condition()
        self._jobs: dict[UUID, _Subject] = {}
        self._tenants: dict[UUID | None, _Subject] = {}
        self._hinted: set[UUID] = set()
        self._look_now = False
        self._hearing = False
        self._pid = 0
        self._floor: int | None = None
        self._told: dict[int, bool] = {}
        self._news_at = 0.0
        self.looks = 0

    @contextmanager
    def job(self, job_id: UUID) -> Iterator[Subscription]:
        """Wakes for each change of the job's state and for new output of its current attempt."""
        with self._subscribed(self._jobs, job_id) as subscription:
            yield subscription

    @contextmanager
    def events(self, tenant_id: UUID | None) -> Iterator[Subscription]:
        """Wakes when events of a tenant (None: of any) can be read: a row is there, and no older one can still come."""
        with self._subscribed(self._tenants, tenant_id) as subscription:
            yield subscription

    def hint(self, job_ids: Iterable[UUID], state: bool = True) -> None:
        """News of these jobs may be there: look at once. From any thread; costs nothing when nobody follows them."""
        with self._changed:
            followed = [job_id for job_id in job_ids if job_id in self._jobs]
            self._hinted.update(followed)
            wanted = state and bool(self._tenants)
            self._look_now = self._look_now or wanted
            if followed or wanted:
                self._changed.notify_all()

    def wake_all(self) -> None:
        """Ends every wait: for the moment at which the process is told to end, whatever the database does."""
        with self._changed:
            for subject in [*self._jobs.values(), *self._tenants.values()]:
                for reader in subject.readers:
                    reader.wake()
            self._changed.notify_all()

    @property
    def readers(self) -> int:
        """Subscriptions open now."""
        with self._changed:
            return sum(len(s.readers) for table in (self._jobs, self._tenants) for s in table.values())

    # -- subscribing ---------------------------------------------------------------------------------------------

    @contextmanager
    def _subscribed(self, table: dict[Any, _Subject], key: Any) -> Iterator[Subscription]:
        subscription = Subscription()
        with self._changed:
            self._start()
            first = not self._jobs and not self._tenants
            subject = table.setdefault(key, _Subject())
            subject.readers.add(subscription)
            subscription.version = subject.version
            if first:
                self._news_at = time.monotonic()
                self._changed.notify_all()
        try:
            yield subscription
        finally:
            with self._changed:
                subject.readers.discard(subscription)
                if not subject.readers and table.get(key) is subject:
                    del table[key]

    def _start(self) -> None:
        if self._pid == os.getpid():
            return
        self._pid = os.getpid()
        threading.Thread(target=self._poll, name="watch", daemon=True).start()
        if self._broker_url:
            threading.Thread(target=self._listen, name="watch-hints", daemon=True).start()

    def _anyone(self) -> bool:
        return bool(self._jobs or self._tenants) and not self._closing.is_set()

    # -- looking -------------------------------------------------------------------------------------------------

    def _poll(self) -> None:
        due, looked = 0.0, 0.0
        while not self._closing.is_set():
            with self._changed:
                self._wait_for_work(due, looked)
                everything = self._look_now or time.monotonic() >= due
                jobs = list(self._jobs) if everything else [key for key in self._hinted if key in self._jobs]
                events = everything and bool(self._tenants)
                self._hinted.clear()
                self._look_now = False
            if self._closing.is_set():
                break
            looked = time.monotonic()
            pause_s = self._look(jobs, events)
            if everything:
                due = looked + pause_s
        with self._changed:
            self._pid = 0
            for subject in [*self._jobs.values(), *self._tenants.values()]:
                subject.news()

    def _wait_for_work(self, due: float, looked: float) -> None:
        """Sleeps till a look is due or hinted, for ever while nobody follows; the lock is held."""
        while not self._closing.is_set():
            now = time.monotonic()
            if not self._anyone():
                self._changed.wait()
                continue
            wanted = min(due, looked + SPACING_S) if self._hinted or self._look_now else due
            if now >= wanted:
                return
            self._changed.wait(wanted - now)

    def _look(self, jobs: list[UUID], events: bool) -> float:
        """One look; the pause until the next."""
        try:
            self.looks += 1
            with self._db.transaction("watch") as tx:
                rows = stored.look_at_jobs(tx, jobs) if jobs else ()
                recent = self._recent_events(tx) if events else ()
        except Unavailable as exc:
            log.debug("no look at the database: %s", exc)
            return OUTAGE_PAUSE_S
        except Exception:
            # Whatever it was: a watch that has died would leave every reader waiting for ever.
            log.exception("the watch could not look")
            return IDLE_LOOK_S
        with self._changed:
            self._tell_jobs(jobs, rows)
            self._tell_events(recent)
        if time.monotonic() - self._news_at > IDLE_AFTER_S:
            return IDLE_LOOK_S
        return HINTED_LOOK_S if self._hearing else LOOK_S

    def _tell_jobs(self, jobs: list[UUID], rows: Iterable[Any]) -> None:
        shown = {row.id: tuple(row) for row in rows}
        for job_id in jobs:
            subject = self._jobs.get(job_id)
            now = shown.get(job_id, ())
            if subject is not None and subject.seen != now:
                subject.seen = now
                subject.news()
                self._news_at = time.monotonic()

    def _recent_events(self, tx: Any) -> Iterable[Any]:
        if self._floor is None:
            # Readers have read what there was; what may still come out of order lies shortly before the newest.
            self._floor = max(0, stored.last_event(tx) - EVENTS_BACK)
        return stored.look_at_events(tx, self._floor, EVENTS_AT_A_TIME)

    def _tell_events(self, recent: Iterable[Any]) -> None:
        """Wakes the tenants of events that were not readable at the last look."""
        rows = list(recent)
        fresh = {row.tenant_id for row in rows if row.settled and not self._told.get(row.id)}
        self._told = {row.id: row.settled for row in rows}
        crowded = len(rows) >= EVENTS_AT_A_TIME // 2
        if rows and (rows[0].quiet or crowded):
            # Ids that are given out but not committed yet are few and young: a margin behind the newest keeps them.
            self._floor = rows[0].id - (0 if rows[0].quiet else EVENTS_BACK)
            self._told = {number: told for number, told in self._told.items() if number > self._floor}
        for tenant_id, subject in self._tenants.items():
            if tenant_id in fresh or (tenant_id is None and fresh):
                subject.news()
                self._news_at = time.monotonic()

    # -- hints ---------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        while not self._closing.is_set():
            with self._changed:
                while not self._anyone() and not self._closing.is_set():
                    self._changed.wait()
            try:
                for hint in hints.hear(self._broker_url, self._anyone):
                    self._heard(hint)
            except (redis.RedisError, OSError, ValueError) as exc:
                log.debug("no hints: %s", exc)
            except Exception:
                log.exception("the listener for hints failed")
            self._hearing = False
            self._closing.wait(OUTAGE_PAUSE_S)

    def _heard(self, hint: tuple[frozenset[UUID], bool] | None) -> None:
        if hint is not None:
            self.hint(*hint)
        elif not self._hearing:
            self._hearing = True
            # Hints of the time before this connection are lost.
            with self._changed:
                self._look_now = True
                self._changed.notify_all()
