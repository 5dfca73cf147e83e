"""Fixtures of all tests: embedded servers, a fresh migrated database each, settings free of the environment."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from app.storage.database import Database
from config.settings import Settings, load_settings
from tests.engine import TestEngine
from tests.servers import TestServers

# A shell starts its background jobs with Ctrl-C ignored, and every process that a test starts would inherit that.
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No test may see what the shell that runs it was set up for.
for _name in [name for name in os.environ if name.startswith("CFAB_")]:
    del os.environ[_name]


@pytest.fixture(scope="session")
def servers() -> Iterator[TestServers]:
    """The embedded servers of this run, started when first used."""
    running = TestServers()
    yield running
    running.close()


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[TestEngine]:
    """A Docker Engine of this run's own, started when first used."""
    running = TestEngine()
    yield running
    running.close()


@pytest.fixture
def database_url(servers: TestServers) -> Iterator[str]:
    """A fresh, migrated database."""
    url = servers.database()
    yield url
    servers.drop(url)


@pytest.fixture
def empty_database_url(servers: TestServers) -> Iterator[str]:
    """A fresh database without any table."""
    url = servers.empty_database()
    yield url
    servers.drop(url)


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    """A database of the core."""
    opened = Database(database_url, pool_size=16)
    yield opened
    opened.close()


@pytest.fixture
def broker_url(servers: TestServers) -> str:
    """The broker of this run."""
    return servers.valkey.url


@pytest.fixture
def settings(database_url: str) -> Settings:
    """Settings as a role would have them on this database, without a broker."""
    return load_settings({}, database_url=database_url)
