"""What jobs leave on the disk of a worker that is not root: all of it goes, whoever made it in the container."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.here import Here
from tests.conformance.lab import eventually
from tests.engine import TestEngine
from workers.containers.engine import Engine, EngineError

NOBODY = 65534
PROGRAM = """umask 077
mkdir -p /work/a/b/c /work/open/below /work/sticky /tmp/t /dev/shm/x
echo model > /work/a/b/c/file; echo x > /work/a/b/c/$(printf 'odd\\377 name'); echo x > /work/open/below/file
echo x > /work/sticky/file; echo x > /tmp/t/file; echo x > /work/file
/bin/busybox ln -s /etc /work/a/link; /bin/busybox ln -s / /work/a/b/c/link
/bin/busybox chmod 0 /work/a/b/c; /bin/busybox chmod 755 /work/open; /bin/busybox chmod 1777 /work/sticky"""


def ended_and_forgotten(directory: Path, engine: Engine) -> dict[str, Any]:
    """Run a job as a worker that is not root, in a process of its own; its record, and what is left of its files."""
    answer = directory / "answer.json"
    directory.mkdir()
    os.chown(directory, NOBODY, NOBODY)
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            sys.stderr = (directory / "log").open("w", buffering=1)
            here = Here(directory, engine)
            record = here.run("a1", "/bin/sh", "-c", PROGRAM)
            here.jobs.forget("a1")
            (directory / "new").write_text(json.dumps(record))
            (directory / "new").rename(answer)
            signal.pause()
        finally:
            os._exit(1)
    try:
        eventually(answer.exists, "the job's end")
        eventually(lambda: not left(directory) or "takes up disk" in (directory / "log").read_text(), "removal")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    found: dict[str, Any] = json.loads(answer.read_text())
    return found


def left(directory: Path) -> list[Path]:
    return list((directory / "trash").iterdir())


@pytest.fixture
def engine(docker_engine: TestEngine) -> Engine:
    """The engine, for everybody."""
    docker_engine.root.chmod(0o711)
    Path(docker_engine.socket).chmod(0o666)
    return docker_engine.engine


def test_files_of_a_container_s_root_go_with_their_job(node_directory: Path, engine: Engine) -> None:
    record = ended_and_forgotten(node_directory / "k", engine)
    assert record["exit_code"] == 0
    assert left(node_directory / "k") == [] and not (node_directory / "k" / "attempts" / "a1").exists()
    assert "takes up disk" not in (node_directory / "k" / "log").read_text()


def test_what_cannot_be_removed_is_told_once(node_directory: Path, engine: Engine) -> None:
    class Shut(Engine):
        def unpack(self, container: str, path: str, archive: bytes) -> None:
            raise EngineError(500, "no")

    record = ended_and_forgotten(node_directory / "k", Shut(engine.path))
    assert record["exit_code"] == 0 and left(node_directory / "k") != []
    told = (node_directory / "k" / "log").read_text()
    assert told.count("takes up disk") == 1 and "Permission denied" in told
