"""Changes of jobs as they become certain: of a tenant, of everyone, or of one job until it has ended.

A contract renders them; each message has an id behind which a client can go on without missing an event.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from uuid import UUID

from app.api.live.feed import Message, Next
from app.api.live.shared_reads import SharedReads
from app.domain.states import TERMINAL
from app.services import events, inspect
from app.services.events import Cursor, Event, Page
from app.services.views import JobView
from app.services.watch import Subscription, Watch
from app.storage.database import Database

AT_A_TIME = 200
NOW = "now"
"""The place behind all that has happened, as callers name it."""


@dataclass(frozen=True)
class Begun:
    """Where a stream begins; a client that goes on from here misses nothing, also when no event came."""

    cursor: Cursor


@dataclass(frozen=True)
class Gap:
    """Some of the events from here on are no longer kept."""

    cursor: Cursor


Render = Callable[[Event | Begun | Gap | JobView], Message]
"""A contract's form of an event, of where the stream begins, of a gap, and of the job as it was when it had ended."""


class EventFeed:
    """The feed of one follower of many jobs. `cursor` None begins with what comes from now on."""

    def __init__(
        self,
        db: Database,
        reads: SharedReads,
        tenant_id: UUID | None,
        cursor: Cursor | None,
        render: Render,
        job_id: UUID | None = None,
        type: str | None = None,
    ) -> None:
        self._db = db
        self._reads = reads
        self._tenant_id = tenant_id
        self._cursor = cursor
        self._render = render
        self._job_id = job_id
        self._type = type
        self._begun = False

    def subscribe(self, watch: Watch) -> AbstractContextManager[Subscription]:
        """Woken by events of the tenant that can be told."""
        return watch.events(self._tenant_id)

    def read(self, version: int) -> tuple[Sequence[Message], Next]:
        """The next events; a feed has no end."""
        if self._cursor is None:
            self._cursor = events.now(self._db)
        if not self._begun:
            self._begun = True
            return [self._render(Begun(self._cursor))], Next.MORE
        page = self._page(self._cursor, version)
        told = [self._render(Gap(self._cursor))] if page.gap else []
        told += [self._render(event) for event in page.events]
        self._cursor = page.next
        return told, Next.MORE if page.more else Next.WAIT

    def _page(self, cursor: Cursor, version: int) -> Page:
        return self._reads.get(
            ("events", self._tenant_id, self._job_id, self._type, cursor, version),
            lambda: events.after(self._db, self._tenant_id, cursor, AT_A_TIME, self._job_id, self._type),
        )


class JobEventFeed:
    """The feed of one follower of one job. Ends when the job has."""

    def __init__(
        self, db: Database, reads: SharedReads, tenant_id: UUID, job_id: UUID, cursor: Cursor, render: Render
    ) -> None:
        self._db = db
        self._reads = reads
        self._tenant_id = tenant_id
        self._job_id = job_id
        self._cursor = cursor
        self._render = render

    def subscribe(self, watch: Watch) -> AbstractContextManager[Subscription]:
        """Woken by the job."""
        return watch.job(self._job_id)

    def read(self, version: int) -> tuple[Sequence[Message], Next]:
        """The next events of the job, and its end."""
        cursor = self._cursor
        job, page = self._reads.get(("job-events", self._job_id, cursor, version), lambda: self._look(cursor))
        self._cursor = page.next
        told = [self._render(event) for event in page.events]
        if page.more:
            return told, Next.MORE
        if job.state in TERMINAL:
            return [*told, self._render(job)], Next.ENDED
        return told, Next.WAIT

    def _look(self, cursor: Cursor) -> tuple[JobView, Page]:
        # The job first: an end that is seen here has its event in the page.
        job = inspect.get_job(self._db, self._tenant_id, self._job_id)
        return job, events.of_job_after(self._db, self._tenant_id, self._job_id, cursor, AT_A_TIME)


def place_asked(text: str, name: str = "after") -> Cursor | None:
    """The place that a caller names; None is the end of the feed. Raises Invalid, naming the field `name`."""
    return None if text == NOW else events.parse_cursor(text, name)


def end_of_job(db: Database, tenant_id: UUID, job_id: UUID) -> Cursor:
    """The place behind the job's last event. Raises NotFound."""
    last = events.of_job(db, tenant_id, job_id, limit=1)
    return last[-1].cursor if last else events.START
