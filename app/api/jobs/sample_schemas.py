"""Shapes of samples: what a job used over time, and what all that run use now."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import marshmallow as ma
from marshmallow import fields

from app.api.arguments import QuerySchema
from app.api.fields import QueryWhole, Text, shown

MOST_SAMPLES = 10_000
MOST_JOBS = 100


class Moment(Text):
    """A time in ISO 8601 with an offset or Z; without either it is UTC."""

    def __init__(self, **options: Any) -> None:
        super().__init__(1, 64, **options)
        self.metadata = {"format": "date-time", **self.metadata}

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        text = super()._deserialize(value, attr, data, **kwargs)
        try:
            # A plus sign that was not percent-encoded arrives as a space.
            moment = datetime.fromisoformat(text.strip().replace(" ", "+") if "T" in text else text)
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
        except (ValueError, OverflowError) as exc:
            raise ma.ValidationError(f"must be a time such as 2024-01-01T12:00:00Z, not {shown(text)}") from exc


class SamplesAsked(QuerySchema):
    """Which samples of a job."""

    start_time = Moment(metadata={"description": "Only from this time on; then the first `limit` are given."})
    end_time = Moment(metadata={"description": "Only up to this time."})
    attempt = QueryWhole(1, 2**31 - 1, metadata={"description": "Only of this attempt; all when absent."})
    limit = QueryWhole(
        1, MOST_SAMPLES, load_default=1000, metadata={"description": "Most samples; the latest without `start_time`."}
    )


class LatestAsked(QuerySchema):
    """Of which jobs."""

    job_id = Text(1, 100, metadata={"description": "Only this job."})
    limit = QueryWhole(1, MOST_JOBS, load_default=20, metadata={"description": "Most jobs, the newest first."})


class SampleShown(ma.Schema):
    """What an attempt used at a time; null is unknown."""

    timestamp = fields.String()
    attempt = fields.Integer()
    member = fields.Integer()
    cpu_cores = fields.Float(allow_none=True, metadata={"description": "CPUs in use since the sample before."})
    memory_bytes = fields.Integer(allow_none=True)
    gpu_percent = fields.Float(allow_none=True)
    gpu_memory_bytes = fields.Integer(allow_none=True)


class ShareShown(ma.Schema):
    """What a job holds while it runs."""

    cpus = fields.Float()
    memory_bytes = fields.Integer()
    gpus = fields.Integer()
    gpu_memory_bytes = fields.Integer()


class SamplesShown(ma.Schema):
    """Samples of a job in the order of their times; `total` counts all that match."""

    job_id = fields.String()
    total = fields.Integer()
    holds = fields.Nested(ShareShown)
    samples = fields.List(fields.Nested(SampleShown))


class UsageShown(ma.Schema):
    """What one running job uses now: its last samples, oldest first; none in its first second."""

    job_id = fields.String()
    type = fields.String()
    state_detail = fields.String()
    executor_id = fields.String()
    attempt = fields.Integer()
    member = fields.Integer()
    started_at = fields.String(allow_none=True)
    holds = fields.Nested(ShareShown)
    hard_limits = fields.Boolean(metadata={"description": "Whether it is stopped from using more than it holds."})
    recent = fields.List(fields.Nested(SampleShown))
