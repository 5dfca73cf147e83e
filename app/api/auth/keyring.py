"""The keys that are trusted now: they follow their source without a restart, and outlast its being away.

What others send (tokens that name unknown keys) can never make this ask the source more often than once an interval,
nor hold up the check of a token whose key is known.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from app.api.auth.keys import BadKeys, Key, KeySet, parse_keys
from app.api.auth.source import FileSource, NotRead, Source, UrlSource
from app.api.errors import Busy

log = logging.getLogger(__name__)


class KeysAway(Busy):
    """The keys that tokens are checked with cannot be had at the moment; try again."""


class Keyring(Protocol):
    """Finds the key for a token's header."""

    def find(self, algorithm: str, key_id: str | None) -> Sequence[Key]:
        """The keys that may have signed it; none for an unknown id. Raises KeysAway."""


@dataclass(frozen=True)
class Pace:
    """How a ring treats its source, in seconds.

    `refresh_s`: keys are asked for again after this long; `interval_s`: the least time between two tries; `max_age_s`:
    how long keys are trusted without a good answer; `wait_s` and `waiters`: how long, and how many requests at a
    time, wait for a try that runs.
    """

    refresh_s: float = 300.0
    interval_s: float = 10.0
    max_age_s: float = 86_400.0
    wait_s: float = 3.0
    waiters: int = 4


class FileKeyring:
    """Keys in a file, read again when it changes; a file that is gone or half-written leaves the old keys in force."""

    def __init__(
        self,
        source: FileSource,
        algorithms: Collection[str],
        pace: Pace = Pace(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source, self._algorithms, self._pace, self._clock = source, tuple(algorithms), pace, clock
        self._lock = threading.Lock()
        self._keys: KeySet | None = None
        self._mark: tuple[int, ...] | None = None
        self._text: bytes | None = None
        self._good_at = clock()
        self._said = ""

    def find(self, algorithm: str, key_id: str | None) -> Sequence[Key]:
        """The keys that fit; sees a change of the file at once."""
        self._follow()
        keys = self._keys
        if keys is None or self._clock() - self._good_at > self._pace.max_age_s:
            raise KeysAway()
        return keys.find(algorithm, key_id, time.time())

    def load(self) -> None:
        """Reads the file now. Raises NotRead or BadKeys when it cannot be used."""
        with self._lock:
            self._take(self._source.mark())

    def _follow(self) -> None:
        with self._lock:
            try:
                mark = self._source.mark()
                if mark != self._mark:
                    self._take(mark)
                self._good_at, self._said = self._clock(), ""
            except (NotRead, BadKeys) as exc:
                if str(exc) != self._said:
                    log.warning("the issuer's keys in %s stay as they were: %s", self._source.path, exc)
                    self._said = str(exc)

    def _take(self, mark: tuple[int, ...]) -> None:
        text = self._source.read()
        if text != self._text:
            keys = parse_keys(text, self._algorithms)
            log.info("%d keys of the issuer are trusted from now on", len(keys))
            self._keys, self._text = keys, text
        # A second write within one tick of the file system's clock would go unseen: look again until it has passed.
        self._mark = mark if self._source.settled() else None


class UrlKeyring:
    """Keys behind an address, fetched by one thread at a time, when first needed, when old, and for an unknown id."""

    def __init__(
        self,
        source: UrlSource | Source,
        algorithms: Collection[str],
        pace: Pace = Pace(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source, self._algorithms, self._pace, self._clock = source, tuple(algorithms), pace, clock
        self._lock = threading.Lock()
        self._keys: KeySet | None = None
        self._good_at = 0.0
        self._tried_at: float | None = None
        self._running: threading.Event | None = None
        self._waiters = threading.BoundedSemaphore(pace.waiters)

    def find(self, algorithm: str, key_id: str | None) -> Sequence[Key]:
        """The keys that fit. Waits for the source only when there are none yet, or none of this id."""
        found = self._known(algorithm, key_id)
        if found:
            if self._clock() - self._good_at > self._pace.refresh_s:
                self._start_fetch()
            return found
        running = self._start_fetch()
        if running is not None:
            self._wait(running)
        found = self._known(algorithm, key_id)
        if found is None:
            raise KeysAway()
        return found

    def _known(self, algorithm: str, key_id: str | None) -> Sequence[Key] | None:
        """None when no keys are in force at all."""
        with self._lock:
            keys, age_s = self._keys, self._clock() - self._good_at
        if keys is None or age_s > self._pace.max_age_s:
            return None
        return keys.find(algorithm, key_id, time.time())

    def _wait(self, running: threading.Event) -> None:
        # Requests with unknown ids come from anyone: all but a few are sent away, or they would hold every thread.
        if not self._waiters.acquire(blocking=False):
            raise KeysAway()
        try:
            running.wait(self._pace.wait_s)
        finally:
            self._waiters.release()

    def _start_fetch(self) -> threading.Event | None:
        """The fetch that runs, a new one if it is time for one, or None."""
        with self._lock:
            if self._running is not None:
                return self._running
            now = self._clock()
            if self._tried_at is not None and now - self._tried_at < self._pace.interval_s:
                return None
            self._tried_at = now
            self._running = running = threading.Event()
        try:
            threading.Thread(target=self._fetch, args=(running,), name="issuer-keys", daemon=True).start()
        except RuntimeError:
            self._finish(running, None)
        return running

    def _fetch(self, running: threading.Event) -> None:
        keys = None
        try:
            keys = parse_keys(self._source.read(), self._algorithms)
        except (NotRead, BadKeys) as exc:
            log.warning("the issuer's keys stay as they were: %s", exc)
        except Exception:
            log.exception("fetching the issuer's keys failed; they stay as they were")
        finally:
            self._finish(running, keys)

    def _finish(self, running: threading.Event, keys: KeySet | None) -> None:
        with self._lock:
            if keys is not None:
                if self._keys is None or len(keys) != len(self._keys):
                    log.info("%d keys of the issuer are trusted from now on", len(keys))
                self._keys, self._good_at = keys, self._clock()
            self._running = None
        running.set()
