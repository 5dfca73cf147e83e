"""Notes of saved work beside ends of the same attempts."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID

import pytest

from app.domain.job import Assignment
from app.services import checkpoints
from app.storage import attempts
from tests.factories import Fabric, until
from tests.gangs import assemble, gang_node

WRITE = "UPDATE attempt SET reason = 'ends' WHERE id = %(id)s"


def _two(fabric: Fabric, kind: str) -> list[Assignment]:
    node = gang_node(fabric, "n0")
    if kind == "gang":
        return assemble(fabric, node, node)
    fabric.submit_one()
    fabric.submit_one()
    taken = fabric.claim(node)
    fabric.start(*taken)
    return taken


def _note_amid_an_end(fabric: Fabric, told: Sequence[UUID], ending: Sequence[UUID]) -> None:
    """Notes a checkpoint of `told` while `ending` are being ended, one after the other."""
    with ThreadPoolExecutor(1) as pool:
        with fabric.db.transaction() as tx:
            attempts.lock_for_ending(tx, sorted(ending))
            tx.run(WRITE, {"id": ending[0]})
            note = pool.submit(checkpoints.store, fabric.db, dict.fromkeys(told, 1.0))
            until(lambda: note.done() or fabric.blocked())
            tx.run(WRITE, {"id": ending[1]})
        note.result()


@pytest.mark.parametrize("kind", ["jobs", "gang"])
def test_a_note_waits_for_an_end_of_its_attempts_with_nothing_in_hand(fabric: Fabric, kind: str) -> None:
    ids = [one.attempt_id for one in _two(fabric, kind)]
    told = ids if kind == "jobs" else ids[1:]
    # A note that wrote one attempt first would wait for the other, and the end for it, in one of these orders.
    _note_amid_an_end(fabric, told, ids)
    _note_amid_an_end(fabric, told, ids[::-1])
    assert fabric.value("SELECT count(*) FROM attempt WHERE checkpoint_at IS NOT NULL") == 2
