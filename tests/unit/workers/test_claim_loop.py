"""How many ends the claiming loop asks the reporter to gather for one transaction."""

from __future__ import annotations

from datetime import date
from uuid import UUID, uuid4

import pytest

from app.services.claim import Claimer
from app.storage.database import Database
from config.settings import Settings
from workers.agent.claimer import BATCH, ClaimLoop
from workers.agent.registry import Entry, Registry


def held(slots: int, jobs: int) -> ClaimLoop:
    """The loop of a node that holds so many jobs and believes that others wait."""
    registry = Registry(slots)
    for _ in range(jobs):
        slot = registry.take_slot()
        assert slot is not None
        registry.add(Entry(uuid4(), uuid4(), uuid4(), 1, "t", UUID(int=1), date(2024, 1, 1), slot, "fake", 0, 0, 1))
    unused = Database("postgresql://nobody@127.0.0.1:1/none")
    return ClaimLoop(
        unused, Settings(), Claimer("n1", None), registry, lambda *_: None, lambda: None, lambda: None, lambda: None
    )


@pytest.mark.parametrize(
    ("slots", "jobs", "ends"),
    [(30, 30, 10), (30, 4, 4), (2, 2, 1), (1, 0, 1), (600, 600, BATCH)],
    ids=["a third of the slots", "all that it holds", "a small node", "an empty node", "as many as a claim brings"],
)
def test_while_jobs_wait_ends_gather(slots: int, jobs: int, ends: int) -> None:
    assert held(slots, jobs).worth_waiting_for() == ends


def test_an_end_waits_for_no_other_where_nothing_is_claimed() -> None:
    draining, leaving = held(30, 30), held(30, 30)
    draining.draining = leaving.leaving = True
    assert draining.worth_waiting_for() == leaving.worth_waiting_for() == 1
