"""Claim: a node takes what fits it, in the order of the one rule, in one short transaction."""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any
from uuid import UUID

from app.domain.errors import StaleIncarnation
from app.domain.job import Assignment
from app.domain.policy import KeySummary, Room, Take, TenantView, choose, cost
from app.domain.priority import PriorityClass
from app.domain.reservation import against, beside, held_of
from app.domain.resources import Gpu, Resources
from app.services.deliver import assignment, deliver
from app.services.packing import Packing, free_of
from app.services.ranking import Place, Ranking, Walk
from app.services.report import Finished, FinishResult, finish_in
from app.storage import claims
from app.storage.claims import Hold
from app.storage.database import Database, Row, Tx
from app.storage.keys import candidates

PAGE, SMALL_PAGE = 64, 24
"""Scheduling keys looked at in one statement, for many jobs or for few; a claim that finds too little looks at more."""
FEW = 2
"""Keys of each tenant looked at where there are many tenants: most get one job of a claim, or none."""
ROUNDS = 8
"""Statements of one claim that may get fewer jobs than they were to take: then other claims were faster."""


@dataclass(frozen=True)
class Claimer:
    """Who claims: a node under its incarnation; what it can run; `external` executors start at once.

    With `packing` fresh GPU jobs are left to nodes that they fill better. `ranking` is what the process knows of the
    order of tenants; without it many tenants are looked at by every claim.
    """

    node_id: str
    incarnation: UUID | None
    runners: Sequence[str] = ("process",)
    lease_s: float = 60.0
    external: bool = False
    shy: bool = False
    packing: Packing | None = None
    ranking: Ranking | None = None


class Claimed(list[Assignment]):
    """What a claim brought. `more`: jobs may wait for room on this node, so that any room is worth a claim.

    `passed_over`: there was room left, but another claim was deciding a tenant's quota at that moment, or others took
    what this one chose; more jobs may fit, and no bell will say so: claim again in a moment.

    `put_off_s`: a GPU job was left to `better` nodes, which are to be woken; claim again after so long, if it is not
    None.
    """

    more: bool = False
    passed_over: bool = False
    put_off_s: float | None = None
    better: tuple[str, ...] = ()


def claim(db: Database, claimer: Claimer, limit: int) -> Claimed:
    """Assigns up to `limit` jobs to the node; each is starting (running, for external executors) when this returns.

    Never over-commits the node, a GPU or a quota, whatever runs beside it: the node's row is locked, usage is read
    after that lock, and a tenant with a finite quota is decided under its own lock or passed over for now. Raises
    StaleIncarnation, and Unavailable: then the claim may have happened, and the next renewal says what is held.
    """
    with db.transaction("claim") as tx:
        return claim_in(tx, claimer, limit)


def finish_and_claim(
    db: Database, ends: Sequence[Finished], claimer: Claimer, limit: int
) -> tuple[FinishResult, Claimed]:
    """Ends attempts and claims up to `limit` jobs for what that leaves free, in one transaction: see `finish`, `claim`.

    A busy node takes this way: one commit where two would be. All or nothing: a refused end also undoes the claim. A
    node under a stale incarnation only tells its ends, which have a fence of their own.
    """
    with db.transaction("finish") as tx:
        result = finish_in(tx, ends, claimer.node_id)
        try:
            return result, claim_in(tx, claimer, limit)
        except StaleIncarnation:
            return result, Claimed()


def claim_in(tx: Tx, claimer: Claimer, limit: int) -> Claimed:
    """`claim` inside the caller's transaction."""
    node = claims.lock_node(tx, claimer.node_id)
    if node is None or (claimer.incarnation is not None and node.incarnation != claimer.incarnation):
        raise StaleIncarnation(node=claimer.node_id)
    claimed = Claimed()
    if node.undelivered and not claimer.external:
        claimed += deliver(tx, claimer.node_id, limit, claimer.lease_s)
    if node.state != "ready":
        return claimed
    draw = _Draw(tx, claimer, node, limit - len(claimed))
    for number in node.classes:
        draw.take_from(PriorityClass(number))
    claimed.more = bool(node.classes)
    claimed.passed_over = draw.passed_over
    claimed.put_off_s, claimed.better = draw.put_off_s, tuple(dict.fromkeys(draw.better))
    if not draw.taken:
        return claimed
    holds = [_hold(row, shape, pins) for row, shape, pins in draw.taken]
    terms = claims.write_holds(tx, node, holds, claimer.lease_s, claimer.external)
    claimed += [
        assignment(row, shape, hold.token, hold.gpu_uuids, terms, draw.is_preemptible(row), None, hold.each_gpu_bytes)
        for (row, shape, _pins), hold in zip(draw.taken, holds, strict=True)
    ]
    return claimed


