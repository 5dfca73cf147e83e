"""Jobs that wait for others: on which end of a parent a job may start, and when it never can."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from uuid import UUID

MAX_PARENTS = 1000
"""Jobs and arrays that one job may wait for; an array counts as one."""


class Terms(IntEnum):
    """On which end of its parent a job may start. Numbers are stored, so they never change."""

    AFTEROK = 1
    AFTERANY = 2
    AFTERNOTOK = 3

    @property
    def word(self) -> str:
        """The name in lower case."""
        return self.name.lower()

    def satisfied(self, completed: bool) -> bool:
        """Whether a parent that has ended lets the job start; if not, the job never can.

        An array completed when all its indices did. Failed and cancelled are the same here.
        """
        return self == Terms.AFTERANY or (self == Terms.AFTEROK) == completed


@dataclass(frozen=True)
class After:
    """One parent that a job waits for: a job or an array of the same tenant."""

    parent: UUID
    terms: Terms = Terms.AFTEROK


NEVER = {
    Terms.AFTEROK: "did not complete",
    Terms.AFTERNOTOK: "completed",
}
"""What an ended parent did that keeps a job with these terms from ever starting."""


def never_message(terms: Terms, parent: UUID, is_array: bool) -> str:
    """Why a job was cancelled whose dependency can never be satisfied."""
    what = "array" if is_array else "job"
    return f"{what} {parent} {NEVER[terms]}, and this was to run {terms.word}: it can never start"
