"""Counts of requests by key and window: in Redis for all API processes together, in this process while it is away.

A request never waits for a broker that is dead, frozen or full: the first to notice waits `PATIENCE_S` at most, then
all count locally until a thread beside them has found Redis quick again. Losing counts only makes limits lenient.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

log = logging.getLogger(__name__)

PREFIX = "cfab:limit:"
PATIENCE_S = 0.05
LOCAL_KEYS = 50_000
"""Keys counted locally at most: addresses are chosen by strangers."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
STEADY_S = 10.0
"""Redis that fails again sooner than this after its return is asked less and less often."""
PROBES = 3


@dataclass(frozen=True)
class Count:
    """How many requests a key has in the current window, this one included; the window's end in Unix seconds."""

    number: int
    ends_at: int


class LocalCounters:
    """Counts in this process; a bounded number of keys."""

    def __init__(self, most_keys: int = LOCAL_KEYS) -> None:
        self._counts: dict[str, Count] = {}
        self._lock = threading.Lock()
        self._most_keys = most_keys

    def add(self, key: str, window_s: int, amount: int = 1) -> Count:
        """Adds to the key's current window; 0 only looks."""
        now = int(time.time())
        ends_at = window_end(now, window_s)
        with self._lock:
            before = self._counts.get(key)
            count = Count(amount + (before.number if before and before.ends_at == ends_at else 0), ends_at)
            if before is None and amount and len(self._counts) >= self._most_keys:
                self._make_room(now)
            if amount:
                self._counts[key] = count
        return count

    def _make_room(self, now: int) -> None:
        self._counts = {key: count for key, count in self._counts.items() if count.ends_at > now}
        if len(self._counts) >= self._most_keys:
            # Somebody asks from more addresses than we can count: forgetting all is lenient, growing is not.
            self._counts.clear()


class SharedCounters:
    """Counts in Redis, behind a breaker; `local` while it is away, or when there is none (`url` empty)."""

    def __init__(self, url: str, patience_s: float = PATIENCE_S) -> None:
        self._local = LocalCounters()
        self._redis = _connect(url, patience_s) if url.startswith(("redis://", "rediss://", "unix://")) else None
        self._lock = threading.Lock()
        self._away = False
        self._back_since = float("-inf")
        self._pause_s = FIRST_PAUSE_S
        self._closed = threading.Event()

    @property
    def shared(self) -> bool | None:
        """Whether the counts are those of all processes now; None when there is no Redis to count in."""
        return None if self._redis is None else not self._away

    def add(self, key: str, window_s: int, amount: int = 1) -> Count:
        """Adds to the key's current window. Never raises, and waits for Redis no longer than its patience."""
        if self._redis is None or self._away:
            return self._local.add(key, window_s, amount)
        try:
            return _add(self._redis, key, window_s, amount)
        except (redis.RedisError, OSError) as exc:
            self._trip(exc)
            return self._local.add(key, window_s, amount)

    def close(self) -> None:
        """Ends the thread that waits for Redis, if there is one."""
        self._closed.set()

    def _trip(self, why: Exception) -> None:
        with self._lock:
            if self._away:
                return
            self._away = True
            steady = time.monotonic() - self._back_since > STEADY_S
            self._pause_s = FIRST_PAUSE_S if steady else min(LONGEST_PAUSE_S, 2 * self._pause_s)
        log.warning("rate limits are counted in this process alone: Redis does not count (%s)", why)
        threading.Thread(target=self._wait_for_redis, name="limits-wait-for-redis", daemon=True).start()

    def _wait_for_redis(self) -> None:
        """Asks until Redis counts, not just answers: one without memory answers a PING."""
        assert self._redis is not None
        well = 0
        while well < PROBES:
            if self._closed.wait(self._pause_s):
                return
            try:
                _add(self._redis, "probe", 1, 1)
                well += 1
            except (redis.RedisError, OSError):
                well = 0
                self._pause_s = min(LONGEST_PAUSE_S, 1.5 * self._pause_s)
        with self._lock:
            self._back_since = time.monotonic()
            self._away = False
        log.info("rate limits are counted in Redis again")


def window_end(now: int, window_s: int) -> int:
    """When the window that holds `now` ends: all processes agree on it without asking each other."""
    return (now // window_s + 1) * window_s


def _connect(url: str, patience_s: float) -> redis.Redis:
    # The client's own retries would multiply the patience, and its greetings would cost round trips.
    return redis.Redis.from_url(
        url, socket_timeout=patience_s, socket_connect_timeout=patience_s, retry=Retry(NoBackoff(), 0), protocol=2
    )  # fmt: skip


def _add(client: redis.Redis, key: str, window_s: int, amount: int) -> Count:
    """One round trip; count and expiry are one step, so that no key stays for ever."""
    ends_at = window_end(int(time.time()), window_s)
    name = f"{PREFIX}{key}:{ends_at}"
    with client.pipeline(transaction=True) as steps:
        steps.incrby(name, amount)
        # Longer than the window: clocks of other hosts may be late.
        steps.expire(name, window_s + 60)
        number, _ = steps.execute()
    return Count(int(number), ends_at)
