"""A limit on what is done at a time, in all and for each owner, so that no owner's slow work takes all the room."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

LOOK_S = 2.0
"""How often those who wait look whether they are still to have a turn."""


class NoTurn(Exception):
    """There was no room in time, or the turn was not wanted any more."""


class Turns:
    """Room for `most` at a time, `most_each` of them for one owner. May be used from any thread."""

    def __init__(self, most: int, most_each: int) -> None:
        """Nobody has a turn yet."""
        self._most = most
        self._most_each = most_each
        self._taken: Counter[Hashable] = Counter()
        self._changed = threading.Condition()

    @contextmanager
    def turn(self, owner: Hashable, wait_s: float, unwanted: threading.Event | None = None) -> Iterator[None]:
        """Holds a turn while the block runs.

        Raises NoTurn when none is free within `wait_s` (which may be infinite), or soon after `unwanted` is set.
        """
        until = time.monotonic() + wait_s
        with self._changed:
            while self._taken[owner] >= self._most_each or self._taken.total() >= self._most:
                left_s = until - time.monotonic()
                if left_s <= 0 or (unwanted is not None and unwanted.is_set()):
                    raise NoTurn(f"{self._taken[owner]} of {self._most_each} turns of its owner are taken")
                self._changed.wait(min(left_s, LOOK_S))
            self._taken[owner] += 1
        try:
            yield
        finally:
            with self._changed:
                self._taken[owner] -= 1
                if not self._taken[owner]:
                    del self._taken[owner]
                self._changed.notify_all()
