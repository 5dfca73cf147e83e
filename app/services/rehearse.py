"""A dry run: what would become of a job, found out by submitting it for real and taking that back.

So it goes by the very rules of submits, claims and explanations, and leaves nothing: no job, no key, no event.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from app.domain.errors import FabricError, Refused, Unrunnable
from app.domain.explain import EVER, Fit, NodeNow
from app.domain.job import JobRequest
from app.domain.priority import PriorityClass
from app.services.explain import Explanation, explain_in, judged_nodes
from app.services.inspect import detail_in
from app.services.submit import submit_in
from app.storage import jobs
from app.storage.database import Database, Tx
from config.settings import Settings

NAMED = 20
"""Nodes that are named of those that would do."""


@dataclass(frozen=True)
class Nodes:
    """How many nodes, and the names of the most useful of them."""

    count: int = 0
    names: Sequence[str] = ()


@dataclass(frozen=True)
class Rehearsal:
    """What a submit would lead to: why it would be refused, or where the job would stand and what would hold it up.

    `now` are nodes with room for it, whoever goes first; `ever` all registered ones that are big enough.
    """

    request: JobRequest
    refusal: FabricError | None = None
    told: Explanation | None = None
    effective_class: PriorityClass | None = None
    effective_priority: int | None = None
    now: Nodes = Nodes()
    ever: Nodes = Nodes()


class _TakenBack(Exception):
    """Rolls the submit back; carries what was found out."""

    def __init__(self, found: Rehearsal) -> None:
        super().__init__()
        self.found = found


def rehearse(db: Database, settings: Settings, tenant_id: UUID, request: JobRequest, by: str = "user") -> Rehearsal:
    """Says what a submit of `request` would lead to now, and changes nothing.

    A refusal (quota, inactive tenant, too many shapes) is part of the answer. Raises Invalid for what no submit takes,
    and Unavailable.
    """
    try:
        with db.transaction("rehearse") as tx:
            (made,) = submit_in(tx, settings, tenant_id, [request], by)
            raise _TakenBack(_found(tx, settings, request, made.id))
    except _TakenBack as done:
        return done.found
    except (Refused, Unrunnable) as refusal:
        return Rehearsal(request, refusal)


def _found(tx: Tx, settings: Settings, request: JobRequest, job_id: UUID) -> Rehearsal:
    told = explain_in(tx, settings, job_id)
    spec = detail_in(tx, jobs.job_view(tx, job_id), 0).spec
    order = judged_nodes(tx, settings, told.ask)
    if not told.nodes:
        # What holds it up lies in the job itself; where it could run is asked for all the same.
        told = replace(told, nodes=order[:NAMED], nodes_seen=len(order))
    return Rehearsal(
        request=request,
        told=told,
        effective_class=spec.effective_class,
        effective_priority=spec.effective_priority,
        now=_nodes([node for node, fit in order if fit == Fit.FITS]),
        ever=_nodes([node for node, fit in order if fit in EVER]),
    )


def _nodes(nodes: Sequence[NodeNow]) -> Nodes:
    return Nodes(len(nodes), [node.id for node in nodes[:NAMED]])
