"""The Authorization header of a request, and nothing else of it: a token in a URL ends up in logs, so none is read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from flask import Request

from app.api.auth.challenge import invalid_token
from app.api.auth.marks import rules_for
from app.api.auth.principal import Identity
from app.api.errors import Unauthorized


class Verifier(Protocol):
    """Knows one kind of token."""

    def identify(self, token: str) -> Identity | None:
        """Whose token it is; None when it is of another kind. Raises Unauthorized for a bad one of its kind."""


class BearerTokens:
    """Callers by `Authorization: Bearer`, asked of each verifier in turn."""

    def __init__(self, verifiers: Sequence[Verifier]) -> None:
        self._verifiers = tuple(verifiers)

    def authenticate(self, request: Request) -> Identity:
        """The token's owner. Raises Unauthorized for none, for a bad one, and for two at once."""
        token = _token(request)
        for verifier in self._verifiers:
            identity = verifier.identify(token)
            if identity is not None:
                return identity
        raise invalid_token("The bearer token is not valid.")


def _token(request: Request) -> str:
    given = request.headers.getlist("Authorization")
    if not given:
        raise Unauthorized()
    if len(given) > 1:
        raise invalid_token("The request has more than one Authorization header; send one.")
    scheme, _, token = given[0].strip().partition(" ")
    if scheme.lower() == "basic" and request.authorization and rules_for(request).browsable:
        scheme, token = "bearer", request.authorization.password or ""
    if scheme.lower() != "bearer" or not token.strip():
        raise Unauthorized()
    return token.strip()
