"""Shapes of tenants in the jobs contract: quotas in CPUs, MiB and, for GPU memory, MB of 10^6 bytes as on the card."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import marshmallow as ma
from marshmallow import fields

from app.api.arguments import StrictSchema
from app.api.fields import Choice, Number, Text, Whole, shown
from app.api.pagination import PageSchema, page_limit
from app.domain.tenant import MAX_NAME, MAX_TEXT, MAX_WEIGHT, Tier

TIERS = tuple(tier.value for tier in Tier)
_MOST = 10**9
_MOST_MEMORY = 2**40
_NULL = "null: unlimited."


class Flag(fields.Boolean):
    """true or false, and nothing that merely looks so."""

    def __init__(self, description: str) -> None:
        super().__init__(metadata={"description": description})
        self.error_messages.update(null="must not be null")

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        if not isinstance(value, bool):
            raise ma.ValidationError(f"must be true or false, not {shown(value)}")
        return value


class QuotaAsked(StrictSchema):
    """What a tenant may hold at a time. A limit that is left out stays as it is; a new tenant has none."""

    jobs = Whole(0, _MOST, allow_none=True, metadata={"description": f"Jobs that run at a time; {_NULL}"})
    cpus = Number(0, _MOST, allow_none=True, metadata={"description": f"CPUs, also fractions; {_NULL}"})
    memory_mib = Number(0, _MOST_MEMORY, allow_none=True, metadata={"description": f"Memory in MiB; {_NULL}"})
    gpus = Whole(0, _MOST, allow_none=True, metadata={"description": f"GPUs; {_NULL}"})
    gpu_memory_mb = Number(
        0,
        _MOST_MEMORY,
        allow_none=True,
        metadata={"description": f"What jobs ask of their GPUs' memory, over all GPUs, in MB of 10^6 bytes; {_NULL}"},
    )


class TenantChanges(StrictSchema):
    """What to change of a tenant; what is left out stays as it is."""

    email = Text(most=MAX_TEXT, allow_none=True)
    organization = Text(most=MAX_TEXT, allow_none=True)
    tier = Choice(*TIERS, metadata={"description": "How far up its jobs may ask; counts for jobs submitted from now."})
    weight = Number(0, MAX_WEIGHT, above=True, metadata={"description": "Its share against other tenants of a class."})
    quota = fields.Nested(QuotaAsked, error_messages={"null": "must not be null; set each limit to null instead"})
    allow_preemption = Flag("Whether its jobs may be stopped and put back for more important ones.")
    can_preempt_others = Flag("Whether its jobs may have others stopped and put back.")
    active = Flag("An inactive tenant submits and starts nothing; what it runs goes on.")


class TenantAsked(TenantChanges):
    """A new tenant."""

    name = Text(
        most=MAX_NAME,
        required=True,
        metadata={"description": "Printable, without spaces and slashes.", "example": "research"},
    )


class TenantsAsked(PageSchema):
    """Which tenants to list."""

    limit = page_limit(default=100, most=1000)


class AmountsShown(ma.Schema):
    """Amounts of what a tenant may hold or holds; null is unlimited."""

    jobs = fields.Integer(allow_none=True)
    cpus = fields.Float(allow_none=True)
    memory_mib = fields.Float(allow_none=True)
    gpus = fields.Integer(allow_none=True)
    gpu_memory_mb = fields.Float(allow_none=True)


class TenantShown(ma.Schema):
    """A tenant, what it may hold, and what it holds now."""

    id = fields.UUID()
    name = fields.String()
    email = fields.String(allow_none=True)
    organization = fields.String(allow_none=True)
    tier = Choice(*TIERS)
    weight = fields.Float()
    active = fields.Boolean()
    allow_preemption = fields.Boolean()
    can_preempt_others = fields.Boolean()
    quota = fields.Nested(AmountsShown)
    usage = fields.Nested(AmountsShown)
    created_at = fields.String(metadata={"example": "2024-01-01T12:00:00Z"})
