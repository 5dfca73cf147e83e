"""Which contract answers at `/api/v1`: three documents claim that prefix, so each listening socket has a primary one.

The socket decides, never a header of the request: a proxy or a mapped port in front changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from flask import Request, has_request_context, request

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

PRIMARY_AT = "/api/v1"
_PRIMARY, _PATH = "cfab.primary_at", "cfab.path"


class Listener:
    """Serves the primary contract of the listening port also at `/api/v1`, by rewriting the path.

    `primaries` names the prefix of the primary contract by local port; ports that it lacks have `default`. Paths of
    contracts that live below `/api/v1` themselves (`others`) stay as they are.
    """

    def __init__(
        self, app: WSGIApplication, default: str, primaries: Mapping[int, str], others: Iterable[str] = ()
    ) -> None:
        self._app = app
        self._default = default
        self._primaries = dict(primaries)
        self._others = tuple(other for other in others if _is_under(other, PRIMARY_AT))

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Passes the request on with the path of the contract that it means."""
        port = environ.get("SERVER_PORT", "")
        primary = self._primaries.get(int(port), self._default) if port.isdigit() else self._default
        path = environ.get("PATH_INFO", "")
        environ[_PRIMARY], environ[_PATH] = primary, path
        if _is_under(path, PRIMARY_AT) and not any(_is_under(path, other) for other in self._others):
            environ["PATH_INFO"] = primary + path.removeprefix(PRIMARY_AT)
        return self._app(environ, start_response)


def primary_at() -> str:
    """The prefix of the primary contract of the socket on which the current request came."""
    return str(request.environ.get(_PRIMARY, ""))


def asked_path(asked: Request) -> str:
    """The path as the client wrote it (percent-decoded)."""
    path: str = asked.environ.get(_PATH, "")
    # WSGI carries the path as Latin-1 text of its UTF-8 bytes.
    return path.encode("latin-1").decode("utf-8", "replace") or asked.path


def shown_prefix(at: str) -> str:
    """The prefix under which the current request reached the contract at `at`: links in its answer begin with it."""
    if has_request_context() and at == primary_at() and _is_under(asked_path(request), PRIMARY_AT):
        return PRIMARY_AT
    return at


def _is_under(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(prefix + "/")
