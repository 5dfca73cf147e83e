"""Signals for containers: SIGTERM and its grace, SIGKILL, sent until the engine takes it or the job is over."""

from __future__ import annotations

import contextlib
import signal
import threading

from workers.containers.attempt import PREPARING, RUNNING, Attempt
from workers.containers.book import Book, complain
from workers.containers.engine import Engine, EngineError
from workers.keeper.attempt import boottime

ASK_AGAIN_S = 0.5


class Signals:
    """Ends attempts. All methods are called with the book's lock held."""

    def __init__(self, book: Book, engine: Engine) -> None:
        """Signal the containers of `engine`."""
        self._book = book
        self._engine = engine

    def terminate(self, attempt: Attempt, grace_s: float) -> None:
        """SIGTERM now and SIGKILL after `grace_s`, which repeating can only shorten; what is only prepared ends."""
        if attempt.state == PREPARING:
            self.kill(attempt)
            return
        kill_at = boottime() + grace_s
        attempt.kill_at = kill_at if attempt.kill_at is None else min(attempt.kill_at, kill_at)
        if not attempt.term_sent:
            attempt.term_sent = True
            if attempt.state == RUNNING:
                self.send(attempt, "SIGTERM")
        self._book.note(attempt)

    def kill(self, attempt: Attempt) -> None:
        """SIGKILL now."""
        attempt.kill_sent = True
        if attempt.state == PREPARING:
            # Nothing of it runs: its thread finds it ended, and removes what it was about to start.
            attempt.record["signal"] = int(signal.SIGKILL)
            self._book.end(attempt)
            return
        # A later keeper must know whose doing the end was.
        self._book.note(attempt)
        if attempt.state == RUNNING:
            if attempt.init_pidfd >= 0:
                # At once, and whether or not the engine answers.
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(attempt.init_pidfd, signal.SIGKILL)
            self.send(attempt, "SIGKILL")

    def send(self, attempt: Attempt, name: str) -> None:
        """Have the engine send a signal, and return at once."""
        # An engine that hangs must hold up neither the clock nor other attempts.
        threading.Thread(target=self._send, args=(attempt, name), name=f"{name} {attempt.id}", daemon=True).start()

    def _send(self, attempt: Attempt, name: str) -> None:
        while not attempt.over.is_set():
            try:
                self._engine.signal(attempt.container, name)
                return
            except EngineError as exc:
                complain(f"{name} to the container of attempt {attempt.id}: {exc}; trying again")
            attempt.over.wait(ASK_AGAIN_S)
