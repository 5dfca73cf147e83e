"""How far a reader of a log has come; its text is the id of an event, which no client needs to understand."""

from __future__ import annotations

import re
from dataclasses import dataclass

from app.domain.errors import FieldProblem, Invalid

_ID = re.compile(r"([0-9]{1,9}):([0-9]{1,15})(?:\.([0-9]{1,9}))?")


@dataclass(frozen=True)
class Place:
    """An attempt, a position in its output, and how many frames from there on have been seen."""

    attempt: int = 0
    position: int = 0
    seen: int = 0

    def __str__(self) -> str:
        return f"{self.attempt}:{self.position}" + (f".{self.seen}" if self.seen else "")


def parse_place(text: str, field: str = "Last-Event-ID") -> Place:
    """The place that an event's id names. Raises Invalid, which names `field`."""
    match = _ID.fullmatch(text)
    if not match:
        raise Invalid(problems=[FieldProblem(field, f"{text[:60]!a} is not the id of an event of this stream")])
    return Place(int(match[1]), int(match[2]), int(match[3] or 0))
