"""The commands for container jobs and the clock over them. Free of the keeper's socket.

Each attempt has a thread that leads it from its image to its end; one more reads its output.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from workers.containers.attempt import ENDED, Attempt
from workers.containers.book import Book
from workers.containers.course import Course
from workers.containers.engine import Engine
from workers.containers.images import Images
from workers.containers.recipe import Wanted
from workers.containers.rubbish import remove_tree
from workers.containers.signals import Signals
from workers.keeper.attempt import boottime
from workers.keeper.wire import Refused

CLOCK_S = 0.02
FORGOTTEN_KEPT = 4096


class Jobs(Book):
    """All container attempts of one keeper."""

    def __init__(self, directory: str, engine: Engine, max_image_bytes: int, emit: Callable[[dict[str, Any]], None]):
        """Serve `directory` with `engine`; `emit` is called with the lock held and must not wait."""
        super().__init__(directory, emit)
        self._signals = Signals(self, engine)
        self.course = Course(self, engine, Images(engine, f"{directory}/images.json", max_image_bytes), self._signals)
        self._forgotten: OrderedDict[str, None] = OrderedDict()
        os.makedirs(f"{directory}/attempts", 0o711, exist_ok=True)

    def live_count(self) -> int:
        """How many attempts have no exit record yet."""
        with self.lock:
            return sum(attempt.state != ENDED for attempt in self.attempts.values())

    # -- commands, any thread ------------------------------------------------------------------------------

    def start(self, wanted: Wanted) -> bool:
        """Begin an attempt; False when it is here already, which begins nothing. Raises Refused.

        What goes wrong with its image or its container is not refused: the record tells of it.
        """
        spec = wanted.spec
        with self.lock:
            if spec.attempt_id in self.attempts:
                return False
            if spec.attempt_id in self._forgotten:
                raise Refused("forgotten", f"attempt {spec.attempt_id} has ended and was forgotten: it runs once")
            now = boottime()
            if spec.deadline <= now:
                late = f"deadline {spec.deadline:.3f} of {spec.attempt_id} has passed: it is {now:.3f}"
                raise Refused("deadline", late)
            attempt = Attempt(spec, self.path(spec.attempt_id), wanted)
            try:
                attempt.make_folder()
                attempt.note(self.boot)
            except OSError as exc:
                shutil.rmtree(attempt.directory, ignore_errors=True)
                where = exc.filename or attempt.directory
                raise Refused("io", f"attempt {spec.attempt_id} was not started: {where}: {exc.strerror}") from exc
            self.attempts[spec.attempt_id] = attempt
        self.course.lead(attempt, self.course.begin)
        return True

    def stop(self, attempt_id: str, grace_s: float, cause: str) -> None:
        """SIGTERM now and SIGKILL after `grace_s`; repeating it can only shorten the grace. Raises Refused."""
        with self.lock:
            attempt = self._signallable(attempt_id)
            if attempt is not None:
                if attempt.record["stop_cause"] is None or cause == "cancel":
                    attempt.record["stop_cause"] = cause
                self._signals.terminate(attempt, grace_s)

    def kill(self, attempt_id: str, cause: str) -> None:
        """SIGKILL now. Raises Refused for an unknown attempt."""
        with self.lock:
            attempt = self._signallable(attempt_id)
            if attempt is not None:
                attempt.record["stop_cause"] = attempt.record["stop_cause"] or cause
                # One that was sent is sent until the engine takes it: a keeper that closes asks for it at each tick.
                if not attempt.kill_sent:
                    self._signals.kill(attempt)

    def kill_all(self, cause: str) -> None:
        """SIGKILL every live attempt."""
        with self.lock:
            for attempt_id in list(self.attempts):
                self.kill(attempt_id, cause)

    def extend(self, deadlines: dict[str, float]) -> list[str]:
        """Move lease deadlines forward, never back; return the attempts that are not live here."""
        with self.lock:
            unknown = []
            for attempt_id, deadline in deadlines.items():
                attempt = self.attempts.get(attempt_id)
                if attempt is None or attempt.state == ENDED:
                    unknown.append(attempt_id)
                    continue
                attempt.deadline = max(attempt.deadline, deadline)
                self.note(attempt)
            return unknown

    def forget(self, attempt_id: str) -> None:
        """Remove an ended attempt with its files; an unknown one is fine. Raises Refused while it runs."""
        with self.lock:
            attempt = self.attempts.get(attempt_id)
            if attempt is None:
                return
            if attempt.state != ENDED:
                raise Refused("running", f"attempt {attempt_id} is still running: stop it first")
            del self.attempts[attempt_id]
            self._forgotten[attempt_id] = None
            if len(self._forgotten) > FORGOTTEN_KEPT:
                self._forgotten.popitem(last=False)
            aside = f"{self.directory}/trash/{os.urandom(8).hex()}"
            os.makedirs(f"{self.directory}/trash", 0o700, exist_ok=True)
            with contextlib.suppress(OSError):
                os.rename(attempt.directory, aside)
        # A job may leave millions of files: nobody waits for their removal.
        threading.Thread(target=remove_tree, args=(aside,), name="remove", daemon=True).start()

    def list(self) -> list[dict[str, Any]]:
        """Describe all attempts."""
        with self.lock:
            return [attempt.describe() for attempt in self.attempts.values()]

    # -- the clock ---------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Everything that is due now: deadlines, time limits, graces, and news of output."""
        with self.lock:
            now = boottime()
            for attempt in list(self.attempts.values()):
                # What is over, while its output is read and its container goes, ended in time.
                if not attempt.over.is_set() and not attempt.kill_sent:
                    self._due(attempt, now)
            self.news.tell(now)

    def _due(self, attempt: Attempt, now: float) -> None:
        if attempt.deadline <= now:
            attempt.record["lease_lost"] = True
            self._signals.kill(attempt)
        elif attempt.kill_at is not None and attempt.kill_at <= now:
            self._signals.kill(attempt)
        elif attempt.limit_at is not None and attempt.limit_at <= now and not attempt.term_sent:
            attempt.record["limit_hit"] = "time"
            self._signals.terminate(attempt, attempt.spec.grace_s)

    def _signallable(self, attempt_id: str) -> Attempt | None:
        attempt = self.attempts.get(attempt_id)
        if attempt is None:
            raise Refused("unknown", f"attempt {attempt_id} is not here")
        return None if attempt.state == ENDED or attempt.over.is_set() else attempt
