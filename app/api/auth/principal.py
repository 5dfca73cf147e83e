"""The caller of a request: what a token says (Identity), and what it means here (Principal)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast
from uuid import UUID

from flask import Request, g

USER, EXECUTOR, OPERATOR, ADMIN = "user", "executor", "operator", "admin"
ALL_ROLES = frozenset({USER, EXECUTOR, OPERATOR, ADMIN})


@dataclass(frozen=True)
class Identity:
    """What a caller proved: `tenant` is an id that needs no look-up, a claim's name or id of one, or None."""

    roles: frozenset[str]
    subject: str
    tenant: UUID | str | None = None
    expires_at: float | None = None


@dataclass(frozen=True)
class Principal:
    """The caller: the tenant whose jobs it sees, what it may do, and its name for records.

    `expires_at` is the unix time when its token ends; a stream ends then too. None: never.
    """

    tenant_id: UUID
    roles: frozenset[str]
    subject: str
    expires_at: float | None = None


class Authenticator(Protocol):
    """Turns a request into the caller's Identity; knows no roles of routes and no tenants' rows."""

    def authenticate(self, request: Request) -> Identity:
        """Who asks. Raises Unauthorized, or another refusal that holds for every route."""


def principal() -> Principal:
    """The caller of the current request. On routes that are open to everyone there is none."""
    return cast(Principal, g.principal)
