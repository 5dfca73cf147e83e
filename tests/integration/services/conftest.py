"""A fabric of services on a real, migrated database of the test's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.factories import Fabric, Node, make_fabric


@pytest.fixture
def fabric(database_url: str) -> Iterator[Fabric]:
    fabric = make_fabric(database_url)
    yield fabric
    fabric.db.close()


@pytest.fixture
def node(fabric: Fabric) -> Node:
    """A ready node with room for anything."""
    return fabric.add_node()
