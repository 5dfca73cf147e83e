"""Fields that only the hpc contract has: ids of reporters, lists of nodes, times in queries and bodies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import marshmallow as ma
from marshmallow import fields

from app.api.fields import Number, Text, shown
from app.services.tracked import MAX_ID, id_problem

MAX_NODES = 16_384
# A plus sign that was not escaped in a query arrives as a space.
_LOST_PLUS = re.compile(r"(T[0-9:.]+) (\d\d:?\d\d)")
_DATE = re.compile(r"\d{4}-\d\d-\d\d([T ].+)?")


class ClientId(Text):
    """What a reporter calls a job."""

    def __init__(self, **options: Any) -> None:
        super().__init__(least=1, most=MAX_ID, **options)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        text = super()._deserialize(value, attr, data, **kwargs)
        problem = id_problem(text)
        if problem is not None:
            raise ma.ValidationError(problem)
        return text


class Nodes(fields.List[Any]):
    """One node or more."""

    def __init__(self, **options: Any) -> None:
        super().__init__(Text(), **options)
        self.metadata = {"minItems": 1, "maxItems": MAX_NODES, **self.metadata}
        words = "must be an array of names of nodes"
        self.error_messages.update(required="is required", null="must not be null", invalid=words)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        if isinstance(value, list) and not 1 <= len(value) <= MAX_NODES:
            raise ma.ValidationError(f"must have 1 to {MAX_NODES} elements, not {len(value)}")
        return super()._deserialize(value, attr, data, **kwargs)


class Moment(fields.String):
    """A time as ISO 8601 has it; UTC where it names no offset."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.metadata = {"format": "date-time", **self.metadata}
        self.error_messages.update(null="must not be null")

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        moment = read_moment(value) if isinstance(value, str) else None
        if moment is None:
            raise ma.ValidationError(f"must be a time such as 2026-01-20T10:00:00Z, not {shown(value)}")
        return moment


class Reported(Number):
    """A percentage; null says that it is not known, as leaving it out does."""

    def __init__(self, **options: Any) -> None:
        super().__init__(0, 100, allow_none=True, **options)


def read_moment(text: str) -> datetime | None:
    """The time that `text` names, in UTC; None when it is none."""
    text = _LOST_PLUS.sub(r"\1+\2", text)
    if not _DATE.fullmatch(text):
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
