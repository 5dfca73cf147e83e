"""Shapes of what is done with jobs after their submit: hold, release, reprioritise, requeue, resubmit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import marshmallow as ma
from marshmallow import fields

from app.api.arguments import StrictSchema
from app.api.fields import Choice, Flag, Text, shown
from app.api.jobs.schemas import PRIORITIES, HoldShown, JobStopped
from app.domain.priority import MAX_PRIORITY


class HoldAsked(StrictSchema):
    """Why a job is held back."""

    optional_body = True

    reason = Text(least=0, most=1000, one_line=False, load_default="")


class ReleaseAsked(StrictSchema):
    """Nothing to say."""

    optional_body = True


class RequeueAsked(StrictSchema):
    """Why a job is to run again, and whether it is held until somebody releases it."""

    optional_body = True

    reason = Text(least=0, most=1000, one_line=False, allow_none=True, load_default=None)
    hold = Flag(load_default=False, metadata={"description": "It waits until it is released."})


class ClassOrNumber(fields.Field[Any]):
    """A priority class by its name, or a priority as a number."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.metadata = {
            "oneOf": [
                {"type": "string", "enum": list(PRIORITIES)},
                {"type": "integer", "minimum": 0, "maximum": MAX_PRIORITY},
            ],
            **self.metadata,
        }

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        if value in PRIORITIES or (type(value) is int and 0 <= value <= MAX_PRIORITY):
            return value
        words = ", ".join(PRIORITIES)
        raise ma.ValidationError(f"must be one of {words} or a whole number to {MAX_PRIORITY}, not {shown(value)}")


class JobChanges(StrictSchema):
    """Another class or priority. A number alone is of the class in whose range it lies."""

    priority = ClassOrNumber(
        metadata={"description": "The class, as at submit; or a number in its range, the greater the sooner."}
    )
    priority_class = Choice(*PRIORITIES)

    @ma.validates_schema
    def _something(self, data: Mapping[str, Any], **_: Any) -> None:
        if not data:
            raise ma.ValidationError({"priority": ["is required, or priority_class"]})
        word, cls = data.get("priority"), data.get("priority_class")
        if isinstance(word, str) and cls not in {None, word}:
            raise ma.ValidationError({"priority_class": [f"is {cls}, and priority is {word}; give one of them"]})


class JobChanged(JobStopped):
    """A job as it is now."""

    message = fields.String(allow_none=True)
    priority = fields.String(metadata={"description": "The class that was asked for."})
    effective_class = Choice(*PRIORITIES, metadata={"description": "The class that counts, capped by the tier."})
    effective_priority = fields.Integer(metadata={"description": "What counts in the queue, capped by the tier."})
    queue_position = fields.Integer(metadata={"description": "1 is next in its class, 0 is not waiting."})
    hold = fields.Nested(HoldShown, allow_none=True, metadata={"description": "Null unless it is held."})
