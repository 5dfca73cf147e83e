"""What a node's next claim would look at: read as a claim reads it, without a lock, and nothing is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

from app.domain.explain import NodeNow
from app.domain.policy import KeySummary, TenantView, choose
from app.domain.priority import PriorityClass
from app.domain.resources import Free
from app.services.claim import FEW, breadth, first_view
from app.services.ranking import Ranking, Walk
from app.storage import explain as stored
from app.storage.database import Tx
from app.storage.keys import candidates


def looked_at(tx: Tx, node: NodeNow, key: KeySummary) -> tuple[dict[int, KeySummary], dict[UUID, TenantView]]:
    """The keys and tenants of which a claim for all free slots of `node` would choose, up to the class of `key`.

    Their depths are counted as far as such a claim could take them. `key` is among them, unless a claim would look at
    other keys of its tenant first.
    """
    look = _Look(tx, node)
    for cls in PriorityClass:
        if cls <= key.priority_class:
            look.into(cls, key)
    return look.keys, look.tenants


class _Look:
    def __init__(self, tx: Tx, node: NodeNow) -> None:
        self.keys: dict[int, KeySummary] = {}
        self.tenants: dict[UUID, TenantView] = {}
        self._tx = tx
        self._node = node
        self._shy = node.id if node.external else None
        self._per_tenant, self._size = breadth(node.free.slots)

    def into(self, cls: PriorityClass, key: KeySummary) -> None:
        """Sees what a claim sees of a class."""
        seen = self._see(cls, self._node.free)
        if len(seen) >= self._size:
            self._in_order(cls)
            if cls == key.priority_class:
                self._see(cls, self._node.free, [key.tenant_id])
        if cls == key.priority_class:
            mine = [k for k in self.keys.values() if (k.tenant_id, k.priority_class) == (key.tenant_id, cls)]
            if len(mine) < self._per_tenant:
                self._add([key] if key.id not in self.keys else [])

    def _in_order(self, cls: PriorityClass) -> None:
        """Looks at tenants in order until those behind would get nothing."""
        walk = Walk(Ranking().read(self._tx, cls), self._size)
        free: Free | None = self._node.free
        while free is not None and not walk.is_over:
            walk.saw(self._see(cls, free, walk.next()))
            free = self._left(cls, walk.upto)

    def _left(self, cls: PriorityClass, upto: float) -> Free | None:
        """What the seen leave of the node for those behind; None: not a slot."""
        free, keys = self._node.free, list(self.keys.values())
        if not any(key.priority_class == cls for key in keys):
            return free
        for take in choose(keys, self.tenants, free, free.slots, upto):
            for pins in take.pins:
                free = free.less(take.shape, pins)
        return free if free.slots > 0 else None

    def _see(self, cls: PriorityClass, free: Free, tenants: Sequence[UUID] | None = None) -> list[UUID]:
        """Reads a page; the tenant of each key on it."""
        node, per_tenant = self._node, self._per_tenant if tenants is None else FEW
        rows = candidates(
            self._tx, cls, free, sorted(node.runners), node.external, node.id, self._shy, (), per_tenant, self._size,
            tenants,
        )  # fmt: skip
        for one, row in rows:
            self.tenants.setdefault(one.tenant_id, first_view(row))
        self._add([one for one, _row in rows if one.id not in self.keys])
        return [one.tenant_id for one, _row in rows]

    def _add(self, keys: Sequence[KeySummary]) -> None:
        self.keys |= {one.id: one for one in keys}
        deep = [(one.id, one.low_water) for one in keys if one.waiting is None]
        for key_id, waiting in stored.jobs_waiting(self._tx, deep, self._shy, self._node.free.slots).items():
            self.keys[key_id] = replace(self.keys[key_id], waiting=waiting)
