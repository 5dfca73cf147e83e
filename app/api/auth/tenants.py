"""From the tenant that a token or a header names to its row, remembered for a few seconds."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from threading import Lock

from app.domain.tenant import Tenant

KEPT_S = 5.0
KEPT = 1024


class TenantBook:
    """Looks tenants up by name or id; a change of one is seen `kept_s` later at most. Unknown names are kept too.

    Holds at most `kept` answers, the last used ones: names come from callers. `find` may raise Unavailable, which is
    passed on and not remembered.
    """

    def __init__(
        self,
        find: Callable[[str], Tenant | None],
        kept_s: float = KEPT_S,
        kept: int = KEPT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find, self._kept_s, self._kept, self._clock = find, kept_s, kept, clock
        self._lock = Lock()
        self._answers: OrderedDict[str, tuple[float, Tenant | None]] = OrderedDict()

    def find(self, name_or_id: str) -> Tenant | None:
        """The tenant, or None for an unknown one."""
        now = self._clock()
        with self._lock:
            known = self._answers.get(name_or_id)
            if known is not None and now < known[0]:
                self._answers.move_to_end(name_or_id)
                return known[1]
        # Outside the lock: a slow database must not hold up callers whose tenant is known.
        found = self._find(name_or_id)
        with self._lock:
            self._answers[name_or_id] = (now + self._kept_s, found)
            self._answers.move_to_end(name_or_id)
            while len(self._answers) > self._kept:
                self._answers.popitem(last=False)
        return found
