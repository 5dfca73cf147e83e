"""Shapes of nodes in the jobs contract: what operators see and what they may say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import marshmallow as ma
from marshmallow import fields

from app.api.arguments import QuerySchema, StrictSchema
from app.api.fields import Choice, Flag, Text, Whole, shown

NODE_STATES = ("ready", "draining", "offline")
MONTH_S = 30 * 86_400
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")
_LABELS_MOST = 64


class LabelName(fields.String):
    """The name of a label: letters, digits, and . _ / - inside."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        if not isinstance(value, str) or not _LABEL.fullmatch(value):
            raise ma.ValidationError(
                f"{shown(value)} is no label's name: 1 to 63 letters, digits and . _ / - between them"
            )
        return value


class Wanted(Text):
    """NAME=VALUE, parsed to a pair."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        name, given, wanted = super()._deserialize(value, attr, data, **kwargs).partition("=")
        if not given:
            raise ma.ValidationError(f"must be NAME=VALUE, not {shown(value)}")
        return {name: wanted}


class NodesAsked(QuerySchema):
    """Which nodes to list."""

    state = Choice(*NODE_STATES, load_default=None)
    label = Wanted(most=320, load_default=None, metadata={"description": "NAME=VALUE", "example": "zone=a"})


class DrainAsked(StrictSchema):
    """Why a node is drained, and how long its jobs may go on."""

    optional_body = True

    reason = Text(
        least=0,
        most=500,
        load_default=None,
        metadata={"example": "new driver", "description": "None given: a node that drains keeps the one it has."},
    )
    deadline_seconds = Whole(
        0,
        MONTH_S,
        allow_none=True,
        load_default=None,
        metadata={"description": "Then what still runs is stopped, and waits again uncharged; null: never."},
    )  # fmt: skip


class ResumeAsked(StrictSchema):
    """Nothing is said."""

    optional_body = True


class NodeChanges(StrictSchema):
    """What to change of a node."""

    labels = fields.Dict(
        keys=LabelName(),
        values=Text(least=0, most=255, allow_none=True),
        required=True,
        validate=ma.validate.Length(max=_LABELS_MOST, error=f"must not have more than {_LABELS_MOST} labels"),
        error_messages={"required": "is required", "null": "must not be null", "invalid": "must be a JSON object"},
        metadata={"description": "Labels to set; null removes one. Those not named stay.", "example": {"zone": "a"}},
    )


class GpuChanges(StrictSchema):
    """Whether a GPU is out, and whether jobs may share it; what is not named stays."""

    out = Text(
        most=500,
        allow_none=True,
        metadata={"description": "Why no job may have it from now on; null: jobs may have it again."},
    )
    shared = Flag(
        allow_none=True,
        metadata={"description": "Whether jobs may share it by memory; null: as its agent's setting says."},
    )

    @ma.validates_schema
    def _something(self, data: Mapping[str, Any], **_: Any) -> None:
        if not data:
            raise ma.ValidationError("must name out or shared")


class AmountOfNode(ma.Schema):
    """Of one resource: what there is, and what no job holds."""

    total = fields.Float()
    free = fields.Float()


class GpuOfNode(ma.Schema):
    """One GPU. The readings are the agent's last, and null where the driver gives none."""

    uuid = fields.String()
    index = fields.Integer()
    model = fields.String()
    memory_bytes = fields.Integer()
    state = Choice(
        "free", "held", "shared", "out", metadata={"description": "held: by one job; shared: slices of it are held"}
    )
    reason = fields.String(metadata={"description": "Why it is out, else empty."})
    out_by = fields.String(allow_none=True, metadata={"description": "The operator who took it out; null: its agent."})
    out_since = fields.String(allow_none=True)
    job_id = fields.UUID(allow_none=True, metadata={"description": "The job that has it to itself."})
    job_ids = fields.List(fields.UUID(), metadata={"description": "All jobs that have it or a slice of it."})
    sharing = fields.Boolean(metadata={"description": "Whether jobs may share it by memory."})
    slice_bytes = fields.Integer(
        allow_none=True, metadata={"description": "Memory that slices hold; null unless it is shared now."}
    )
    utilization_percent = fields.Integer(allow_none=True)
    temperature_celsius = fields.Integer(allow_none=True)
    memory_used_bytes = fields.Integer(allow_none=True)
    processes = fields.Integer(allow_none=True, metadata={"description": "How many processes use it, of anyone's."})


class DrainOfNode(ma.Schema):
    """An order to empty a node."""

    reason = fields.String()
    by = fields.String()
    since = fields.String(allow_none=True)
    deadline = fields.String(allow_none=True, metadata={"description": "When what still runs is stopped; null: never."})


class JobOfNode(ma.Schema):
    """A job that a node holds."""

    id = fields.UUID()
    type = fields.String()
    state_detail = fields.String()
    tenant = fields.String()
    since = fields.String()
    cpus = fields.Float()
    memory_bytes = fields.Integer()
    gpus = fields.List(fields.String(), metadata={"description": "UUIDs"})


class HostShown(ma.Schema):
    """A node: what it has, what of it is free, and what operators said about it."""

    name = fields.String()
    kind = Choice("agent", "external")
    cluster = fields.String()
    state = Choice(*NODE_STATES)
    ip = fields.String(allow_none=True)
    version = fields.String()
    runners = fields.List(fields.String())
    labels = fields.Dict(values=fields.String(), metadata={"description": "Its agent's with the operators' over them"})
    operator_labels = fields.Dict(values=fields.String())
    registered_at = fields.String()
    last_seen_at = fields.String()
    silent_seconds = fields.Float()
    slots = fields.Nested(AmountOfNode)
    cpus = fields.Nested(AmountOfNode)
    memory_bytes = fields.Nested(AmountOfNode)
    gpus = fields.List(fields.Nested(GpuOfNode))
    jobs = fields.Integer(metadata={"description": "How many jobs it holds."})
    drain = fields.Nested(DrainOfNode, allow_none=True, metadata={"description": "Null unless it drains."})


class HostDetailShown(HostShown):
    """A node with the jobs it holds, the oldest first, at most 1000."""

    running = fields.List(fields.Nested(JobOfNode))
