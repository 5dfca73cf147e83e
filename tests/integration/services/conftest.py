"""A fabric of services on a real, migrated database: one for all these tests, emptied before each."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg2
import pytest

from app.storage.schema import metadata
from tests.factories import Fabric, Node, make_fabric
from tests.servers import TestServers

# Triggers and foreign keys would do again, row by row, what emptying all tables does at once.
EMPTY = "SET session_replication_role = replica;" + "".join(
    f'DELETE FROM "{name}";' for name in sorted(metadata.tables) if name != "tenant"
)
FIRST_TENANT_ONLY = "DELETE FROM tenant WHERE id <> '00000000-0000-0000-0000-000000000001'"


@pytest.fixture(scope="session")
def shared_database_url(servers: TestServers) -> Iterator[str]:
    """One database for all tests of the services: making one takes longer than most of them."""
    url = servers.database()
    yield url
    servers.drop(url)


@pytest.fixture
def database_url(shared_database_url: str) -> str:
    """The shared database, without a row."""
    connection = psycopg2.connect(shared_database_url)
    with connection, connection.cursor() as cursor:
        cursor.execute(EMPTY + FIRST_TENANT_ONLY)
    connection.close()
    return shared_database_url


@pytest.fixture
def fabric(database_url: str) -> Iterator[Fabric]:
    """The services on the shared, emptied database."""
    fabric = make_fabric(database_url)
    yield fabric
    fabric.db.close()


@pytest.fixture
def new_fabric(servers: TestServers) -> Iterator[Fabric]:
    """The services on a database of the test's own, for what depends on its files or its partitions."""
    url = servers.database()
    fabric = make_fabric(url)
    yield fabric
    fabric.db.close()
    servers.drop(url)


@pytest.fixture
def node(fabric: Fabric) -> Node:
    """A ready node with room for anything."""
    return fabric.add_node()
