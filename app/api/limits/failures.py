"""Failed logins by address: whoever sends bad tokens in bulk is turned away before another is examined.

Counted in this process alone: it is to save work, and guards no secret that could be guessed.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict

from flask import Request

from app.api.limits.addresses import caller_address
from app.api.limits.counters import LocalCounters

WINDOW_S = 60
KNOWN_TOKENS = 10_000


class FailedLogins:
    """At most `most` failed logins a minute from one address; 0: no limit.

    A token that was good in this process goes on working from an address that is turned away: many callers may share
    one behind a proxy, and none of them may lock out the others.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._failures = LocalCounters()
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._lock = threading.Lock()

    def must_wait(self, asked: Request) -> int:
        """Seconds until the caller may try this login again; 0: now. Requests without a token are no logins."""
        token = asked.headers.get("Authorization")
        if not self.most or token is None:
            return 0
        failed = self._failures.add(caller_address(asked), WINDOW_S, 0)
        if failed.number < self.most or _digest(token) in self._known:
            return 0
        return max(1, failed.ends_at - int(time.time()))

    def learn(self, asked: Request, refused: bool, known: bool) -> None:
        """Takes note of how a login ended."""
        token = asked.headers.get("Authorization")
        if not self.most or token is None:
            return
        digest = _digest(token)
        if refused:
            self._failures.add(caller_address(asked), WINDOW_S)
            with self._lock:
                self._known.pop(digest, None)
        elif known:
            with self._lock:
                self._known[digest] = None
                self._known.move_to_end(digest)
                if len(self._known) > KNOWN_TOKENS:
                    self._known.popitem(last=False)


def _digest(token: str) -> bytes:
    return hashlib.blake2b(token.encode("utf-8", "surrogateescape"), digest_size=16).digest()
