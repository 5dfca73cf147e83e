"""Shapes of the answer to "why does my job wait?", for the contract's document."""

from __future__ import annotations

import marshmallow as ma
from marshmallow import fields

from app.api.jobs.schemas import STATUSES
from app.domain.explain import Code, Fit


class CauseShown(ma.Schema):
    """One thing that holds the job up."""

    code = fields.String(metadata={"enum": [code.value for code in Code]})
    message = fields.String(metadata={"description": "A sentence for people."})
    numbers = fields.Dict(metadata={"description": "What the sentence says, for programs."})


class AsksShown(ma.Schema):
    """What the job holds of a node while it runs: as asked, rounded up."""

    cpus = fields.Float()
    memory_bytes = fields.Integer()
    gpus = fields.Integer()
    gpu_memory_bytes = fields.Integer()
    gpu_model = fields.String()
    gpu_shared = fields.Boolean()
    runner = fields.String()


class AmountShown(ma.Schema):
    """Of one resource of a node: what is free now, and what there is in all."""

    free = fields.Float()
    total = fields.Float()


class NodeShown(ma.Schema):
    """One node, as the job sees it; `gpus` counts only those that suit the job, and is null when it asks for none."""

    id = fields.String()
    kind = fields.String(metadata={"enum": ["agent", "external"]})
    state = fields.String(metadata={"enum": ["ready", "draining", "offline"]})
    fit = fields.String(metadata={"enum": [fit.value for fit in Fit]})
    lacks = fields.List(fields.String(), metadata={"description": "What is not free for it, or not there at all."})
    silent_seconds = fields.Float()
    slots = fields.Nested(AmountShown)
    cpus = fields.Nested(AmountShown)
    memory_bytes = fields.Nested(AmountShown)
    gpus = fields.Nested(AmountShown, allow_none=True)


class HeldShown(ma.Schema):
    """The caller's tenant: each limit (null: none) and what is held of it."""

    name = fields.String()
    active = fields.Boolean()
    quota = fields.Dict(values=fields.Integer(allow_none=True))
    used = fields.Dict(values=fields.Integer())


class ChangeShown(ma.Schema):
    """One change of the job's state or reason."""

    timestamp = fields.String()
    status = fields.String(metadata={"enum": list(STATUSES)})
    state_detail = fields.String()
    reason = fields.String(allow_none=True)
    attempt = fields.Integer()
    executor_id = fields.String(allow_none=True)


class PlaceShown(ma.Schema):
    """Where a job waits in its class: 1 is next; in `in_tenant` only its own tenant's jobs count."""

    position = fields.Integer()
    exact = fields.Boolean(metadata={"description": "False: at least so far behind; not counted any farther."})
    in_tenant = fields.Integer()
    of = fields.Integer(metadata={"description": "All jobs pending in the class."})


class ExplanationShown(ma.Schema):
    """Why a job waits, or where it is."""

    id = fields.String()
    status = fields.String(metadata={"enum": list(STATUSES)})
    state_detail = fields.String()
    reason = fields.String(allow_none=True)
    code = fields.String(metadata={"enum": [code.value for code in Code], "description": "Of the weightiest cause."})
    message = fields.String()
    causes = fields.List(fields.Nested(CauseShown), metadata={"description": "All of them, the weightiest first."})
    asks = fields.Nested(AsksShown)
    tenant = fields.Nested(HeldShown)
    ahead = fields.Integer(
        allow_none=True,
        metadata={"description": "Jobs of the same shape before it, counted up to 10000; null unless it is queued."},
    )
    queue = fields.Nested(PlaceShown, allow_none=True, metadata={"description": "Null unless it is queued."})
    nodes = fields.List(fields.Nested(NodeShown), metadata={"description": "The most useful ones, at most 20."})
    nodes_seen = fields.Integer(metadata={"description": "How many nodes were looked at."})
    history = fields.List(fields.Nested(ChangeShown), metadata={"description": "Oldest first, the last 200."})
