"""Output that a real job printed and the log does not have: beyond the cap, or lost on its node."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from app.services.logs import FABRIC, read_log
from tests.factories import Fabric, until
from tests.integration.agent.conftest import Site


@pytest.fixture
def site(fabric: Fabric, tmp_path: Path) -> Iterator[Site]:
    site = Site(fabric, tmp_path)
    yield site
    site.close()


def whole(fabric: Fabric, job_id: UUID) -> list[Any]:
    """All frames of an ended job's log."""
    found: list[Any] = []
    after, ended = 0, False
    while not ended:
        part = read_log(fabric.db, fabric.tenant, job_id, after=after)
        found += part.frames
        after, ended = part.next_position, part.ended
    return found


def test_beyond_the_cap_is_counted_and_said(site: Site, fabric: Fabric) -> None:
    site.agent(runner=site.processes(), log_cap_bytes=1000)
    job_id = fabric.submit_one(script="head -c 5000 /dev/zero | tr '\\0' x; echo end >&2")
    site.until_ended(job_id)
    *kept, said = whole(fabric, job_id)
    assert b"".join(frame.data for frame in kept) == b"x" * 1000
    assert (said.stream, said.data) == (FABRIC, b"[truncated: 4004 bytes were dropped]\n")


def test_lost_on_its_node_is_said(site: Site, fabric: Fabric, tmp_path: Path) -> None:
    runner = site.processes()
    agent = site.agent(runner=runner)
    go = tmp_path / "go"
    job_id = fabric.submit_one(script=f"echo kept; while [ ! -e {go} ]; do sleep 0.05; done; echo lost")
    until(lambda: read_log(fabric.db, fabric.tenant, job_id).frames)
    (attempt,) = fabric.attempts(job_id)
    spool = runner.spool_path(str(attempt.id))
    agent.stop()
    os.truncate(spool, 3)
    go.touch()
    site.agent(runner=site.processes())
    site.until_ended(job_id)
    kept, said = whole(fabric, job_id)
    assert kept.data == b"kept\n"
    assert said.stream == FABRIC
    assert said.data.startswith(b"[log gap: ")
    assert fabric.attempts(job_id)[0].log_gap
