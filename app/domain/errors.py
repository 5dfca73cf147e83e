"""The error tree of the core. HTTP statuses are the API's business and do not appear here.

FabricError
├── Invalid          the request can never be right as it is
│   └── Unrunnable       no registered node could ever run the job, and such jobs are refused here
├── NotFound         no such object, or not the caller's
├── StateConflict    the object is not in a state that allows this
├── KeyReused        an idempotency key came again with another request
├── KeyInFlight      the first request with this idempotency key is still running
├── Refused          the caller may not have this (quota, cap, policy)
│   └── QuotaExceeded    the job alone exceeds its tenant's quota, so that it could never start
├── StaleIncarnation a node spoke that has since started anew elsewhere
└── Unavailable      PostgreSQL cannot be asked at the moment
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


class FabricError(Exception):
    """Something was refused; the docstring of the class is the default message."""

    def __init__(self, message: str | None = None, **context: Any) -> None:
        self.message = message or (type(self).__doc__ or "").strip()
        self.context: Mapping[str, Any] = context
        super().__init__(self.message)


@dataclass(frozen=True)
class FieldProblem:
    """One field that cannot be accepted; `index` is its place in a bulk request."""

    field: str
    message: str
    index: int | None = None


class Invalid(FabricError):
    """The request is not valid."""

    def __init__(self, message: str | None = None, problems: Sequence[FieldProblem] = (), **context: Any) -> None:
        super().__init__(message or "; ".join(f"{p.field}: {p.message}" for p in problems) or None, **context)
        self.problems = tuple(problems)


class Unrunnable(Invalid):
    """No registered node could ever run this job."""


class NotFound(FabricError):
    """There is no such object."""


class StateConflict(FabricError):
    """The job is not in a state that allows this."""


class KeyReused(FabricError):
    """This idempotency key was used before with another request; use a new key."""


class KeyInFlight(FabricError):
    """A request with this idempotency key is being served; send it again in a moment."""


class Refused(FabricError):
    """This may not be had."""


class QuotaExceeded(Refused):
    """The job alone exceeds the quota of its tenant."""


class StaleIncarnation(FabricError):
    """This node has registered anew since; the older agent must stop."""


class Unavailable(FabricError):
    """The database cannot be asked at the moment; try again."""
