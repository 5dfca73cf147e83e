"""What an earlier agent of a node has left with its keepers, compared with what the database says the node holds.

Only looks; the agent acts on it.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from app.services import nodes
from app.storage.database import Database
from workers.agent.registry import Entry, Registry
from workers.runners.base import Held, Runner


@dataclass(frozen=True)
class Left:
    """An attempt that is the node's by its lease, and that a keeper holds."""

    held: Held
    lease: Any
    info: nodes.AttemptInfo

    @property
    def port(self) -> int | None:
        """The port at which its gang meets, if it was given one."""
        return self.info.port

    def entry(self, registry: Registry) -> Entry:
        """Its entry, with its slot taken."""
        held, lease, info = self.held, self.lease, self.info
        # A runner keeps no slot for what has ended, and after a crash does not know which it was.
        slot = registry.take_slot(held.slot) if held.record is None else None
        return Entry(
            attempt_id=lease.attempt_id, token=lease.token, job_id=lease.job_id, attempt=lease.number, type=info.type,
            tenant_id=info.tenant_id, log_day=info.log_day, slot=slot, runner=info.runner, deadline=held.deadline,
            claimed_wall=info.claimed_at.timestamp(), grace_s=lease.grace_s, launched=True,
            gpu_uuids=tuple(info.gpu_uuids), gpu_slice_bytes=info.gpu_slice_bytes, gang=info.gang,
            started_wall=held.started_wall, spool_bytes=held.spool_bytes, stored=info.stored, record=held.record,
        )  # fmt: skip


@dataclass(frozen=True)
class Found:
    """`ours`: held and leased. `strangers`: held without a lease, so surely no longer ours. `gone`: leased, not held.

    `out_of_sight`: leased, by runners that cannot be asked (`unseen`). `asked`: all that the keepers held.
    """

    ours: list[Left]
    strangers: list[Held]
    gone: list[nodes.Orphan]
    out_of_sight: list[UUID]
    unseen: frozenset[str]
    asked: frozenset[UUID]


def look(db: Database, node_id: str, runner: Runner, away: Collection[str]) -> Found:
    """Asks the keepers, then the database: what they hold and has no lease then was given up. `away`: not to be asked.

    Raises FabricError and RunnerError.
    """
    stock = runner.take_stock()
    held = {UUID(one.attempt_id): one for one in stock.held}
    leased = nodes.list_leases(db, node_id)
    known = nodes.describe_attempts(db, list(leased))
    unseen = frozenset(away) | stock.unseen
    missing = [(key, row) for key, row in leased.items() if key not in held]
    return Found(
        ours=[Left(one, leased[key], known[key]) for key, one in held.items() if key in leased],
        strangers=[one for key, one in held.items() if key not in leased],
        gone=[
            nodes.Orphan(row.attempt_id, row.token, row.started_at is not None)
            for key, row in missing
            if row.delivered and known[key].runner not in unseen
        ],
        out_of_sight=[key for key, _row in missing if known[key].runner in unseen],
        unseen=unseen,
        asked=frozenset(held),
    )
