"""A cap on open streams: each takes a server thread, and a server out of threads answers nobody."""

from __future__ import annotations

from threading import Lock

from app.api.errors import Busy


class StreamBudget:
    """At most `limit` streams at a time in this process."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._open = 0
        self._lock = Lock()

    def take(self) -> None:
        """Takes a place. Raises Busy (503) when none is free."""
        with self._lock:
            if self._open >= self._limit:
                raise Busy(f"{self._limit} streams are open, which is the most this server serves; try again later.")
            self._open += 1

    def give_back(self) -> None:
        """Frees a place that `take` gave."""
        with self._lock:
            self._open -= 1

    @property
    def open_count(self) -> int:
        """Streams open now."""
        return self._open
