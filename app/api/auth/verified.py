"""Tokens whose signature was found good, so that a client's next request with the same one costs no new check.

Only good tokens get in, so that nobody can push others out with bad ones. What is remembered is that these very bytes
were signed with this very key; whether the key is still trusted and the claims still hold is asked each time.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

from app.api.auth.keys import Key

KEPT = 1024


@dataclass(frozen=True)
class Verified:
    """One token: what its header said, the key that signed it, and its claims."""

    algorithm: str
    key_id: str | None
    key: Key
    claims: Mapping[str, Any]


class VerifiedTokens:
    """The last used good tokens, at most `kept`, by their digest: the tokens themselves are not kept in memory."""

    def __init__(self, kept: int = KEPT) -> None:
        self._kept = kept
        self._lock = Lock()
        self._tokens: OrderedDict[bytes, Verified] = OrderedDict()

    def get(self, token: str) -> Verified | None:
        """What is known of a token."""
        digest = _digest(token)
        with self._lock:
            known = self._tokens.get(digest)
            if known is not None:
                self._tokens.move_to_end(digest)
            return known

    def put(self, token: str, verified: Verified) -> None:
        """Remembers a token whose signature is good."""
        with self._lock:
            self._tokens[_digest(token)] = verified
            if len(self._tokens) > self._kept:
                self._tokens.popitem(last=False)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
