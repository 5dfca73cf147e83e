"""The supervisor of the one-machine stack, on real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from app.local.child import Child, Program, end_leftovers
from app.local.failure import StackError
from app.local.processes import Process, command_line, find, wait_gone
from app.local.supervisor import Backoff, Supervisor

ROOT = Path(__file__).parents[2]


def sleeper(folder: Path, name: str = "sleeper", **changes: Any) -> Program:
    """A program that runs until it is stopped."""
    words = {"argv": ["/bin/sleep", "600"], "env": {"PATH": "/usr/bin:/bin"}, "log": folder / f"{name}.log"}
    return Program(name=name, **{**words, **changes})


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def supervisor(tmp_path: Path, lines: list[str]) -> Iterator[Supervisor]:
    made = Supervisor(tmp_path, lines.append, lambda: Backoff(0.01, 0.05))
    yield made
    made.stop()


def run_until(supervisor: Supervisor, done: Callable[[], bool], seconds: float = 20.0) -> None:
    """Turns the supervisor until `done`."""
    deadline = time.monotonic() + seconds

    def turn() -> None:
        if done() or time.monotonic() > deadline:
            os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.getsignal(signal.SIGUSR1)
    supervisor.stop_on(signal.SIGUSR1)
    try:
        supervisor.watch(turn)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert done(), "not within the time"


def alive(pid: int) -> Process:
    """The process, which must run."""
    process = find(pid)
    assert process is not None
    return process


def test_pauses_double_up_to_the_longest_and_start_anew_after_a_calm_life() -> None:
    backoff = Backoff(first_s=1, longest_s=5, calm_s=60)

    assert [backoff.after(0) for _ in range(5)] == [1, 2, 4, 5, 5]
    assert backoff.after(61) == 1
    assert backoff.after(0) == 2


def test_a_killed_child_is_started_again(supervisor: Supervisor, tmp_path: Path, lines: list[str]) -> None:
    supervisor.start(sleeper(tmp_path))
    first = supervisor.pids()["sleeper"]

    os.kill(first, signal.SIGKILL)
    run_until(supervisor, lambda: supervisor.restarts() == {"sleeper": 1})

    assert supervisor.pids()["sleeper"] != first
    assert "sleeper was killed by SIGKILL" in lines[0]


def test_a_child_that_keeps_dying_is_started_with_growing_pauses(tmp_path: Path, lines: list[str]) -> None:
    supervisor = Supervisor(tmp_path, lines.append, lambda: Backoff(0.01, 10))
    supervisor.start(sleeper(tmp_path, argv=["/bin/sh", "-c", "exit 3"]))

    run_until(supervisor, lambda: supervisor.restarts()["sleeper"] >= 4)
    supervisor.stop()

    assert [line.split(" starts again in ")[1].split(" s")[0] for line in lines[:4]] == ["0.01", "0.02", "0.04", "0.08"]
    assert "ended with 3" in lines[0]


def test_the_rest_of_a_dead_childs_group_goes_before_it_is_started_again(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    helper = tmp_path / "helper"
    words = ["/bin/sh", "-c", f"sleep 600 & echo $! > {helper}; wait"]
    supervisor.start(sleeper(tmp_path, argv=words, ready=lambda: helper.exists() and helper.read_text() != ""))
    left = alive(int(helper.read_text()))

    os.kill(supervisor.pids()["sleeper"], signal.SIGKILL)
    run_until(supervisor, lambda: supervisor.restarts() == {"sleeper": 1})

    assert not left.runs


def test_a_child_that_runs_but_does_not_answer_is_killed_and_started_again(
    supervisor: Supervisor, tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.local.supervisor.LOOK_EVERY_S", 0.0)
    monkeypatch.setattr("app.local.supervisor.TURN_S", 0.01)
    answers = iter([True, False, True, False, False, False])
    supervisor.start(sleeper(tmp_path, alive=lambda: next(answers, True)))
    first = alive(supervisor.pids()["sleeper"])

    run_until(supervisor, lambda: supervisor.restarts() == {"sleeper": 1})

    assert not first.runs
    assert next(answers, None) is None, "one missed answer is no reason"
    assert lines[0] == "sleeper runs but does not answer; it is killed"


def test_stopping_ends_the_last_started_first(supervisor: Supervisor, tmp_path: Path) -> None:
    order = tmp_path / "order"

    def program(name: str) -> Program:
        script = f"trap 'echo {name} >> {order}; exit' TERM; touch {tmp_path}/{name}.up; while :; do sleep 0.02; done"
        return sleeper(tmp_path, name, argv=["/bin/sh", "-c", script], ready=(tmp_path / f"{name}.up").exists)

    def between() -> None:
        order.write_text(order.read_text() + "between\n")

    supervisor.start(program("database"))
    supervisor.start(program("api"))
    supervisor.stop(after_tier=between)

    assert order.read_text().split() == ["api", "between", "database"]


def test_a_child_that_ignores_its_stop_signal_is_killed(tmp_path: Path) -> None:
    script = f"trap '' TERM; touch {tmp_path}/up; while :; do sleep 1; done"
    program = sleeper(tmp_path, argv=["/bin/sh", "-c", script], ready=(tmp_path / "up").exists, stop_timeout_s=0.2)
    child = Child(program, tmp_path)
    child.start()
    child.wait_ready()

    child.stop()

    assert child.exit_status == -signal.SIGKILL


@pytest.mark.parametrize(("interrupts", "is_killed"), [(1, False), (2, True)])
def test_a_second_ctrl_c_cuts_the_wait_short(
    supervisor: Supervisor, tmp_path: Path, interrupts: int, is_killed: bool
) -> None:
    script = f"trap 'sleep 3; touch {tmp_path}/done; exit' TERM; touch {tmp_path}/up; while :; do sleep 0.1; done"
    program = sleeper(tmp_path, argv=["/bin/sh", "-c", script], ready=(tmp_path / "up").exists, stop_timeout_s=600)
    supervisor.start(program)
    before = signal.getsignal(signal.SIGINT)
    supervisor.stop_on(signal.SIGINT)
    try:
        for _ in range(interrupts):
            os.kill(os.getpid(), signal.SIGINT)
        supervisor.stop()
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "done").exists() is not is_killed


def test_a_start_that_fails_shows_the_end_of_the_log(tmp_path: Path, supervisor: Supervisor) -> None:
    words = ["/bin/sh", "-c", "echo no room on the moon; exit 9"]

    with pytest.raises(StackError, match=r"(?s)sleeper ended with 9:.*no room on the moon"):
        supervisor.start(sleeper(tmp_path, argv=words, ready=lambda: False))


def test_a_program_that_is_missing_is_named(tmp_path: Path, supervisor: Supervisor) -> None:
    with pytest.raises(StackError, match=r"cannot start sleeper .*No such file"):
        supervisor.start(sleeper(tmp_path, argv=["/nowhere/program"]))


def test_children_end_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from app.local.child import Child, Program\n"
        "folder = Path(sys.argv[1])\n"
        "child = Child(Program('sleeper', ['/bin/sleep', '600'], {}, folder / 'log'), folder)\n"
        "child.start(); print(child.pid, flush=True); time.sleep(600)\n"
    )
    words = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        assert parent.stdout is not None
        child = alive(int(parent.stdout.readline()))
        parent.kill()

    assert wait_gone([child], 10) == []


def test_a_leftover_of_a_killed_run_is_ended_by_its_record(tmp_path: Path) -> None:
    child = Child(sleeper(tmp_path), tmp_path)
    child.start()
    assert child.pid is not None

    assert end_leftovers(tmp_path) == ["sleeper"]

    assert child.exit_status == -signal.SIGTERM
    assert list(tmp_path.glob("*.json")) == []


def test_a_record_whose_number_now_belongs_to_another_process_harms_nobody(tmp_path: Path) -> None:
    child = Child(sleeper(tmp_path), tmp_path)
    child.start()
    record = tmp_path / "sleeper.json"
    record.write_text(record.read_text().replace('"start_ticks": ', '"start_ticks": 1'))

    assert end_leftovers(tmp_path) == []

    assert child.exit_status is None
    child.stop()


def test_a_record_cut_short_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "api.json").write_text('{"pid": 12')

    assert end_leftovers(tmp_path) == []
    assert list(tmp_path.glob("*.json")) == []


def test_a_long_log_is_set_aside_and_goes_on(tmp_path: Path) -> None:
    script = (
        "yes 0123456789 | head -c 300000; touch up; while [ ! -e more ]; do sleep 0.02; done; echo more; touch done"
    )
    program = sleeper(tmp_path, argv=["/bin/sh", "-c", script], cwd=tmp_path, ready=(tmp_path / "up").exists)
    child = Child(program, tmp_path)
    child.start()
    child.wait_ready()

    child.rotate_log(limit_bytes=100_000)
    (tmp_path / "more").touch()
    child.wait_stopped(20)

    assert (tmp_path / "sleeper.log.1").stat().st_size == 300_000
    assert (tmp_path / "sleeper.log").read_text() == "more\n"


def test_a_command_line_is_read_word_by_word() -> None:
    assert command_line(os.getpid())[0] == sys.orig_argv[0]
    assert command_line(2**22 + 1) == ()