def breadth(left: int) -> tuple[int, int]:
    """How many keys of a tenant, and of all, a claim of up to `left` jobs looks at at a time."""
    return (4, SMALL_PAGE) if left <= 4 else (8, PAGE)


class _Draw:
    """One claim under way: what is taken so far, what that leaves of the node, what is known of tenants and keys."""

    def __init__(self, tx: Tx, claimer: Claimer, node: Row, limit: int) -> None:
        self._tx = tx
        self._claimer = claimer
        self._unheld = self._free = free_of(node)
        self._reserved = held_of(node.reserved)
        self._left = min(limit, self._free.slots)
        self._per_tenant, self._page_size = breadth(self._left)
        self._rounds = ROUNDS
        self._views: dict[UUID, TenantView] = {}
        self._tenants: dict[UUID, Row] = {}
        self._undecided: set[UUID] = set()
        self._drained: set[int] = set()
        self._ranking = claimer.ranking or Ranking()
        self._heads: dict[UUID, int] = {}
        self._elsewhere: set[UUID] = set()
        self._busy = False
        self.put_off_s: float | None = None
        self.better: list[str] = []
        self.taken: list[tuple[Row, Resources, tuple[Gpu, ...]]] = []

    @property
    def passed_over(self) -> bool:
        """Whether others were in the way (they decide a tenant's quota, or were faster) while there was room left."""
        return (self._busy or self._rounds < 1) and self._left > 0

    def is_preemptible(self, row: Row) -> bool:
        """Whether a job that was taken may have to make room for others: as it asked, or as its tenant's jobs do."""
        own = row.preemptible
        return bool(self._tenants[row.tenant_id].allow_preemption if own is None else own)

    @property
    def _over(self) -> bool:
        return self._left < 1 or self._rounds < 1

    def take_from(self, cls: PriorityClass) -> None:
        """Takes from one class, who used least for its weight first, until enough is taken or all were seen."""
        if self._reserved:
            self._free = beside(self._unheld, against(self._reserved, cls))
        order = self._ranking.known(cls, self._free)
        if order is None:
            if self._take_all(cls):
                return
            order = self._ranking.read(self._tx, cls)
        self._heads.clear()
        self._elsewhere.clear()
        if not self._take_in_order(cls, order):
            self._take_rest(cls)
        # Whose jobs others hold at this moment comes last for a while, so as to hide nobody from the next claim.
        shares = {tenant: self._views[tenant].share for tenant in self._heads}
        shares |= dict.fromkeys(self._elsewhere, math.inf)
        self._ranking.learn(cls, [Place(shares[tenant], head, tenant) for tenant, head in self._heads.items()])

    def _take_all(self, cls: PriorityClass) -> bool:
        """Takes from all tenants at once; False, and nothing is taken, when there is more to see than a page shows."""
        while not self._over:
            page = self._page(cls)
            if len(page) >= self._page_size:
                return False
            if not (self._take(page, {}) and self._hides_more(page)):
                break
        return True

    def _take_in_order(self, cls: PriorityClass, order: list[Place]) -> bool:
        """Takes from tenants in order, page by page: nobody gets more before those who have less were seen.

        Whether enough was taken or nothing more is to be had.
        """
        walk, keys, asked = Walk(order, self._page_size), dict[int, KeySummary](), False
        while not (self._over or walk.is_over):
            free, page = self._free, self._page(cls, walk.next())
            without = walk.saw([key.tenant_id for key, _row in page])
            if len(without) >= self._page_size:
                # To pass over a few at every claim is nothing; so many are looked at again a little later.
                self._ranking.put_back(cls, without, free)
            self._take(page, keys, walk.upto)
            if not (page or asked):
                # Where nothing fits any more, one look at all is cheaper than to go on, and sees who came meanwhile.
                asked = True
                if self._take_all(cls):
                    return True
        return self._over or self._take_all(cls)

    def _take_rest(self, cls: PriorityClass) -> None:
        """Takes from tenants that came meanwhile, and further keys of those that were seen."""
        if self._take_in_order(cls, self._ranking.read(self._tx, cls)):
            return
        while not (self._over or self._take_all(cls)):
            page = self._page(cls)
            if not self._take(page, {}):
                self._rounds -= 1
                self._drained |= {key.id for key, _row in page}

    def _hides_more(self, page: list[tuple[KeySummary, Row]]) -> bool:
        """Whether a tenant has, or may have, more keys than the page shows."""
        return max(Counter(key.tenant_id for key, _row in page).values(), default=0) >= self._per_tenant

    def _page(self, cls: PriorityClass, tenants: Sequence[UUID] | None = None) -> list[tuple[KeySummary, Row]]:
        who = self._claimer
        return candidates(
            self._tx, cls, self._free, who.runners, who.external, who.node_id, _shy(who), self._drained,
            self._per_tenant if tenants is None else FEW, self._page_size, tenants,
        )  # fmt: skip

    def _take(self, page: list[tuple[KeySummary, Row]], keys: dict[int, KeySummary], upto: float = math.inf) -> bool:
        """Takes what fits of these keys and of `keys`, which were seen before, for tenants that use at most `upto`.

        `keys` are left as they are afterwards. Whether anything changed, so that another look may show more.
        """
        before = (len(self.taken), len(self._drained))
        self._heads |= {key.tenant_id: key.head_seq for key, _row in reversed(page)}
        for key, row in page:
            keys[key.id] = key
            if key.tenant_id not in self._views:
                self._views[key.tenant_id] = first_view(row)
                self._tenants[key.tenant_id] = row
                if _quota(row) != Room():
                    self._undecided.add(key.tenant_id)
            self._leave_to_others(keys, key, row.waited_s)
        while keys and not self._over:
            takes = self._decide(list(keys.values()), upto)
            if not takes:
                break
            got = self._take_jobs(takes, keys)
            # A key that gave less than was asked has no more that others do not hold: pass it over from now on.
            short = {take.key_id for take in takes if got[take.key_id] < take.count}
            self._drained |= short
            for take in takes:
                left = _left(keys[take.key_id], take.count)
                if take.key_id in short or left.waiting == 0:
                    if not got[take.key_id]:
                        self._elsewhere.add(left.tenant_id)
                    del keys[take.key_id]
                else:
                    keys[take.key_id] = left
            if not short:
                break
            self._rounds -= 1
        return before != (len(self.taken), len(self._drained))

    def _leave_to_others(self, keys: dict[int, KeySummary], key: KeySummary, waited_s: float) -> None:
        """Takes out of `keys` what a tighter node should have, for as long as it has not waited too long for it."""
        who = self._claimer
        left_s = who.packing.left_s(waited_s) if who.packing is not None and key.shape.gpus else 0.0
        if who.packing is None or left_s <= 0 or not self._free.fits(key.shape):
            return
        off = who.packing.put_off(self._tx, who.node_id, who.runners, key.shape, self._free, key.waiting)
        if not off.jobs:
            return
        self.put_off_s = min(left_s, self.put_off_s or left_s)
        self.better += off.nodes
        if key.waiting is not None and key.waiting > off.jobs:
            keys[key.id] = replace(key, waiting=key.waiting - off.jobs)
        else:
            # Passed over, so that it hides nothing that this node may take.
            self._drained.add(key.id)
            del keys[key.id]

    def _decide(self, keys: list[KeySummary], upto: float) -> list[Take]:
        """What to take of these keys. Finite quotas count only under their tenant's lock; without it there is no room.

        Locks are taken for tenants that would get something, not for all: others claim at the same time.
        """
        tenants = {key.id: key.tenant_id for key in keys}
        while True:
            takes = choose(keys, self._views, self._free, self._left, upto)
            asked = {tenants[take.key_id] for take in takes} & self._undecided
            if not asked:
                return takes
            locked = claims.try_lock_tenants(self._tx, sorted(asked))
            self._busy |= locked != asked
            used = claims.tenant_usage(self._tx, sorted(locked)) if locked else {}
            for tenant in asked:
                self._undecided.discard(tenant)
                view, use = self._views[tenant], used.get(tenant)
                # The quota is read again under the lock: it may have been lowered since.
                room = room_of(use) if use is not None and use.active else None
                share = (self._tenants[tenant].average + _share(use)) / view.weight
                self._views[tenant] = TenantView(share, view.weight, room)

    def _take_jobs(self, takes: list[Take], keys: dict[int, KeySummary]) -> Counter[int]:
        shapes = {take.key_id: take.shape for take in takes}
        pins = {take.key_id: iter(take.pins) for take in takes}
        low_waters = {take.key_id: keys[take.key_id].low_water for take in takes}
        rows = claims.take_jobs(self._tx, takes, low_waters, self._claimer.node_id, _shy(self._claimer))
        for row in rows:
            # As they were chosen: taken in another order the same jobs could want the same GPU.
            shape, given = shapes[row.key_id], next(pins[row.key_id])
            self._free = self._free.less(shape, given)
            self._unheld = self._unheld.less(shape, given) if self._reserved else self._free
            _charge(self._views, row.tenant_id, shape)
            self.taken.append((row, shape, given))
        self._left -= len(rows)
        return Counter(row.key_id for row in rows)


