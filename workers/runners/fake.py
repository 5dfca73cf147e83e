"""A scriptable runner without processes: same contract, same events, a clock that tests can turn.

Shipped for tests and simulations. A job's behaviour comes from its environment (FAKE_…) or from `script`:
duration_s, exit_code, signal, output, stderr, ignores_sigterm, forever, floods_bytes, spawn_error.
"""

from __future__ import annotations

import heapq
import itertools
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from workers.keeper.files import FILES, remove_files, write_files
from workers.keeper.spec import BadSpec, parse_spec
from workers.runners.base import (
    Callback,
    Cancelled,
    Event,
    Exited,
    ExitRecord,
    Held,
    Output,
    PrepareCancelled,
    RunnerError,
    RunSpec,
    Sample,
    Started,
    StartRefused,
    Stock,
)
from workers.spool import STDERR, STDOUT, pack_header

SIGTERM, SIGKILL = 15, 9


class Clock(Protocol):
    """Time as the runner sees it: boot-clock seconds, and waiting until one or until woken."""

    def now(self) -> float:
        """Return seconds on the clock of deadlines."""

    def wait(self, condition: threading.Condition, until: float | None) -> None:
        """Wait on the held condition until notified or until that time."""


class BootClock:
    """The host's own clock."""

    def now(self) -> float:
        """Return CLOCK_BOOTTIME."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def wait(self, condition: threading.Condition, until: float | None) -> None:
        """Wait in real time."""
        condition.wait(None if until is None else max(0.0, until - self.now()))


class ManualClock:
    """A clock that stands still until `advance` moves it."""

    def __init__(self, start: float = 1000.0) -> None:
        """Begin at `start`."""
        self._now = start
        self._waiters: list[threading.Condition] = []

    def now(self) -> float:
        """Return the set time."""
        return self._now

    def wait(self, condition: threading.Condition, until: float | None) -> None:
        """Wait until notified: by an action, or by `advance`."""
        if condition not in self._waiters:
            self._waiters.append(condition)
        if until is None or until > self._now:
            condition.wait()

    def advance(self, seconds: float) -> None:
        """Move on, and wake the runners that wait."""
        self._now += seconds
        for condition in list(self._waiters):
            with condition:
                condition.notify_all()


@dataclass(frozen=True, slots=True)
class Script:
    """What a fake job does. It prints its output at once, then lasts `duration_s` (for ever if None)."""

    duration_s: float | None = 0.0
    exit_code: int = 0
    signal: int | None = None
    output: str = ""
    stderr: str = ""
    ignores_sigterm: bool = False
    floods_bytes: int = 0
    spawn_error: str | None = None


def script_from_env(spec: RunSpec) -> Script:
    """Read a job's script from its FAKE_… variables; without any it ends at once with exit code 0."""
    env = spec.env
    duration = env.get("FAKE_DURATION_S", "0")
    return Script(
        duration_s=None if duration == "forever" else float(duration),
        exit_code=int(env.get("FAKE_EXIT_CODE", "0")),
        signal=int(env["FAKE_SIGNAL"]) if "FAKE_SIGNAL" in env else None,
        output=env.get("FAKE_OUTPUT", ""),
        stderr=env.get("FAKE_STDERR", ""),
        ignores_sigterm=env.get("FAKE_IGNORES_SIGTERM", "") == "1",
        floods_bytes=int(env.get("FAKE_FLOODS_BYTES", "0")),
        spawn_error=env.get("FAKE_SPAWN_ERROR"),
    )


@dataclass(slots=True)
class _FakeAttempt:
    spec: RunSpec
    script: Script
    pid: int
    deadline: float
    started_boottime: float
    started_wall: float
    record: ExitRecord
    ended: bool = False
    stopping: bool = False
    payload_bytes: int = field(default=0)


