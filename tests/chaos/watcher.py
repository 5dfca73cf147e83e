"""Looks at what is reserved, again and again while everything around is being hit."""

from __future__ import annotations

import contextlib
import threading

import psycopg2

from tests.chaos.evidence import Reader, Sample, take_sample


class Watcher:
    """Takes a sample every `every_s` in a thread of its own; a database that is away is asked again."""

    def __init__(self, url: str, every_s: float = 0.25) -> None:
        self._url = url
        self._every_s = every_s
        self._stopped = threading.Event()
        self.samples: list[Sample] = []
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stopped.set()
        self._thread.join(timeout=15)

    def _run(self) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(psycopg2.Error):
                self._look()
            self._stopped.wait(self._every_s)

    def _look(self) -> None:
        reader = Reader(self._url)
        try:
            while not self._stopped.is_set():
                self.samples.append(take_sample(reader))
                self._stopped.wait(self._every_s)
        finally:
            reader.close()
