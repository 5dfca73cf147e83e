"""The order of tenants where more wait than one look of a claim shows: who used least for its weight first."""

from __future__ import annotations

import bisect
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple
from uuid import UUID

from app.domain.policy import cost
from app.domain.priority import PriorityClass
from app.domain.resources import Free, Resources
from app.storage.database import Row, Tx
from app.storage.keys import waiting_tenants

LOOK_S = 1.0
"""All tenants of a class are looked at no more often; who is at the head is read anew by every claim."""
SHARE = 0.01
"""The greatest part of the time that looking may take; more tenants are looked at less often."""


class Place(NamedTuple):
    """Where a tenant stands: by its weighted use, then by how old (about) its next job is."""

    share: float
    head_seq: int
    tenant_id: UUID


class Ranking:
    """What one process knows of the order of tenants. Never shows more than a hint: claims read whom they look at.

    Safe to use from several threads. Its only user tells it what it sees (`learn`), so that between two looks at all
    tenants its own claims are counted at once.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._order: dict[PriorityClass, list[Place]] = {}
        self._places: dict[PriorityClass, dict[UUID, Place]] = {}
        self._late: dict[PriorityClass, dict[UUID, Free]] = {}
        self._good_until: dict[PriorityClass, float] = {}

    def known(self, cls: PriorityClass, free: Free) -> list[Place] | None:
        """The tenants of a class in order; None when they did not crowd it lately, or that was too long ago.

        Those that were `put_back` come last, unless there is anything in `free` that there was not then.
        """
        with self._lock:
            if self._clock() >= self._good_until.get(cls, -math.inf):
                return None
            late, order = self._late[cls], self._order[cls]
            if not late:
                return order
            # Few are different: whoever was put back by one claim shares what that one had.
            thens = {id(then): then for then in late.values()}
            within = {number for number, then in thens.items() if _is_within(free, then)}
            first, last = [], []
            for place in order:
                if id(late.get(place.tenant_id)) in within:
                    last.append(Place(math.inf, place.head_seq, place.tenant_id))
                else:
                    first.append(place)
            return first + last

    def put_back(self, cls: PriorityClass, tenants: Iterable[UUID], free: Free) -> None:
        """These had nothing that may run in `free`: until all tenants are looked at again they come last."""
        with self._lock:
            self._late.setdefault(cls, {}).update(dict.fromkeys(tenants, free))

    def read(self, tx: Tx, cls: PriorityClass) -> list[Place]:
        """Looks at all tenants that wait in a class; they are `known` for a while."""
        began = self._clock()
        places = {row.tenant_id: _place(row) for row in waiting_tenants(tx, cls)}
        with self._lock:
            self._places[cls], self._order[cls], self._late[cls] = places, sorted(places.values()), {}
            self._good_until[cls] = began + max(LOOK_S, (self._clock() - began) / SHARE)
            return self._order[cls]

    def learn(self, cls: PriorityClass, seen: Sequence[Place]) -> None:
        """Puts tenants of a class, each of them once, where they stand now."""
        with self._lock:
            places = self._places.setdefault(cls, {})
            # Taken out and put in again: to sort a thousand tenants anew would cost each claim a millisecond.
            gone = {id(places.get(place.tenant_id)) for place in seen}
            order = [place for place in self._order.get(cls, ()) if id(place) not in gone]
            for place in seen:
                bisect.insort(order, place)
                places[place.tenant_id] = place
            self._order[cls] = order


class Walk:
    """A way through tenants in order, some at a time: for one statement, which shows at most `size` keys of them."""

    def __init__(self, order: Sequence[Place], size: int) -> None:
        self._order = order
        self._at = 0
        self._size = self._step = size

    @property
    def is_over(self) -> bool:
        """Whether all tenants were looked at."""
        return self._at >= len(self._order)

    @property
    def upto(self) -> float:
        """The share of the next tenant: one that uses more has to wait until that one was looked at."""
        return math.inf if self.is_over else self._order[self._at].share

    def next(self) -> list[UUID]:
        """Whom to look at now; `saw` must follow."""
        return [place.tenant_id for place in self._order[self._at : self._at + self._step]]

    def saw(self, shown: Sequence[UUID]) -> set[UUID]:
        """Goes on behind those who were looked at; `shown` has the tenant of each key that there was to see.

        Returns those who had none.
        """
        looked = self.next()
        if len(shown) < self._size:
            self._at += len(looked)
            # Most of these had nothing to take, and a statement costs more than to pass over some tenants in it.
            self._step *= 4 if len(shown) < self._size // 2 else 1
            return set(looked).difference(shown)
        # The last one may have had more to show.
        last = looked.index(shown[-1])
        self._at += max(1, last)
        return set(looked[:last]).difference(shown)


def _is_within(free: Free, then: Free) -> bool:
    less = free.cpus_milli <= then.cpus_milli and free.memory_bytes <= then.memory_bytes
    return less and set(free.gpus) <= set(then.gpus)


def _place(row: Row) -> Place:
    used = Resources(int(row.used_cpus), int(row.used_memory), int(row.used_gpus))
    share = (row.average + (cost(used) if row.used_jobs else 0.0)) / row.weight
    return Place(share, row.low_water, row.tenant_id)
