"""401 and 403 as RFC 6750 has them: a `WWW-Authenticate` header that says what is wrong, and never any of the token."""

from __future__ import annotations

from typing import TypeVar

from app.api.errors import Forbidden, HttpRefusal, Unauthorized

R = TypeVar("R", bound=HttpRefusal)
_BEARER = 'Bearer realm="cfab"'
_BASIC = 'Basic realm="cfab"'


def invalid_token(description: str) -> Unauthorized:
    """The token was given and cannot be accepted; `description` says why, in ASCII without quotes."""
    return _challenged(Unauthorized(description), "invalid_token")


def insufficient_scope(description: str) -> Forbidden:
    """The token is good, but not for this."""
    return _challenged(Forbidden(description), "insufficient_scope")


def offering_basic(refusal: Unauthorized) -> None:
    """Makes a refusal one for a page that a browser opens: its user may type the token as a password."""
    bearer = refusal.headers.get("WWW-Authenticate", _BEARER)
    refusal.headers = {"WWW-Authenticate": f"{_BASIC}, {bearer}"}


def _challenged(refusal: R, code: str) -> R:
    words = f'{_BEARER}, error="{code}", error_description="{refusal.message}"'
    refusal.headers = {**refusal.headers, "WWW-Authenticate": words}
    return refusal
