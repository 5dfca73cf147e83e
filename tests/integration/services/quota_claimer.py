"""A node as a process of its own that claims, runs and ends jobs as fast as it can, until it is killed.

`python -m tests.integration.services.quota_claimer URL NODE SEED LEASE_S [BUG]`. Everything it does is the services';
the job itself is a pause. A bug is planted in this process alone.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID, uuid4

from app.domain.errors import StaleIncarnation, Unavailable
from app.domain.job import Assignment
from app.domain.policy import Ending
from app.services import nodes, report
from app.services.claim import Claimer, claim
from app.services.nodes import Held, NodeOffer
from app.storage import attempts, claims
from app.storage.database import Database, Tx
from tests.factories import GIB, finished, gpu

LONGEST_S = 0.03


def no_quota_lock() -> None:
    """Quotas are decided on usage that another claim may be adding to at this moment."""
    read = claims.tenant_usage

    def read_and_dawdle(tx: Tx, tenants: Sequence[UUID]) -> Any:
        used = read(tx, tenants)
        tx.run("SELECT pg_sleep(0.02)")
        return used

    claims.try_lock_tenants = lambda _tx, tenants: set(tenants)
    claims.tenant_usage = read_and_dawdle


def usage_kept() -> None:
    """An end gives its allocation back, but not the usage that was counted for it."""
    end = attempts.write_endings

    def end_and_keep(tx: Tx, endings: Sequence[Mapping[str, Any]]) -> None:
        end(tx, endings)
        tx.run(
            """UPDATE usage u SET jobs = u.jobs + 1 FROM attempt a JOIN job j ON j.id = a.job_id
            WHERE a.id = ANY(%(ids)s) AND u.tenant_id = j.tenant_id AND u.node_id = a.node_id""",
            {"ids": [ending["attempt_id"] for ending in endings]},
        )

    attempts.write_endings = end_and_keep


BUGS: Mapping[str, Callable[[], None]] = {bug.__name__: bug for bug in (no_quota_lock, usage_kept)}


class Host:
    """One node: what it holds, and until when each job runs."""

    def __init__(self, url: str, name: str, seed: int, lease_s: float) -> None:
        self.db = Database(url, 2, f"claimer-{name}")
        self.name = name
        self.lease_s = lease_s
        self.random = random.Random(seed)
        self.held: dict[UUID, tuple[Assignment, float]] = {}
        self.renew_at = 0.0
        self.incarnation = uuid4()
        self.register()

    def register(self) -> None:
        """A new life under the old name, with four GPUs of its own."""
        number = int(self.name.rpartition("-")[2])
        cards = [gpu(10 * number + n) for n in range(4)]
        offer = NodeOffer(self.name, 8, 16_000, 64 * GIB, cards, ("process",), ip="192.0.2.1", host=self.name)
        self.incarnation = nodes.register(self.db, offer, self.lease_s).incarnation
        self.held = {}

    def turn(self) -> None:
        """Renews when due, ends what has run, claims what fits."""
        now = time.monotonic()
        if now >= self.renew_at:
            listed = [Held(t.attempt_id, t.token) for t, _until in self.held.values()]
            lost = nodes.renew(self.db, self.name, self.incarnation, listed, self.lease_s).lost
            self.held = {key: value for key, value in self.held.items() if key not in lost}
            self.renew_at = now + self.lease_s / 4
        over = [taken for taken, until in self.held.values() if until <= now]
        if over:
            report.finish_each(self.db, [finished(taken, Ending(exit_code=0)) for taken in over])
            for taken in over:
                del self.held[taken.attempt_id]
        who = Claimer(self.name, self.incarnation, ("process",), self.lease_s)
        taken = claim(self.db, who, self.random.randint(1, 4))
        for one in taken:
            self.held[one.attempt_id] = (one, time.monotonic() + self.random.uniform(0, LONGEST_S))
        if not taken and not over:
            time.sleep(self.random.uniform(0, 0.01))


def main(url: str, name: str, seed: str, lease_s: str, bug: str = "") -> None:
    """Runs until it is killed."""
    if bug:
        BUGS[bug]()
    host = Host(url, name, int(seed), float(lease_s))
    while True:
        try:
            host.turn()
        except StaleIncarnation:
            host.register()
        except Unavailable:
            # Whether it happened is not known: what is held but not renewed expires.
            host.held = {}


if __name__ == "__main__":
    main(*sys.argv[1:])
