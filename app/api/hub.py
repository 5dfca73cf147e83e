"""What every spoke shares in one API process: settings, database, ringer, watch, follow service, and more."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from threading import Event
from typing import Protocol, cast
from uuid import UUID

from flask import current_app

from app.api.live.service import LiveService
from app.api.stream_budget import StreamBudget
from app.domain.priority import PriorityClass
from app.services.images import ImageGate
from app.services.ranking import Ranking
from app.services.watch import Watch
from app.storage.database import Database
from config.settings import Settings


class Bells(Protocol):
    """Wakes workers after a commit; never blocks, never raises."""

    def ring(self, priority_class: PriorityClass) -> None:
        """Says that a job of this class is waiting."""

    def wake_node(self, node: str) -> None:
        """Says to a node that one of its jobs is to be stopped."""

    def hint(self, job_ids: Iterable[UUID]) -> None:
        """Says to those who follow these jobs, or their tenant's events, that there is news."""


@dataclass(frozen=True)
class Hub:
    """Made once by the factory; `closing` is set when the process is to end, and ends open streams."""

    settings: Settings
    db: Database
    ringer: Bells
    streams: StreamBudget
    watch: Watch
    live: LiveService
    images: ImageGate
    ranking: Ranking = field(default_factory=Ranking)
    closing: Event = field(default_factory=Event)

    def ring(self, classes: Iterable[PriorityClass]) -> None:
        """Rings once for each distinct class. Call after the commit only."""
        for priority_class in sorted(set(classes)):
            self.ringer.ring(priority_class)

    def hint(self, job_ids: Iterable[UUID]) -> None:
        """Hurries the followers of these jobs, here and in other processes. Call after the commit only."""
        changed = list(job_ids)
        self.watch.hint(changed)
        self.ringer.hint(changed)


def hub() -> Hub:
    """The hub of the current application."""
    return cast(Hub, current_app.extensions["cfab"])
