"""Faults on purpose: a named transaction fails before its commit, or commits while its caller sees an error.

Off unless CFAB_FAULTS says so; tests and chaos runs use it to force the two cases that a network makes.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from threading import Lock


@dataclass
class Fault:
    """Fails transaction `name` at `point` (before or after the commit), `times` times (None: for ever), by chance."""

    name: str
    point: str
    probability: float = 1.0
    times: int | None = None


@dataclass
class FaultPlan:
    """The faults of one process, drawn from one seeded generator."""

    faults: list[Fault] = field(default_factory=list)
    seed: int = 0
    fired: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._lock = Lock()

    def strikes(self, name: str, point: str) -> bool:
        """Whether this transaction fails at this point now; counts it when it does."""
        with self._lock:
            for fault in self.faults:
                if (fault.name, fault.point) != (name, point) or fault.times == 0:
                    continue
                if self._random.random() >= fault.probability:
                    continue
                if fault.times is not None:
                    fault.times -= 1
                self.fired.append((name, point))
                return True
        return False


def parse_faults(text: str, seed: int = 0) -> FaultPlan:
    """A plan from `name:before|after:probability,…`, such as `claim:after:0.05,finish:before:0.02`."""
    return FaultPlan(list(_parse(text)), seed)


def _parse(text: str) -> Iterable[Fault]:
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, point, *rest = part.split(":")
        if point not in {"before", "after"}:
            raise ValueError(f"fault {part!r}: the point must be before or after")
        yield Fault(name, point, float(rest[0]) if rest else 1.0)
