"""Keeps children running: ordered start and stop, restart with a growing pause, a look at those that only seem alive.

One thread does everything, so that no fork ever meets a held lock. Knows nothing of what the children do.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from app.local.child import Child, Program
from app.local.failure import StackError

TURN_S = 1.0
LOOK_EVERY_S = 5.0
LOOKS = 3


class Backoff:
    """Pauses that double from `first_s` to `longest_s`, and start anew after a life of `calm_s`."""

    def __init__(self, first_s: float = 0.25, longest_s: float = 30.0, calm_s: float = 60.0) -> None:
        self._first_s, self._longest_s, self._calm_s = first_s, longest_s, calm_s
        self._next_s = first_s

    def after(self, lived_s: float) -> float:
        """The pause after a life of `lived_s` seconds."""
        if lived_s >= self._calm_s:
            self._next_s = self._first_s
        pause_s = self._next_s
        self._next_s = min(self._longest_s, pause_s * 2)
        return pause_s


class Watched:
    """A child with its restarts."""

    def __init__(self, child: Child, backoff: Backoff) -> None:
        self.child, self.backoff = child, backoff
        self.started_at = self.looked_at = time.monotonic()
        self.start_at: float | None = None
        self.failed_looks = 0
        self.restarts = 0


class Supervisor:
    """Starts children in order, keeps them running until told to stop, and stops them in the opposite order.

    `say` gets one line for each event. Children of one `start` call begin together; the next call waits for them.
    """

    def __init__(self, records: Path, say: Callable[[str], None], backoff: Callable[[], Backoff] = Backoff) -> None:
        self._records, self._say, self._backoff = records, say, backoff
        self._tiers: list[list[Watched]] = []
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._told_to_stop = False
        self._interrupts = 0

    @property
    def stopping(self) -> bool:
        """Whether a signal came, or `stop` was called."""
        return self._told_to_stop

    def stop_on(self, *signals: int) -> None:
        """Makes these signals end `watch`, and the start that is under way."""
        for number in signals:
            signal.signal(number, self._on_signal)

    def start(self, *programs: Program) -> None:
        """Starts these together and returns when all of them serve. Raises StackError when one does not."""
        tier = [Watched(Child(program, self._records), self._backoff()) for program in programs]
        self._tiers.append(tier)
        for watched in tier:
            self._refuse_when_stopping()
            watched.child.start()
        for watched in tier:
            watched.child.wait_ready()
            self._refuse_when_stopping()

    def watch(self, turn: Callable[[], None] = lambda: None) -> None:
        """Keeps all children running until a signal comes; calls `turn` about once a second."""
        while not self.stopping:
            self._wait()
            now = time.monotonic()
            for watched in self._all():
                self._tend(watched, now)
            turn()

    def stop(self, after_tier: Callable[[], None] = lambda: None) -> None:
        """Stops everything, the last started first, each tier at once; harmless to repeat.

        Calls `after_tier` when the last tier has stopped and the others still run. A second Ctrl-C cuts the wait for
        that tier short.
        """
        self._told_to_stop = True
        if self._tiers:
            self._stop_tier(self._tiers.pop(), lambda: self._interrupts > 1)
        after_tier()
        while self._tiers:
            self._stop_tier(self._tiers.pop(), lambda: False)

    def _stop_tier(self, tier: list[Watched], hurry: Callable[[], bool]) -> None:
        for watched in tier:
            watched.child.signal_stop()
        deadline = time.monotonic() + max((watched.child.program.stop_timeout_s for watched in tier), default=0.0)
        for watched in tier:
            watched.child.wait_stopped(max(0.0, deadline - time.monotonic()), hurry)

    def restarts(self) -> dict[str, int]:
        """How often each child was restarted."""
        return {watched.child.program.name: watched.restarts for watched in self._all()}

    def pids(self) -> dict[str, int]:
        """The running processes by name."""
        return {watched.child.program.name: watched.child.pid for watched in self._all() if watched.child.pid}

    def _all(self) -> Sequence[Watched]:
        return [watched for tier in self._tiers for watched in tier]

    def _refuse_when_stopping(self) -> None:
        if self.stopping:
            raise StackError("stopped while starting")

    def _tend(self, watched: Watched, now: float) -> None:
        name, child = watched.child.program.name, watched.child
        child.rotate_log()
        if watched.start_at is not None:
            if now >= watched.start_at:
                self._restart(watched, now)
            return
        status = child.exit_status
        if status is None:
            self._look(watched, now)
            return
        # What is left of its group goes too: two of one kind must never serve at a time.
        child.kill()
        pause_s = watched.backoff.after(now - watched.started_at)
        watched.start_at = now + pause_s
        self._say(f"{name} {_ended(status)}; it starts again in {pause_s:g} s, its log is {child.program.log}")

    def _restart(self, watched: Watched, now: float) -> None:
        watched.restarts += 1
        watched.started_at = watched.looked_at = now
        watched.failed_looks = 0
        try:
            watched.child.start()
            watched.start_at = None
        except (StackError, OSError) as exc:
            watched.start_at = now + watched.backoff.after(0)
            self._say(f"{watched.child.program.name} does not start: {exc}")

    def _look(self, watched: Watched, now: float) -> None:
        """Kills a child that runs but has not answered several times in a row; its death then restarts it."""
        alive = watched.child.program.alive
        if alive is None or now - watched.looked_at < LOOK_EVERY_S:
            return
        answered = alive()
        watched.looked_at = time.monotonic()
        watched.failed_looks = 0 if answered else watched.failed_looks + 1
        if watched.failed_looks >= LOOKS:
            self._say(f"{watched.child.program.name} runs but does not answer; it is killed")
            watched.child.kill()

    def _wait(self) -> None:
        """Returns when a child dies, a signal comes, a restart is due, or after a turn."""
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        now, pidfds = time.monotonic(), []
        wait_s = TURN_S
        for watched in self._all():
            if watched.start_at is not None:
                wait_s = min(wait_s, max(0.0, watched.start_at - now))
            elif watched.child.exit_status is not None:
                wait_s = 0.0
            elif watched.child.pid is not None:
                pidfds.append(os.pidfd_open(watched.child.pid))
                poll.register(pidfds[-1], select.POLLIN)
        try:
            poll.poll(wait_s * 1000)
        finally:
            for fd in pidfds:
                os.close(fd)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._told_to_stop = True
        self._interrupts += number == signal.SIGINT
        try:
            os.write(self._wake_write, b"\0")
        except BlockingIOError:
            # The pipe is full of earlier wake-ups, which do as well.
            pass


def _ended(status: int) -> str:
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with {status}"
