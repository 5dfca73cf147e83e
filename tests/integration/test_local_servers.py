"""The embedded servers as the stack runs them: kills, stale pidfiles, hung servers, data that cannot be used."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest
import redis

from app.local import postgres as module
from app.local.ports import free_port
from app.local.postgres import PostgresServer, ServerFailed
from app.local.processes import command_line, find, working_in
from app.local.valkey import ValkeyServer


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory that the database's user may pass through; pytest's own it may not."""
    root = Path(tempfile.mkdtemp(prefix="cfab-servers-", dir="/tmp"))
    root.chmod(0o711)
    yield root
    shutil.rmtree(root)


@pytest.fixture
def server(folder: Path) -> Iterator[PostgresServer]:
    made = PostgresServer(folder / "postgres", free_port(), secrets.token_urlsafe(8), {"fsync": "off"})
    made.create()
    made.start()
    yield made
    made.stop()


def fetch(url: str, statement: str) -> object:
    """The first column of the first row."""
    connection = psycopg2.connect(url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(statement)
            row = cursor.fetchone() if cursor.description else None
            return row[0] if row else None
    finally:
        connection.close()


def test_what_was_committed_is_there_after_a_kill(server: PostgresServer) -> None:
    fetch(server.url(), "CREATE TABLE kept AS SELECT 7 AS number")

    server.kill()
    server.start()

    assert fetch(server.url(), "SELECT number FROM kept") == 7


def test_a_server_that_outlived_its_supervisor_is_ended_first(server: PostgresServer) -> None:
    old = working_in(server.data)
    second = PostgresServer(server.root, free_port(), server._password, {"fsync": "off"})

    second.start()

    assert not any(process.runs for process in old)
    assert second.answers()
    second.stop()


def test_a_stale_pidfile_whose_number_belongs_to_another_process_is_no_obstacle(server: PostgresServer) -> None:
    server.stop()
    (server.data / "postmaster.pid").write_text(f"{os.getpid()}\n{server.data}\n")

    server.start()

    assert server.answers()
    assert find(os.getpid()) is not None


def test_a_stopped_server_does_not_answer_and_does_not_block(server: PostgresServer) -> None:
    assert server.reacts()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSTOP)
    try:
        assert not server.answers()
        assert not server.reacts()
    finally:
        os.kill(server.pid, signal.SIGCONT)


def test_a_server_that_refuses_still_reacts(server: PostgresServer) -> None:
    stranger = PostgresServer(server.root, server.port, "not the password")

    assert not stranger.answers()
    assert stranger.reacts()


def test_a_half_made_cluster_is_made_anew(server: PostgresServer) -> None:
    server.stop()
    (server.data / "CREATED").unlink()
    (server.data / "PG_VERSION").unlink()

    server.create()
    server.start()

    assert server.answers()


def test_data_of_another_major_version_are_refused(server: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAJOR", module.MAJOR + 1)

    with pytest.raises(
        ServerFailed, match=f"made by PostgreSQL {module.MAJOR - 1}; this program brings {module.MAJOR}"
    ):
        server.create()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts the server as another user")
def test_a_directory_closed_to_the_servers_user_is_refused_with_its_name(folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)

    with pytest.raises(ServerFailed, match=f"may not pass through {closed} .mode 700.; choose"):
        PostgresServer(closed / "postgres", free_port(), "x").create()


def test_logins_and_databases_can_be_made_twice_and_are_closed_to_others(server: PostgresServer) -> None:
    for password in ("first", "second"):
        server.ensure_login("owner", password)
        server.ensure_login("guest", "guest")
        server.ensure_login("stranger", "stranger")
        server.ensure_database("fabric", "owner", guests=("guest",))

    assert fetch(server.url("fabric", "owner", "second"), "SELECT current_user") == "owner"
    assert fetch(server.url("fabric", "guest", "guest"), "SELECT current_user") == "guest"
    with pytest.raises(psycopg2.OperationalError, match="permission denied"):
        fetch(server.url("fabric", "stranger", "stranger"), "SELECT 1")
    with pytest.raises(psycopg2.OperationalError, match="password authentication failed"):
        fetch(server.url("fabric", "owner", "first"), "SELECT 1")


def test_valkey_comes_back_after_a_kill_and_wants_its_password(folder: Path) -> None:
    server = ValkeyServer(folder / "valkey", free_port(), secrets.token_urlsafe(8))
    server.create()
    server.start()
    try:
        server.kill()
        server.start()
        with pytest.raises(redis.AuthenticationError):
            redis.Redis(port=server.port).ping()
        assert server.answers()
        assert server.pid is not None
        assert server._password not in " ".join(command_line(server.pid))
    finally:
        server.stop()
    assert not server.answers()
