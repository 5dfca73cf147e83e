"""Priority classes: the three queues, in strict order; and the scales on which contracts show priorities."""

from __future__ import annotations

from enum import IntEnum

MAX_PRIORITY = 5000


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

    @property
    def range(self) -> tuple[int, int]:
        """The least and the greatest priority of the class."""
        return {0: (1000, MAX_PRIORITY), 1: (500, 999), 2: (0, 499)}[self.value]

    @property
    def percents(self) -> tuple[int, int]:
        """The same range on the scale from 0 to 100."""
        return {0: (70, 100), 1: (30, 69), 2: (0, 29)}[self.value]


def class_of(priority: int) -> PriorityClass:
    """The class in whose range a priority of 0 to MAX_PRIORITY lies."""
    return next(c for c in PriorityClass if priority >= c.range[0])


def class_of_percent(percent: int) -> PriorityClass:
    """The class in whose range a priority on the scale from 0 to 100 lies."""
    return next(c for c in PriorityClass if percent >= c.percents[0])


def from_percent(percent: int) -> int:
    """The priority for one of 0 to 100: monotone, linear inside each class, and undone by `to_percent`."""
    of = class_of_percent(percent)
    (least, most), (first, last) = of.range, of.percents
    return least + -(-(percent - first) * (most - least) // (last - first))


def to_percent(priority: int) -> int:
    """A priority on the scale from 0 to 100: monotone, and never in another class."""
    of = class_of(priority)
    (least, most), (first, last) = of.range, of.percents
    return first + (min(priority, most) - least) * (last - first) // (most - least)
