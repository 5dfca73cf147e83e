"""Engines that go away under running containers, and come back: nothing that was printed is lost."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conformance.conftest import CONTAINERS
from tests.conformance.lab import Lab, eventually
from tests.conformance.test_containers import LONG, is_running
from tests.engine import TestEngine
from workers.runners.base import ExitRecord
from workers.runners.fake import Script


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


@pytest.fixture
def boxes(docker_engine: TestEngine, node_directory: Path) -> Iterator[Lab]:
    lab = Lab(replace(CONTAINERS, engine=docker_engine.socket), node_directory)
    yield lab
    lab.close()


def without_keeper(boxes: Lab, meanwhile: Callable[[], None]) -> ExitRecord:
    """How the attempt `a1` ended, after its keeper died and something happened until the next one came."""
    hello = dict(boxes.keeper.hello)
    os.kill(hello["guard_pid"], signal.SIGKILL)
    boxes.runner.close()
    os.kill(hello["pid"], signal.SIGKILL)
    eventually(lambda: not is_running(hello["pid"]), "end of the keeper")
    meanwhile()
    boxes.open()
    held = {one.attempt_id: one.record for one in boxes.runner.attach()}["a1"]
    return held or boxes.ended("a1")


def test_output_goes_on_where_it_stopped_though_the_engine_has_dropped_its_oldest(boxes: Lab) -> None:
    """Short lines take more room in the engine's log than in the spool, so that it keeps less of them."""
    program = (
        "seq 150000; echo first >&2; while [ ! -e /work/go ]; do sleep 0.05; done; seq 150001 151000; echo end >&2"
    )
    boxes.runner.start(boxes.program("a1", ["/bin/sh", "-c", program], log_cap_bytes=1 << 21))
    eventually(lambda: boxes.text("a1", 2) == "first\n" and boxes.text("a1", 1).endswith("150000\n"), "output")
    record = without_keeper(boxes, (boxes.directory / "attempts" / "a1" / "work" / "go").touch)
    assert record.exit_code == 0 and record.truncated_bytes == 0
    assert boxes.text("a1", 1) == "".join(f"{number}\n" for number in range(1, 151_001))
    assert boxes.text("a1", 2) == "first\nend\n"


@pytest.mark.parametrize("script", [LONG, replace(LONG, ignores_sigterm=True)], ids=["TERM", "KILL"])
def test_job_whose_engine_was_restarted_while_no_keeper_was_there_is_lost_and_not_failed(
    boxes: Lab, docker_engine: TestEngine, script: Script
) -> None:
    boxes.runner.start(boxes.spec("a1", script))
    boxes.printed("a1")

    def restart() -> None:
        docker_engine.stop_engine()
        docker_engine.start_engine()

    record = without_keeper(boxes, restart)
    assert (record.keeper_lost, record.exit_code, record.signal) == (True, None, None)


def test_whatever_ran_before_its_host_was_started_anew_is_lost(boxes: Lab) -> None:
    boxes.runner.start(boxes.program("a1", ["/bin/sh", "-c", "echo ready; sleep 0.5"]))
    boxes.printed("a1")

    def reboot() -> None:
        noted = boxes.directory / "attempts" / "a1" / "state.json"
        noted.write_text(json.dumps({**json.loads(noted.read_text()), "boot": "another"}))

    record = without_keeper(boxes, reboot)
    assert (record.keeper_lost, record.exit_code, record.signal) == (True, None, None)


def test_what_a_job_did_itself_or_was_asked_for_while_no_keeper_was_there_stays_so(boxes: Lab) -> None:
    boxes.runner.start(boxes.program("a1", ["/bin/sh", "-c", "trap '' TERM; echo ready; sleep 1000"], grace_s=60.0))
    boxes.printed("a1")
    boxes.runner.stop("a1", 1.0, "cancel")
    record = without_keeper(boxes, lambda: None)
    assert (record.keeper_lost, record.signal, record.stop_cause) == (False, 9, "cancel")


def test_kill_of_an_earlier_keeper_is_known_to_the_next(boxes: Lab, docker_engine: TestEngine) -> None:
    boxes.runner.start(boxes.spec("a1", LONG))
    boxes.printed("a1")
    noted = boxes.directory / "attempts" / "a1" / "state.json"

    def killed() -> None:
        noted.write_text(json.dumps({**json.loads(noted.read_text()), "kill_sent": True}))
        docker_engine.docker("kill", f"cfab-{boxes.keeper.hello['name']}-a1")

    record = without_keeper(boxes, killed)
    assert (record.keeper_lost, record.signal) == (False, 9)
