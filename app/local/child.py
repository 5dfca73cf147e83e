"""One child process of the stack: its own session, its output in a log file, a record that finds it again.

A child never outlives the process that started it: the kernel signals it when that one dies, and the record lets
the next start end whatever did not listen.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app.local.failure import StackError
from app.local.processes import Process, end, find

LOG_BYTES = 8 * 2**20
HURRY_S = 0.2
"""How often a wait looks whether it is to be cut short."""
_PR_SET_PDEATHSIG = 1
# Looked up before any fork: the child between fork and exec must not load a library.
_prctl = ctypes.CDLL(None, use_errno=True).prctl


@dataclass(frozen=True)
class Program:
    """What to run and how to tell whether it serves.

    `ready` and `alive` return at once or within about a second and never raise. `user` is a uid and gid to run as.
    """

    name: str
    argv: Sequence[str]
    env: Mapping[str, str]
    log: Path
    cwd: Path | None = None
    user: tuple[int, int] | None = None
    ready: Callable[[], bool] = field(default=lambda: True)
    alive: Callable[[], bool] | None = None
    before_start: Callable[[], None] = field(default=lambda: None)
    stop_signal: int = signal.SIGTERM
    stop_timeout_s: float = 10.0
    ready_timeout_s: float = 60.0


def ends_with_this_thread(number: int) -> Callable[[], None]:
    """For Popen's `preexec_fn`: the kernel sends the child this signal when the thread that starts it is gone."""

    def arm() -> None:
        # Popen calls it after the change of user, which would clear it.
        _prctl(_PR_SET_PDEATHSIG, number)

    return arm


class Child:
    """Runs a Program, as often as it is started. `records` is a directory for the record of the running process."""

    def __init__(self, program: Program, records: Path) -> None:
        self.program = program
        self._record = records / f"{program.name}.json"
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Number of the running process."""
        return None if self._popen is None else self._popen.pid

    @property
    def exit_status(self) -> int | None:
        """Exit code (negative: signal) of a process that ended; None while it runs or before the first start."""
        return None if self._popen is None else self._popen.poll()

    def start(self) -> None:
        """Starts the process and leaves its record. Call it from a thread that lives as long as the child should.

        Raises StackError when it cannot be executed.
        """
        program = self.program
        program.before_start()
        uid, gid = program.user or (None, None)
        try:
            with program.log.open("ab") as log:
                self._popen = subprocess.Popen(
                    program.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=dict(program.env),
                    cwd=program.cwd,
                    user=uid,
                    group=gid,
                    extra_groups=None if uid is None else [],
                    start_new_session=True,
                    preexec_fn=ends_with_this_thread(program.stop_signal),
                )
        except OSError as exc:
            raise StackError(f"cannot start {program.name} ({program.argv[0]}): {exc.strerror or exc}") from exc
        self._write_record(self._popen.pid)

    def wait_ready(self) -> None:
        """Returns when it serves. Raises StackError, with the end of its log, when it ends first or takes too long."""
        deadline = time.monotonic() + self.program.ready_timeout_s
        while not self.program.ready():
            if self.exit_status is not None:
                raise StackError(f"{self.program.name} ended with {self.exit_status}:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                seconds = self.program.ready_timeout_s
                raise StackError(f"{self.program.name} did not serve within {seconds:g} s:\n{self.log_tail()}")
            time.sleep(0.02)

    def signal_stop(self) -> None:
        """Asks it to stop, without waiting."""
        if self._popen is not None and self._popen.poll() is None:
            self._popen.send_signal(self.program.stop_signal)

    def stop(self) -> None:
        """Stops it, by force after its timeout, with all that is left of its group; harmless to repeat."""
        self.signal_stop()
        self.wait_stopped(self.program.stop_timeout_s)

    def wait_stopped(self, timeout_s: float, hurry: Callable[[], bool] = lambda: False) -> None:
        """Waits for the end of a child that was asked to stop, and forces it after `timeout_s`, or to `hurry`."""
        if self._popen is None:
            return
        deadline = time.monotonic() + timeout_s
        while not hurry() and time.monotonic() < deadline:
            try:
                self._popen.wait(min(HURRY_S, max(0.0, deadline - time.monotonic())))
                break
            except subprocess.TimeoutExpired:
                pass
        self.kill()

    def kill(self) -> None:
        """SIGKILL to its whole group, whether its first process still runs or not."""
        if self._popen is None:
            return
        try:
            os.killpg(self._popen.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            # Nothing of the group is left.
            pass
        self._popen.wait()
        self._record.unlink(missing_ok=True)

    def log_tail(self, lines: int = 15) -> str:
        """The last lines it wrote."""
        try:
            with self.program.log.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - 8192))
                text = log.read().decode("utf-8", "replace")
        except OSError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def rotate_log(self, limit_bytes: int = LOG_BYTES) -> None:
        """Copies a log beyond the limit to `.1` and empties it; a line written in that instant may be lost."""
        log = self.program.log
        try:
            if log.stat().st_size > limit_bytes:
                shutil.copyfile(log, log.with_name(log.name + ".1"))
                # The child appends, so it goes on at the new end.
                os.truncate(log, 0)
        except OSError:
            # A full disk must not end the supervisor; the next turn tries again.
            pass

    def _write_record(self, pid: int) -> None:
        process = find(pid)
        if process is not None:
            record = {"pid": pid, "start_ticks": process.start_ticks, "boot_id": process.boot_id}
            try:
                self._record.write_text(json.dumps(record), encoding="ascii")
            except OSError as exc:
                self.kill()
                raise StackError(f"cannot write {self._record}: {exc.strerror}") from exc


def end_leftovers(records: Path, timeout_s: float = 5.0) -> list[str]:
    """Ends the recorded processes of a former run that still run, with their groups; the names of those."""
    left: dict[str, Process] = {}
    for path in sorted(records.glob("*.json")):
        try:
            record = json.loads(path.read_text(encoding="ascii"))
            process = Process(int(record["pid"]), int(record["start_ticks"]), str(record["boot_id"]))
        except (OSError, ValueError, KeyError, TypeError):
            # A record cut short by a crash: its process had not been told to us, the kernel's signal ends it.
            process = None
        if process is not None and process.runs:
            left[path.stem] = process
    end(left.values(), signal.SIGTERM, timeout_s, group=True)
    for path in records.glob("*.json"):
        path.unlink(missing_ok=True)
    return list(left)
