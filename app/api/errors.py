"""The one map from refusals to HTTP statuses, and the border where each contract gives them its own form.

Services raise `FabricError`s that know no HTTP; the statuses that only HTTP has (401, 405, 413, 415 …) are added here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Protocol

from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge
from werkzeug.exceptions import MethodNotAllowed as WerkzeugMethodNotAllowed

from app.api.answers import json_answer
from app.api.listener import asked_path, primary_at
from app.domain.errors import (
    FabricError,
    Invalid,
    KeyInFlight,
    KeyReused,
    NotFound,
    Refused,
    StaleIncarnation,
    StateConflict,
    Unavailable,
)

log = logging.getLogger(__name__)

RETRY_AFTER_S = 2


class HttpRefusal(FabricError):
    """The request was refused."""

    status = 400
    headers: Mapping[str, str] = MappingProxyType({})


class Unauthorized(HttpRefusal):
    """A valid bearer token is needed: send the header `Authorization: Bearer <token>`."""

    status = 401
    headers: Mapping[str, str] = MappingProxyType({"WWW-Authenticate": 'Bearer realm="cfab"'})


class Forbidden(HttpRefusal):
    """This is not allowed for the caller."""

    status = 403


class RouteNotFound(HttpRefusal):
    """There is no such path."""

    status = 404


class MethodNotAllowed(HttpRefusal):
    """This path does not know this method."""

    status = 405


class BodyTooLarge(HttpRefusal):
    """The request body is too large."""

    status = 413


class UnsupportedMediaType(HttpRefusal):
    """Send the body as JSON, with the header `Content-Type: application/json`."""

    status = 415


class Busy(HttpRefusal):
    """The server serves as many of these as it can at the moment; try again."""

    status = 503
    headers: Mapping[str, str] = MappingProxyType({"Retry-After": str(RETRY_AFTER_S)})


class ServerFault(HttpRefusal):
    """The server failed to handle this request; it has been logged."""

    status = 500


STATUSES: dict[type[FabricError], int] = {
    Invalid: 400,
    NotFound: 404,
    StateConflict: 409,
    KeyReused: 422,
    KeyInFlight: 409,
    Refused: 403,
    StaleIncarnation: 409,
    Unavailable: 503,
}


class ErrorForm(Protocol):
    """How one contract shows a refusal; `statuses` overrides the common map where its document says otherwise."""

    statuses: Mapping[type[FabricError], int]

    def body(self, status: int, error: FabricError) -> Any:
        """The JSON value of the answer."""


class ErrorForms:
    """Which contract's form answers a path: the longest prefix that fits, else the listener's primary contract's."""

    def __init__(self, by_prefix: Mapping[str, ErrorForm]) -> None:
        self._forms = dict(by_prefix)
        self._by_prefix = sorted(by_prefix.items(), key=lambda item: -len(item[0]))

    def of(self, path: str, primary_at: str) -> ErrorForm:
        """The form for `path`; `primary_at` is the prefix of the primary contract."""
        for prefix, form in self._by_prefix:
            if path == prefix or path.startswith(prefix + "/"):
                return form
        return self._forms[primary_at]


def status_of(error: FabricError, form: ErrorForm) -> int:
    """The HTTP status of a refusal in a contract."""
    if isinstance(error, HttpRefusal):
        return error.status
    for kind in type(error).__mro__:
        for table in (form.statuses, STATUSES):
            if kind in table:
                return table[kind]
    return 500


def install(app: Flask, forms: ErrorForms) -> None:
    """Makes every error of `app` an answer in the form of its path; nothing shows a framework's page or a trace."""

    def answer(error: FabricError) -> Response:
        form = forms.of(request.path, primary_at())
        status = status_of(error, form)
        response = json_answer(form.body(status, error), status)
        if isinstance(error, HttpRefusal):
            response.headers.extend(dict(error.headers))
        if isinstance(error, Unavailable | KeyInFlight):
            response.headers["Retry-After"] = str(RETRY_AFTER_S)
        return response

    def from_werkzeug(error: HTTPException) -> Response:
        response = answer(_translated(error))
        if isinstance(error, WerkzeugMethodNotAllowed) and error.valid_methods:
            response.headers["Allow"] = ", ".join(sorted(error.valid_methods))
        return response

    def last_resort(error: Exception) -> Response:
        log.exception("request %s %s %s failed", request.method, request.path, g.get("request_id"), exc_info=error)
        return answer(ServerFault(request_id=g.get("request_id")))

    app.register_error_handler(FabricError, answer)
    app.register_error_handler(HTTPException, from_werkzeug)
    app.register_error_handler(Exception, last_resort)


def _translated(error: HTTPException) -> FabricError:
    if error.code == 404:
        return RouteNotFound(f"There is no path {asked_path(request)!r} here.")
    if error.code == 405:
        return MethodNotAllowed(f"{asked_path(request)!r} does not know the method {request.method}.")
    if isinstance(error, RequestEntityTooLarge):
        return BodyTooLarge(f"The request body is larger than {request.max_content_length} bytes.")
    refusal = HttpRefusal(error.description or error.name)
    refusal.status = error.code or 500
    return refusal
