"""A place to try a runner in: one behaviour as a fake script or a shell program, and what was observed."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.engine import TEST_IMAGE
from workers.keeper.processes import is_zombie
from workers.runners.base import Event, Exited, ExitRecord, Output, Runner, RunSpec, Started
from workers.runners.container import ContainerOptions, ContainerRunner, ContainerSpec
from workers.runners.fake import FakeRunner, Script
from workers.runners.keeper_client import KeeperOptions
from workers.runners.process import ProcessRunner
from workers.spool import Frame, parse_frames, read_frames

PATIENCE_S = 20.0
PATH = "/usr/local/bin:/usr/bin:/bin"


def boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class Mode:
    """One way of running jobs."""

    name: str
    fake: bool = False
    uid_base: int | None = None
    cgroups: str = "off"
    bwrap: str | None = None
    births: str = "auto"
    engine: str | None = None

    @property
    def sandbox(self) -> str:
        return "bubblewrap" if self.bwrap else "off"


class Observer:
    """Collects a runner's events and waits for conditions on them."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._changed = threading.Condition()

    def __call__(self, event: Event) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        found: Any = None

        def holds() -> bool:
            nonlocal found
            found = condition()
            return bool(found)

        with self._changed:
            if not self._changed.wait_for(holds, PATIENCE_S):
                raise AssertionError(f"no {what} within {PATIENCE_S} s; events: {self.events[-5:]}")
        return found

    def exits(self, attempt_id: str) -> list[ExitRecord]:
        return [e.record for e in list(self.events) if isinstance(e, Exited) and e.attempt_id == attempt_id]

    def has_started(self, attempt_id: str) -> bool:
        return any(isinstance(e, Started) and e.attempt_id == attempt_id for e in list(self.events))


def eventually(condition: Callable[[], Any], what: str) -> Any:
    """Wait for a condition that no event announces (the state of other processes, of files)."""
    give_up_at = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        if time.monotonic() > give_up_at:
            raise AssertionError(f"no {what} within {PATIENCE_S} s")
        threading.Event().wait(0.005)
    return found


def shell_program(script: Script) -> str:
    """Return a /bin/sh program that behaves like the script."""
    lines = []
    if script.ignores_sigterm:
        lines.append("trap '' TERM")
    if script.output:
        lines.append(f"printf %s {shlex.quote(script.output)}")
    if script.stderr:
        lines.append(f"printf %s {shlex.quote(script.stderr)} >&2")
    if script.floods_bytes:
        lines.append(f"yes | head -c {script.floods_bytes}")
    if script.duration_s is None:
        lines.append("sleep 1000")
    elif script.duration_s:
        lines.append(f"sleep {script.duration_s}")
    lines.append(f"kill -{script.signal} $$" if script.signal else f"exit {script.exit_code}")
    return "\n".join(lines)


class Lab:
    """One runner under test, with what it reports."""

    def __init__(self, mode: Mode, directory: Path, max_image_bytes: int = 1 << 40) -> None:
        self.mode = mode
        self.max_image_bytes = max_image_bytes
        self.directory = directory
        self.scripts: dict[str, Script] = {}
        self.runner: Runner
        self.seen: Observer
        self.open()

    def open(self) -> None:
        self.seen = Observer()
        if self.mode.engine is not None:
            options = ContainerOptions(self.directory, engine=self.mode.engine, max_image_bytes=self.max_image_bytes)
            self.runner = ContainerRunner(options)
        elif not self.mode.fake:
            self.runner = ProcessRunner(
                KeeperOptions(
                    self.directory,
                    uid_base=self.mode.uid_base,
                    cgroups=self.mode.cgroups,
                    bwrap=self.mode.bwrap,
                    births=self.mode.births,
                )
            )
        elif not hasattr(self, "runner"):
            self.runner = FakeRunner(self.directory, script=lambda spec: self.scripts[spec.attempt_id])
        self.runner.subscribe(self.seen)

    def reopen(self) -> None:
        """Come back as a restarted agent would; what is played in one process only stays."""
        if not self.mode.fake:
            self.runner.close()
        self.open()

    @property
    def keeper(self) -> ProcessRunner:
        assert isinstance(self.runner, ProcessRunner)
        return self.runner

    def spec(self, attempt_id: str, script: Script, **more: Any) -> RunSpec:
        self.scripts[attempt_id] = script
        if self.mode.engine is not None and (script.signal or script.exit_code > 128) and script.duration_s == 0:
            # The engine folds signals into codes; what lives for a moment is seen through that.
            script = replace(script, duration_s=0.3)
        argv = ["/nonexistent/program"] if script.spawn_error else ["/bin/sh", "-c", shell_program(script)]
        return self.program(attempt_id, argv, **more)

    def program(self, attempt_id: str, argv: list[str], **more: Any) -> RunSpec:
        values: dict[str, Any] = {
            "env": {"PATH": PATH},
            "deadline": boottime() + 300,
            "sandbox": self.mode.sandbox,
            "job_id": "job-1",
            "grace_s": 0.3,
        }
        if self.mode.engine is not None:
            return ContainerSpec(attempt_id, argv, **{**values, "image": TEST_IMAGE, "pull": "never", **more})
        return RunSpec(attempt_id, argv, **{**values, **more})

    def run(self, attempt_id: str, script: Script, **more: Any) -> ExitRecord:
        self.runner.start(self.spec(attempt_id, script, **more))
        return self.ended(attempt_id)

    def run_program(self, attempt_id: str, argv: list[str], **more: Any) -> ExitRecord:
        self.runner.start(self.program(attempt_id, argv, **more))
        return self.ended(attempt_id)

    def ended(self, attempt_id: str) -> ExitRecord:
        self.seen.until(lambda: self.seen.exits(attempt_id), f"end of {attempt_id}")
        return self.seen.exits(attempt_id)[-1]

    def files_folder(self, attempt_id: str) -> Path:
        """Where the files that came with an attempt are on this host."""
        if self.mode.engine is not None:
            return self.directory / "attempts" / attempt_id / "files"
        return Path(self.runner.files_dir(attempt_id))

    def printed(self, attempt_id: str) -> None:
        """Wait until the attempt has printed something: so it is past its set-up."""
        self.seen.until(
            lambda: any(isinstance(e, Output) and e.attempt_id == attempt_id for e in self.seen.events),
            f"output of {attempt_id}",
        )

    def frames(self, attempt_id: str) -> list[Frame]:
        data, _ = read_frames(self.runner.spool_path(attempt_id), 0, 1 << 30)
        return list(parse_frames(data))

    def text(self, attempt_id: str, stream: int | None = None) -> str:
        return b"".join(f.payload for f in self.frames(attempt_id) if stream in (None, f.stream)).decode()

    def close(self) -> None:
        if isinstance(self.runner, ProcessRunner):
            self.runner.shutdown_keeper(kill=True)
            self.runner.close()
            eventually(lambda: is_zombie(self.keeper.hello["guard_pid"]), "end of the guard")
        self.runner.close()
