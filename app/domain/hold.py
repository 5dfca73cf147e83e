"""A hold: somebody keeps a pending job from being started until it is released."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Hold:
    """Who holds a job back, why, and since when. What an operator holds only an operator releases."""

    by: str
    operator: bool
    reason: str
    since: datetime

    @property
    def message(self) -> str:
        """The hold in a few words."""
        return message_of(self.by, self.operator, self.reason)


def message_of(by: str, operator: bool, reason: str) -> str:
    """What a job that is held says of it."""
    return f"held by {'operator ' if operator else ''}{by}" + (f": {reason}" if reason else "")