def _left(key: KeySummary, taken: int) -> KeySummary:
    return key if key.waiting is None else replace(key, waiting=key.waiting - taken)


def _shy(claimer: Claimer) -> str | None:
    return claimer.node_id if claimer.shy else None


def first_view(row: Row) -> TenantView:
    """A tenant as it was read without a lock: good for the order, not for a finite quota."""
    use = None
    if row.used_jobs:
        use = Resources(int(row.used_cpus), int(row.used_memory), int(row.used_gpus))
    quota = _quota(row)
    share = (row.average + (cost(use) if use else 0.0)) / row.weight
    if quota == Room():
        return TenantView(share, row.weight, quota)
    used = (row.used_jobs, row.used_cpus, row.used_memory, row.used_gpus, row.used_gpu_memory)
    left = (limit if limit is None else limit - int(u) for limit, u in zip(astuple(quota), used, strict=True))
    return TenantView(share, row.weight, Room(*left), quota)


def _quota(row: Row) -> Room:
    return Room(
        row.quota_jobs,
        row.quota_cpus_milli,
        row.quota_memory_bytes,
        row.quota_gpus,
        row.quota_gpu_memory_bytes,
    )


def room_of(use: Row) -> Room:
    """What a tenant may still hold, of its row of `tenant_usage`."""
    quota = _quota(use)

    def left(limit: int | None, used: Any) -> int | None:
        return None if limit is None else limit - int(used)

    return Room(
        left(quota.jobs, use.jobs), left(quota.cpus_milli, use.cpus_milli), left(quota.memory_bytes, use.memory_bytes),
        left(quota.gpus, use.gpus), left(quota.gpu_memory_bytes, use.gpu_memory_bytes),
    )  # fmt: skip


def _share(use: Row | None) -> float:
    if use is None or use.jobs == 0:
        return 0.0
    return cost(Resources(int(use.cpus_milli), int(use.memory_bytes), int(use.gpus)))


def _charge(views: dict[UUID, TenantView], tenant: UUID, shape: Resources) -> None:
    view = views[tenant]
    room = None if view.room is None else view.room.less(shape)
    views[tenant] = TenantView(view.share + cost(shape) / view.weight, view.weight, room)


def _hold(row: Row, shape: Resources, gpus: tuple[Gpu, ...]) -> Hold:
    return Hold(
        attempt_id=row.attempt_id,
        job_id=row.id,
        number=row.attempt,
        token=UUID(bytes=secrets.token_bytes(16)),
        tenant_id=row.tenant_id,
        cpus_milli=shape.cpus_milli,
        memory_bytes=shape.memory_bytes,
        gpus=shape.gpus,
        gpu_memory_bytes=shape.gpu_memory_bytes,
        gpus_given=gpus,
        gpu_shared=shape.gpu_shared,
    )
