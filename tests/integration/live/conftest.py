"""A fabric whose jobs are followed, and the watch that wakes their followers."""

from __future__ import annotations

from collections.abc import Iterator
from threading import Event

import pytest

from app.services.watch import Watch
from tests.factories import Fabric, make_fabric


@pytest.fixture
def fabric(database_url: str) -> Iterator[Fabric]:
    fabric = make_fabric(database_url)
    yield fabric
    fabric.db.close()


@pytest.fixture
def watch(fabric: Fabric) -> Iterator[Watch]:
    """A watch without hints."""
    closing = Event()
    yield Watch(fabric.db, "", closing)
    closing.set()
