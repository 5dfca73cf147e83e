"""Shapes of arrays and dependencies in the jobs contract."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import marshmallow as ma
from marshmallow import fields

from app.api.arguments import StrictSchema
from app.api.fields import Choice, Flag, Text, Whole, shown
from app.api.pagination import PageSchema, page_limit
from app.domain.array import MAX_RANGES
from app.domain.dependency import MAX_PARENTS, Terms

STATUSES = ("pending", "running", "completed", "failed", "cancelled")
_ID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
TERMS = tuple(terms.word for terms in Terms)


class ArraySpread(StrictSchema):
    """Many jobs in one request: each finds its own index, from 0, in CFAB_ARRAY_INDEX."""

    count = Whole(1, 2**31 - 2, required=True, metadata={"description": "Jobs; the server has a bound of its own."})
    max_parallel = Whole(
        1,
        2**31 - 1,
        load_default=None,
        allow_none=True,
        metadata={"description": "How many of them may start or run at a time; any number when absent."},
    )


class Parents(fields.List[Any]):
    """Jobs and arrays to wait for: their ids, or objects of an id and a word; loaded as pairs of both."""

    def __init__(self, **options: Any) -> None:
        super().__init__(fields.Raw(), **options)
        one = {
            "type": "object",
            "required": ["job"],
            "additionalProperties": False,
            "properties": {
                "job": {"type": "string", "description": "Id of a job or of an array."},
                "on": {"type": "string", "enum": list(TERMS), "default": TERMS[0]},
            },
        }
        self.metadata = {
            "maxItems": MAX_PARENTS,
            "items": {"oneOf": [{"type": "string"}, one]},
            "description": "Starts when all of these have ended so: completed, ended at all, or not completed.",
            **self.metadata,
        }

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        if not isinstance(value, list):
            raise ma.ValidationError(
                f"must be an array of ids, or of objects such as {{'job': id}}, not {shown(value)}"
            )
        if len(value) > MAX_PARENTS:
            raise ma.ValidationError(f"has {len(value)} elements; at most {MAX_PARENTS} are allowed: wait for an array")
        problems: dict[int, Any] = {}
        parents: dict[UUID, str] = {}
        for place, item in enumerate(value):
            one = {"job": item} if isinstance(item, str) else item
            problem = _parent_problem(one)
            if problem is None and UUID(one["job"]) in parents:
                problem = f"names {shown(one['job'])} again"
            if problem is None:
                parents[UUID(one["job"])] = one.get("on", TERMS[0])
            else:
                problems[place] = [problem]
        if problems:
            raise ma.ValidationError(problems)
        return list(parents.items())


def _parent_problem(one: Any) -> str | None:
    if not isinstance(one, dict) or not isinstance(one.get("job"), str):
        return f"must be an id, or an object with job (an id) and on, not {shown(one)}"
    unknown = sorted(one.keys() - {"job", "on"})
    if unknown:
        return f"has the unknown field {shown(unknown[0])}; allowed: job, on"
    if one.get("on", TERMS[0]) not in TERMS:
        return f"on must be one of {', '.join(TERMS)}, not {shown(one['on'])}"
    return None if _ID.fullmatch(one["job"]) else f"there is no job and no array {shown(one['job'])}"


class ArraysAsked(PageSchema):
    """Which arrays to list."""

    limit = page_limit(default=100, most=1000)


class ArrayJobsAsked(PageSchema):
    """Which jobs of an array to list."""

    limit = page_limit(default=100, most=1000)
    status = Choice(*STATUSES)


class _Indices(StrictSchema):
    optional_body = True

    indices = Text(
        most=20 * MAX_RANGES,
        allow_none=True,
        load_default=None,
        metadata={"description": "Indices and ranges of them; all when absent.", "example": "0-9,20"},
    )


class ArrayCancelAsked(_Indices):
    """Which indices to end, and whether those that have started too."""

    reason = Text(least=0, most=1000, one_line=False, allow_none=True, load_default=None)
    running = Flag(load_default=True, metadata={"description": "false lets jobs that have started go on."})


class ArrayRetryAsked(_Indices):
    """Which of the failed indices to run again."""


class ArrayCountsShown(ma.Schema):
    """Indices by what became of the latest job of each; they come to `count`."""

    pending = fields.Integer()
    running = fields.Integer()
    completed = fields.Integer()
    failed = fields.Integer()
    cancelled = fields.Integer()


class ParentShown(ma.Schema):
    """What a job or an array depends on."""

    job = fields.UUID(metadata={"description": "Id of a job or of an array."})
    on = fields.String(metadata={"enum": list(TERMS)})
    array = fields.Boolean()
    satisfied = fields.Boolean(
        allow_none=True, metadata={"description": "null while it is not known; false: this can never start."}
    )
    state_detail = fields.String(
        allow_none=True, metadata={"description": "The job's state, or unfinished or ended; null: forgotten."}
    )


class ArrayListed(ma.Schema):
    """An array with exact counts."""

    id = fields.UUID()
    type = fields.String()
    priority = fields.String()
    status = fields.String(
        metadata={"enum": list(STATUSES), "description": "When it ended: failed if any index failed."}
    )
    reason = fields.String(allow_none=True, metadata={"description": "Why none of it starts yet."})
    message = fields.String(allow_none=True)
    count = fields.Integer()
    max_parallel = fields.Integer(allow_none=True)
    counts = fields.Nested(ArrayCountsShown)
    unexpanded = fields.Integer(metadata={"description": "How many of the pending indices have no job yet."})
    progress = fields.Float(metadata={"description": "The share of indices that have ended, from 0 to 1."})
    created_at = fields.String()
    completed_at = fields.String(allow_none=True)
    stopped_by = fields.String(allow_none=True)
    stop_reason = fields.String(allow_none=True)


class ArrayShown(ArrayListed):
    """Everything about an array but its jobs."""

    depends_on = fields.List(fields.Nested(ParentShown))


class ArrayCancelled(ArrayListed):
    """An array and what the cancel did."""

    cancelled = fields.Integer(metadata={"description": "Indices that ended at once."})
    stopping = fields.Integer(metadata={"description": "Jobs that are being stopped."})


class ArrayRetried(ArrayListed):
    """An array and how many of its indices run again."""

    retried = fields.Integer()
