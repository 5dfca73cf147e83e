"""The answer to a dry run of a submit: its shape, and how it is told."""

from __future__ import annotations

from typing import Any

import marshmallow as ma
from flask import Response
from marshmallow import fields

from app.api.answers import json_answer
from app.api.arguments import QuerySchema
from app.api.auth import principal
from app.api.errors import status_of
from app.api.fields import Choice, QueryFlag
from app.api.hub import hub
from app.api.jobs.explain_routes import explanation_shown
from app.api.jobs.explain_schemas import AsksShown, CauseShown, HeldShown, NodeShown, PlaceShown
from app.api.jobs.schemas import PRIORITIES
from app.api.jobs.translate import JobsErrorForm
from app.domain.errors import Refused
from app.domain.explain import Code
from app.domain.job import JobRequest
from app.services.rehearse import Nodes, Rehearsal, rehearse

_TOLD = ("code", "message", "causes", "asks", "tenant", "ahead", "queue", "nodes", "nodes_seen")


class SubmitOptions(QuerySchema):
    """How to submit."""

    dry_run = QueryFlag(load_default=False, metadata={"description": "Only say what would become of the job."})


class RefusalShown(ma.Schema):
    """What the submit would be answered."""

    status = fields.Integer()
    error = fields.String()
    context = fields.Dict(keys=fields.String())


class NodesShown(ma.Schema):
    """How many nodes, and the names of the first 20."""

    count = fields.Integer()
    names = fields.List(fields.String())


class RehearsalShown(ma.Schema):
    """What would become of a job; nothing was changed. All but `refusal` is null when it would be refused."""

    dry_run = fields.Boolean()
    admitted = fields.Boolean()
    refusal = fields.Nested(RefusalShown, allow_none=True)
    type = fields.String()
    priority = fields.String()
    effective_class = Choice(*PRIORITIES, allow_none=True)
    effective_priority = fields.Integer(allow_none=True)
    code = fields.String(allow_none=True, metadata={"enum": [*(code.value for code in Code), None]})
    message = fields.String(allow_none=True, metadata={"description": "What would hold it up, or the refusal."})
    causes = fields.List(fields.Nested(CauseShown), allow_none=True)
    asks = fields.Nested(AsksShown, allow_none=True)
    tenant = fields.Nested(HeldShown, allow_none=True)
    ahead = fields.Integer(allow_none=True)
    queue = fields.Nested(PlaceShown, allow_none=True)
    queue_position = fields.Integer(metadata={"description": "1 would be next in its class, 0 would not wait."})
    nodes = fields.List(fields.Nested(NodeShown), allow_none=True)
    nodes_seen = fields.Integer(allow_none=True)
    runs_now = fields.Nested(NodesShown, metadata={"description": "Nodes with room for it, whoever goes first."})
    runs_ever = fields.Nested(NodesShown, metadata={"description": "Registered nodes that are big enough for it."})


def answer_rehearsal(request: JobRequest) -> Response:
    """200 with what a submit by the caller would lead to, also where it would be refused."""
    shared, who = hub(), principal()
    try:
        if request.image is not None:
            shared.images.admit(shared.db, who.tenant_id, request.image)
    except Refused as refusal:
        return json_answer(_shown(Rehearsal(request, refusal)))
    return json_answer(_shown(rehearse(shared.db, shared.settings, who.tenant_id, request, who.subject)))


def _shown(found: Rehearsal) -> dict[str, Any]:
    told: dict[str, Any] = dict.fromkeys(_TOLD)
    position = 0
    if found.told is not None:
        whole = explanation_shown(found.told)
        told = {name: whole[name] for name in _TOLD}
        position = found.told.place.position if found.told.place is not None else 0
    refusal = None
    if found.refusal is not None:
        status = status_of(found.refusal, JobsErrorForm())
        refusal = {"status": status, **JobsErrorForm().body(status, found.refusal)}
        told["message"] = found.refusal.message
    return {
        "dry_run": True,
        "admitted": refusal is None,
        "refusal": refusal,
        "type": found.request.type,
        "priority": found.request.priority_class.word,
        "effective_class": None if found.effective_class is None else found.effective_class.word,
        "effective_priority": found.effective_priority,
        **told,
        "queue_position": position,
        "runs_now": _nodes(found.now),
        "runs_ever": _nodes(found.ever),
    }


def _nodes(nodes: Nodes) -> dict[str, Any]:
    return {"count": nodes.count, "names": list(nodes.names)}
