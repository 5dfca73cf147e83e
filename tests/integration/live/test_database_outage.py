"""Followers while PostgreSQL is away: they stay connected, and then get what was stored meanwhile, each byte once."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.cli.client import Client
from app.cli.follow import pieces
from app.local.ports import free_port
from app.local.postgres import PostgresServer
from app.services import logs, report
from app.services.report import Chunk
from app.storage.migrate import upgrade
from tests.factories import make_fabric, until
from tests.integration.live.server import TOKEN, ApiProcess


@pytest.fixture
def postgres() -> Iterator[PostgresServer]:
    # /tmp, not pytest's own folder: PostgreSQL runs as another user and must be able to enter.
    root = Path(tempfile.mkdtemp(prefix="cfab-live-", dir="/tmp"))
    root.chmod(0o711)
    server = PostgresServer(root / "postgres", free_port(), "secret")
    server.create()
    server.start()
    try:
        upgrade(server.url())
        yield server
    finally:
        server.stop()
        shutil.rmtree(root, ignore_errors=True)


def test_is_waited_for(postgres: PostgresServer, tmp_path: Path) -> None:
    fabric = make_fabric(postgres.url())
    job_id = fabric.submit_one()
    taken = fabric.run(fabric.add_node())
    position, got = 0, bytearray()

    def write(text: bytes) -> None:
        nonlocal position
        framed = logs.frame(logs.STDOUT, 1.0, text)
        chunk = Chunk(taken.attempt_id, taken.log_day, position, len(framed), logs.PLAIN, framed)
        report.append_output(fabric.db, [chunk])
        position += len(framed)

    def follow() -> None:
        for piece in pieces(Client(api.url, TOKEN), str(job_id)):
            got.extend(piece["text"].encode())

    api = ApiProcess({"CFAB_DATABASE_URL": postgres.url()}, tmp_path / "api.log")
    try:
        api.start()
        follower = threading.Thread(target=follow, daemon=True)
        follower.start()
        write(b"before\n")
        until(lambda: got == b"before\n")
        postgres.stop()
        until(lambda: api.session.get(api.url + "/api/v1/health", timeout=20).status_code == 503)
        postgres.start()
        fabric.db.close()
        write(b"after\n")
        until(lambda: got == b"before\nafter\n", 30)
        fabric.finish(taken, output_bytes=position)
        follower.join(30)
        assert not follower.is_alive()
        assert got == b"before\nafter\n"
    finally:
        api.kill()
        fabric.db.close()
