"""The embedded servers of a test run: one PostgreSQL and one Valkey per process, databases cloned from a template."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import psycopg2

from app.local.ports import free_port
from app.local.postgres import PostgresServer
from app.local.valkey import ValkeyServer
from app.storage.migrate import AGENT_ROLE, upgrade
from tests.databases import REMEMBER, Databases

PASSWORD = "only-for-tests"
TEMPLATE = "template_fabric"


class TestServers:
    """Starts what a test asks for, once; ends all of it in `close`."""

    __test__ = False

    def __init__(self) -> None:
        # /tmp, not pytest's own folder: PostgreSQL runs as another user and must be able to enter.
        self._root = Path(tempfile.mkdtemp(prefix="cfab-test-", dir="/tmp"))
        self._root.chmod(0o711)
        self._postgres: PostgresServer | None = None
        self._valkey: ValkeyServer | None = None
        self._databases: Databases | None = None

    @property
    def postgres(self) -> PostgresServer:
        """The PostgreSQL of this run, with the template database migrated."""
        if self._postgres is None:
            quick = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_connections": "300"}
            server = PostgresServer(self._root / "postgres", free_port(), PASSWORD, quick)
            server.create()
            server.start()
            self._postgres = server
            _run(server.url(), f"CREATE ROLE {AGENT_ROLE} LOGIN PASSWORD '{PASSWORD}'", f"CREATE DATABASE {TEMPLATE}")
            upgrade(server.url(TEMPLATE))
            _run(server.url(TEMPLATE), REMEMBER)
            self._databases = Databases(server.url, TEMPLATE)
        return self._postgres

    @property
    def valkey(self) -> ValkeyServer:
        """The Valkey of this run."""
        if self._valkey is None:
            server = ValkeyServer(self._root / "valkey", free_port(), PASSWORD)
            server.create()
            server.start()
            self._valkey = server
        return self._valkey

    @property
    def databases(self) -> Databases:
        """The databases of this run's PostgreSQL."""
        assert self.postgres.pid is not None
        assert self._databases is not None
        return self._databases

    def database(self) -> str:
        """The URL of a fresh database, migrated."""
        return self.postgres.url(self.databases.take())

    def empty_database(self) -> str:
        """The URL of a fresh database without any table."""
        return self.postgres.url(self.databases.take_empty())

    def drop(self, url: str) -> None:
        """Takes a database back with whoever is still connected."""
        self.databases.give_back(url.rsplit("/", 1)[1])

    def agent_url(self, url: str) -> str:
        """The same database by the agents' restricted login."""
        return self.postgres.url(url.rsplit("/", 1)[1], AGENT_ROLE, PASSWORD)

    def close(self) -> None:
        """Stops the servers and removes their files."""
        for server in (self._valkey, self._postgres):
            if server is not None:
                server.stop()
        shutil.rmtree(self._root, ignore_errors=True)


def _run(url: str, *statements: str) -> None:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    try:
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
    finally:
        connection.close()
