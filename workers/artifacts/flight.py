"""One attempt to get a program, shared by all who wait for it. It knows nothing of how the bytes arrive.

Each who waits watches his own cancellation and the common deadline; when the last one leaves, the attempt is
hung up.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable

from workers.artifacts.artifact import Artifact
from workers.artifacts.download import Transfer
from workers.artifacts.errors import ArtifactError, FetchCancelled

Progress = Callable[[int, int | None], None]

_LOOK_S = 0.1


class Flight:
    """A running attempt for one digest from one target."""

    def __init__(self, digest: str, transfer: Transfer) -> None:
        self.digest = digest
        self.transfer = transfer
        self.cached = False
        self._lock = threading.Lock()
        self._waiters = 0
        self._landed = threading.Event()
        self._hold: Artifact | None = None
        self._error: ArtifactError | None = None

    def join(self) -> None:
        with self._lock:
            self._waiters += 1

    def leave(self) -> bool:
        """Stop waiting. Returns whether nobody is left; the attempt is then over, whatever it was doing."""
        with self._lock:
            self._waiters -= 1
            empty = self._waiters == 0
            hold = self._hold
            if empty:
                self._hold = None
        if empty:
            self.transfer.hangup.call()
            if hold is not None:
                hold.release()
        return empty

    def land(self, hold: Artifact, cached: bool) -> None:
        """The program is there; `hold` is kept until all have taken their own. The first outcome counts."""
        with self._lock:
            wanted = not self._landed.is_set() and self._waiters > 0
            if wanted:
                self._hold = hold
                self.cached = cached
            self._landed.set()
        if not wanted:
            hold.release()

    def crash(self, error: ArtifactError) -> None:
        """The attempt has failed. The first outcome counts."""
        with self._lock:
            if not self._landed.is_set():
                self._error = error
            self._landed.set()

    def wait(self, cancelled: threading.Event | None, progress: Progress | None) -> None:
        """Return when the program is there. Raises FetchCancelled within 0.2 s, or the attempt's error."""
        reported: tuple[int, int | None] | None = None
        while not self._landed.wait(_LOOK_S):
            if cancelled is not None and cancelled.is_set():
                raise FetchCancelled(f"the download of {self.transfer.target.shown} was cancelled")
            if time.monotonic() >= self.transfer.deadline:
                self.transfer.check()
            now = (self.transfer.received_bytes, self.transfer.total_bytes)
            if progress is not None and now != reported:
                progress(*now)
                reported = now
        if self._error is not None:
            # Every waiting thread raises an exception of its own, because a traceback belongs to one thread.
            raise copy.copy(self._error) from self._error.__cause__
