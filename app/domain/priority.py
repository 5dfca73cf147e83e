"""Priority classes: the three queues, in strict order."""

from __future__ import annotations

from enum import IntEnum


class PriorityClass(IntEnum):
    """A smaller number is served first; each has a Celery queue of its name."""

    FOREGROUND = 0
    BACKGROUND = 1
    BEST_EFFORT = 2

    @property
    def word(self) -> str:
        """The class's name in lower case, also the name of its queue."""
        return self.name.lower()

    @property
    def default_priority(self) -> int:
        """Priority inside the tenant for a job that names only its class."""
        return {0: 1000, 1: 500, 2: 100}[self.value]
