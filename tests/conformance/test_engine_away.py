"""Engines that go away under running containers, and come back: nothing that was printed is lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conformance.conftest import CONTAINERS
from tests.conformance.lab import Lab, eventually
from tests.engine import TestEngine


@pytest.fixture
def lasting() -> Iterator[TestEngine]:
    """An engine whose containers go on without it."""
    engine = TestEngine(options=["--live-restore"])
    yield engine
    engine.close()


def test_output_is_complete_after_a_restart_of_the_engine_that_its_containers_outlive(
    lasting: TestEngine, node_directory: Path
) -> None:
    program = """echo one; echo uno >&2
while [ ! -e /work/on ]; do sleep 0.1; done; echo two
while [ ! -e /work/go ]; do sleep 0.1; done; echo three; echo tre >&2; exit 7"""
    lab = Lab(replace(CONTAINERS, engine=lasting.socket), node_directory)
    try:
        lab.runner.start(lab.program("a1", ["/bin/sh", "-c", program]))
        lab.printed("a1")
        eventually(lambda: lab.text("a1", 1) and lab.text("a1", 2), "first output")
        work = node_directory / "attempts" / "a1" / "work"
        lasting.stop_engine()
        (work / "on").touch()
        lasting.start_engine()
        # It is shown while the job goes on, not only at its end.
        eventually(lambda: lab.text("a1", 1) == "one\ntwo\n", "output after the restart")
        (work / "go").touch()
        record = lab.ended("a1")
        assert (record.exit_code, record.keeper_lost) == (7, False)
        assert (lab.text("a1", 1), lab.text("a1", 2)) == ("one\ntwo\nthree\n", "uno\ntre\n")
    finally:
        lab.close()