class FakeRunner:
    """Runs scripts instead of programs. Several of them on one directory see one world only within one instance."""

    def __init__(
        self,
        directory: Path | None = None,
        clock: Clock | None = None,
        script: Callable[[RunSpec], Script] = script_from_env,
    ) -> None:
        """Start the thread that plays time; spools go to `directory`, else to a temporary one removed by `close`."""
        self._own_directory = directory is None
        self._directory = Path(tempfile.mkdtemp(prefix="cfab-fake-")) if directory is None else directory
        self._clock: Clock = BootClock() if clock is None else clock
        self._script = script
        self._changed = threading.Condition()
        self._attempts: dict[str, _FakeAttempt] = {}
        self._forgotten: set[str] = set()
        self._pids = itertools.count(1_000_000)
        self._due: list[tuple[float, int, str, str]] = []
        self._order = itertools.count()
        self._events: list[Event] = []
        self._callbacks: list[Callback] = []
        self._closed = False
        self._thread = threading.Thread(target=self._play, name="fake-runner", daemon=True)
        self._thread.start()

    def obstacle(self) -> str | None:
        """Nothing ever is."""
        return None

    def prepare(self, spec: RunSpec, cancelled: Cancelled) -> RunSpec:
        """Check the spec; there is nothing to fetch."""
        if cancelled():
            raise PrepareCancelled(f"attempt {spec.attempt_id} is no longer wanted")
        try:
            parse_spec(spec.to_wire())
        except BadSpec as exc:
            raise RunnerError(f"attempt {spec.attempt_id}: {exc}") from exc
        return spec

    def subscribe(self, callback: Callback) -> None:
        """Deliver every later event to `callback`, from the runner's thread."""
        with self._changed:
            self._callbacks.append(callback)

    def attach(self) -> list[Held]:
        """Return everything held."""
        with self._changed:
            return [self._held(attempt) for attempt in self._attempts.values()]

    def take_stock(self) -> Stock:
        """Return what is held."""
        return Stock(self.attach())

    def start(self, spec: RunSpec) -> bool:
        """Begin a script."""
        answer = self.start_many([spec])[0]
        if isinstance(answer, StartRefused):
            raise answer
        return answer

    def start_many(self, specs: Sequence[RunSpec]) -> list[bool | StartRefused]:
        """Begin several scripts."""
        with self._changed:
            return [self._start(spec) for spec in specs]

    def stop(self, attempt_id: str, grace_s: float, cause: str) -> None:
        """Ask a script to end; one that ignores SIGTERM ends after the grace."""
        with self._changed:
            attempt = self._live(attempt_id)
            if attempt is None:
                return
            if attempt.record.stop_cause is None or cause == "cancel":
                attempt.record = replace(attempt.record, stop_cause=cause)
            self._terminate(attempt, grace_s)

    def kill(self, attempt_id: str, cause: str) -> None:
        """End a script at once."""
        with self._changed:
            attempt = self._live(attempt_id)
            if attempt is not None:
                attempt.record = replace(attempt.record, stop_cause=attempt.record.stop_cause or cause)
                self._end(attempt, None, SIGKILL)

    def extend(self, deadlines: Mapping[str, float]) -> list[str]:
        """Move deadlines forward; return those not running here."""
        with self._changed:
            unknown = []
            for attempt_id, deadline in deadlines.items():
                attempt = self._live(attempt_id)
                if attempt is None:
                    unknown.append(attempt_id)
                    continue
                attempt.deadline = max(attempt.deadline, deadline)
                self._at(attempt.deadline, attempt_id, "deadline")
            return unknown

    def forget(self, attempt_ids: Iterable[str], wait: bool = True) -> None:
        """Remove ended scripts and their spools."""
        with self._changed:
            for attempt_id in attempt_ids:
                attempt = self._attempts.get(attempt_id)
                if attempt is None:
                    continue
                if not attempt.ended:
                    raise RunnerError(f"attempt {attempt_id} is still running: stop it first")
                del self._attempts[attempt_id]
                self._forgotten.add(attempt_id)
                shutil.rmtree(self._folder(attempt_id), ignore_errors=True)

    def spool_path(self, attempt_id: str) -> str:
        """Return the attempt's spool file."""
        return str(self._folder(attempt_id) / "spool")

    def work_dir(self, attempt_id: str) -> str:
        """Return the attempt's directory."""
        return str(self._folder(attempt_id) / "work")

    def files_dir(self, attempt_id: str) -> str:
        """Return the directory of the files that come with the attempt."""
        return str(self._folder(attempt_id) / FILES)

    def samples(self, only: Collection[str] | None = None) -> list[Sample]:
        """Return one sample per running script (or `only` of these): one core used since its start, 1 MiB."""
        with self._changed:
            now = self._clock.now()
            return [
                Sample(attempt_id, 1 << 20, max(0.0, now - attempt.started_boottime), 1)
                for attempt_id, attempt in self._attempts.items()
                if not attempt.ended and (only is None or attempt_id in only)
            ]

    def close(self) -> None:
        """Stop the thread; scripts end with it."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        if self._own_directory:
            shutil.rmtree(self._directory, ignore_errors=True)

    # -- the play, with the condition held -----------------------------------------------------------------

    def _start(self, spec: RunSpec) -> bool | StartRefused:
        now = self._clock.now()
        if spec.attempt_id in self._attempts:
            return False
        if spec.attempt_id in self._forgotten:
            return StartRefused("forgotten", f"attempt {spec.attempt_id} has ended and was forgotten: it runs once")
        if spec.deadline <= now:
            return StartRefused(
                "deadline", f"deadline {spec.deadline:.3f} of {spec.attempt_id} has passed: it is {now:.3f}"
            )
        try:
            parse_spec(spec.to_wire())
        except BadSpec as exc:
            return StartRefused("invalid", str(exc))
        wall = time.time()
        blank = ExitRecord(
            spec.attempt_id, spec.job_id, spec.attempt, spec.member, started_boottime=now, started_wall=wall
        )
        attempt = _FakeAttempt(spec, self._script(spec), next(self._pids), spec.deadline, now, wall, blank)
        self._attempts[spec.attempt_id] = attempt
        (self._folder(spec.attempt_id) / "work").mkdir(parents=True, exist_ok=True)
        if spec.files:
            write_files(str(self._folder(spec.attempt_id)), spec.files, None)
        self._events.append(Started(spec.attempt_id, attempt.pid, now, wall))
        script = attempt.script
        if script.spawn_error is not None:
            attempt.record = replace(attempt.record, spawn_error=script.spawn_error)
            self._end(attempt, None, None)
            return True
        self._print(attempt, STDOUT, script.output.encode())
        self._print(attempt, STDERR, script.stderr.encode())
        self._print(attempt, STDOUT, b"y\n" * (script.floods_bytes // 2))
        self._at(spec.deadline, spec.attempt_id, "deadline")
        if spec.time_limit_s is not None:
            self._at(now + spec.time_limit_s, spec.attempt_id, "limit")
        if script.duration_s is not None:
            self._at(now + script.duration_s, spec.attempt_id, "done")
        self._changed.notify_all()
        return True

    def _print(self, attempt: _FakeAttempt, stream: int, data: bytes) -> None:
        room = attempt.spec.log_cap_bytes - attempt.payload_bytes
        kept = data[: max(0, room)]
        lost = attempt.record.truncated_bytes + len(data) - len(kept)
        attempt.record = replace(attempt.record, truncated_bytes=lost)
        with (self._folder(attempt.spec.attempt_id) / "spool").open("ab") as spool:
            for start in range(0, len(kept), 65536):
                piece = kept[start : start + 65536]
                spool.write(pack_header(stream, time.time(), len(piece)) + piece)
            size = spool.tell()
        attempt.payload_bytes += len(kept)
        if kept:
            attempt.record = replace(attempt.record, spool_bytes=size)
            self._events.append(Output(attempt.spec.attempt_id, size))

    def _at(self, when: float, attempt_id: str, what: str) -> None:
        heapq.heappush(self._due, (when, next(self._order), attempt_id, what))
        self._changed.notify_all()

    def _live(self, attempt_id: str) -> _FakeAttempt | None:
        attempt = self._attempts.get(attempt_id)
        return None if attempt is None or attempt.ended else attempt

    def _terminate(self, attempt: _FakeAttempt, grace_s: float) -> None:
        attempt.stopping = True
        if attempt.script.ignores_sigterm:
            self._at(self._clock.now() + grace_s, attempt.spec.attempt_id, "grace")
        else:
            self._end(attempt, None, SIGTERM)

    def _end(self, attempt: _FakeAttempt, exit_code: int | None, number: int | None) -> None:
        attempt.ended = True
        remove_files(str(self._folder(attempt.spec.attempt_id)))
        now = self._clock.now()
        attempt.record = replace(
            attempt.record, exit_code=exit_code, signal=number, ended_boottime=now, ended_wall=time.time(),
            peak_memory_bytes=1 << 20, cpu_seconds=now - attempt.started_boottime,
        )  # fmt: skip
        self._events.append(Exited(attempt.spec.attempt_id, attempt.record))
        self._changed.notify_all()

    def _happen(self, attempt: _FakeAttempt, what: str) -> None:
        script = attempt.script
        if what == "done":
            code = None if script.signal is not None else script.exit_code
            self._end(attempt, code, script.signal)
        elif what == "grace":
            self._end(attempt, None, SIGKILL)
        elif what == "deadline" and attempt.deadline <= self._clock.now():
            attempt.record = replace(attempt.record, lease_lost=True)
            self._end(attempt, None, SIGKILL)
        elif what == "limit" and not attempt.stopping:
            attempt.record = replace(attempt.record, limit_hit="time")
            self._terminate(attempt, attempt.spec.grace_s)

    def _held(self, attempt: _FakeAttempt) -> Held:
        spec = attempt.spec
        return Held(
            spec.attempt_id, spec.job_id, spec.attempt, spec.member, spec.slot, not attempt.ended, attempt.pid,
            attempt.deadline, attempt.started_boottime, attempt.started_wall, attempt.record.spool_bytes,
            attempt.record if attempt.ended else None,
        )  # fmt: skip

    def _folder(self, attempt_id: str) -> Path:
        return self._directory / "attempts" / attempt_id

    def _play(self) -> None:
        while True:
            with self._changed:
                while not self._closed and not self._events and not self._is_due():
                    self._clock.wait(self._changed, self._due[0][0] if self._due else None)
                if self._closed:
                    return
                while self._is_due():
                    _, _, attempt_id, what = heapq.heappop(self._due)
                    attempt = self._live(attempt_id)
                    if attempt is not None:
                        self._happen(attempt, what)
                events, self._events = self._events, []
                callbacks = list(self._callbacks)
            for event in events:
                for callback in callbacks:
                    callback(event)

    def _is_due(self) -> bool:
        return bool(self._due) and self._due[0][0] <= self._clock.now()
