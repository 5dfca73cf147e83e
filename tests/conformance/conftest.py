"""The modes a runner is tried in, each where this host offers it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conformance.lab import Lab, Mode
from tests.engine import TestEngine, missing
from workers.sandbox.detect import detect

FAKE = Mode("fake", fake=True)
PLAIN = Mode("plain")
SLOT_USERS = Mode("slot-users", uid_base=200_000)
CGROUPS = Mode("cgroups", cgroups="auto")
SANDBOX = Mode("sandbox", cgroups="auto", bwrap="bwrap")
SANDBOX_ALONE = Mode("sandbox-without-cgroups", bwrap="bwrap")
# The ways of birth on machines that `spawn` does not know.
ZYGOTE = Mode("zygote", uid_base=200_000, births="zygote")
FORK = Mode("fork", births="fork")
CONTAINERS = Mode("containers", engine="auto")
PROCESS_MODES = (PLAIN, SLOT_USERS, CGROUPS, SANDBOX, SANDBOX_ALONE, ZYGOTE, FORK)


def available(mode: Mode) -> Mode:
    """Return the mode completed for this host; skip the test (fail it in CI) where the host lacks it."""
    root = os.geteuid() == 0
    if mode.uid_base is not None and not root:
        missing("jobs get users of their own only when the tests run as root")
    plan = detect("preferred" if mode.bwrap else "off")
    if mode.cgroups == "auto" and plan.cgroups is None:
        missing("no writable control groups (run as root, or with Delegate=yes)")
    if mode.bwrap and plan.bwrap is None:
        missing("; ".join(plan.warnings))
    sandbox_uid = 200_000 if root else None
    return replace(mode, uid_base=sandbox_uid if mode.bwrap else mode.uid_base, bwrap=plan.bwrap)


@pytest.fixture
def node_directory() -> Iterator[Path]:
    """A directory that other users can pass through, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="cfab-test-", dir="/tmp"))
    path.chmod(0o711)
    yield path
    shutil.rmtree(path, ignore_errors=True)


def _lab(mode: Mode, directory: Path) -> Iterator[Lab]:
    lab = Lab(mode if mode.fake or mode.engine else available(mode), directory)
    try:
        yield lab
    finally:
        lab.close()


@pytest.fixture(params=(FAKE, *PROCESS_MODES, CONTAINERS), ids=lambda mode: mode.name)
def lab(request: pytest.FixtureRequest, node_directory: Path) -> Iterator[Lab]:
    """Every runner, in every mode."""
    mode: Mode = request.param
    if mode.engine:
        engine: TestEngine = request.getfixturevalue("docker_engine")
        mode = replace(mode, engine=engine.socket)
    yield from _lab(mode, node_directory)


@pytest.fixture(params=PROCESS_MODES, ids=lambda mode: mode.name)
def keeper_lab(request: pytest.FixtureRequest, node_directory: Path) -> Iterator[Lab]:
    """Real processes, in every mode."""
    yield from _lab(request.param, node_directory)


@pytest.fixture
def plain_lab(node_directory: Path) -> Iterator[Lab]:
    """Real processes without any confinement."""
    yield from _lab(PLAIN, node_directory)


@pytest.fixture
def slot_lab(node_directory: Path) -> Iterator[Lab]:
    """Real processes, each slot with a user of its own, without control groups."""
    yield from _lab(SLOT_USERS, node_directory)


@pytest.fixture
def zygote_lab(node_directory: Path) -> Iterator[Lab]:
    """Like `slot_lab`, with a zygote that forks the jobs."""
    yield from _lab(ZYGOTE, node_directory)


@pytest.fixture
def cgroup_lab(node_directory: Path) -> Iterator[Lab]:
    """Real processes in control groups."""
    yield from _lab(CGROUPS, node_directory)


@pytest.fixture
def sandbox_lab(node_directory: Path) -> Iterator[Lab]:
    """Real processes under bubblewrap."""
    yield from _lab(SANDBOX, node_directory)
