"""What reservations mean for one job's explanation: room kept for it, and room that is kept from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from app.domain import amounts
from app.domain.explain import Ask, Cause, Code, Fit, NodeNow, nearest
from app.domain.priority import PriorityClass
from app.domain.reservation import against, beside, held_of
from app.storage.database import Row

NAMED = 3


class Kept:
    """The reservations of all nodes as a job of one class meets them."""

    def __init__(
        self, reserved: Mapping[str, Sequence[Mapping[str, Any]]], priority_class: PriorityClass, job_id: UUID
    ) -> None:
        self._held = {name: against(held_of(rows), priority_class, job_id) for name, rows in reserved.items()}

    def beside(self, node: NodeNow) -> NodeNow:
        """The node with what is left for the job beside all that is kept for others."""
        held = self._held.get(node.id)
        return replace(node, free=beside(node.free, held)) if held else node


def kept_causes(noted: Row | None, bare: Sequence[NodeNow], nodes: Sequence[NodeNow], ask: Ask) -> list[Cause]:
    """What the planner noted of the job, or which of the `bare` nodes would have room if none were kept for others.

    For whom it is kept is not told: that may be another tenant's job.
    """
    if noted is not None:
        return [Cause(Code.RESERVED, noted.message, noted.numbers)]
    fits = {node.id for node, fit in nearest(nodes, ask) if fit == Fit.FITS}
    shut = [node.id for node, fit in nearest(bare, ask) if fit == Fit.FITS and node.id not in fits]
    if not shut or fits:
        return []
    more = f" and {len(shut) - NAMED} more" if len(shut) > NAMED else ""
    message = (
        f"There is room on {amounts.counted(len(shut), 'node')} ({', '.join(shut[:NAMED])}{more}), and it is kept for"
        " jobs before this one that need more at a time. With a time limit it may run before they start."
    )
    return [Cause(Code.KEPT, message, {"nodes": len(shut), "names": shut[:20]})]
