"""Fixtures of the hpc contract's tests: one database a module, emptied before each test, and two kinds of client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psycopg2
import pytest
from flask import Flask

from app.api.factory import create_app
from app.storage.database import Database
from app.storage.schema import metadata
from config.settings import Settings
from tests.contract.conftest import Bells, Caller
from tests.contract.hpc_document import CREATE_EXAMPLE
from tests.factories import Fabric
from tests.servers import TestServers

# Triggers and foreign keys would do again, row by row, what emptying all tables does at once.
EMPTY = (
    "SET session_replication_role = replica;"
    + "".join(f'DELETE FROM "{name}";' for name in sorted(metadata.tables) if name != "tenant")
    + "DELETE FROM tenant WHERE id <> '00000000-0000-0000-0000-000000000001'"
)


@pytest.fixture(scope="module")
def hpc_database_url(servers: TestServers) -> Iterator[str]:
    """One database for all tests of a module: making one takes longer than most of them."""
    url = servers.database()
    yield url
    servers.drop(url)


@pytest.fixture
def database_url(hpc_database_url: str) -> str:
    """The shared database, without a row."""
    connection = psycopg2.connect(hpc_database_url)
    with connection, connection.cursor() as cursor:
        cursor.execute(EMPTY)
    connection.close()
    return hpc_database_url


@pytest.fixture(params=["with a token", "without auth"])
def hpc(request: pytest.FixtureRequest, settings: Settings, bells: Bells) -> Iterator[Caller]:
    """A client that adds the one header, and one of the document, which knows no auth."""
    if request.param == "with a token":
        yield from _caller(settings, bells)
    else:
        yield from _caller(replace(settings, auth="off", api_token=""), bells, token=None)


@pytest.fixture
def api(app: Flask) -> Caller:
    """One client, for what does not depend on auth."""
    return Caller(app.test_client(), "/v1")


@pytest.fixture
def fabric(app: Flask, settings: Settings) -> Fabric:
    """The services on the same database."""
    return Fabric(app.extensions["cfab"].db, settings)


def _caller(settings: Settings, bells: Bells, **options: Any) -> Iterator[Caller]:
    db = Database(settings.database_url, 2, "contract-test")
    yield Caller(create_app(settings, db, bells).test_client(), "/v1", **options)
    db.close()


def create(hpc: Caller, job_id: str = "job-001", **changes: Any) -> dict[str, Any]:
    """A tracked job, the document's unless told otherwise."""
    answer = hpc.post("/jobs", json={**json.loads(CREATE_EXAMPLE), "id": job_id, **changes})
    assert answer.status_code == 201, answer.text
    return dict(answer.json)
