"""Binds flask-smorest to strict parsing: marshmallow schemas over strict JSON, all problems as one `Invalid`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

import flask_smorest
import marshmallow as ma
from flask import Request
from webargs.flaskparser import FlaskParser

from app.api.hub import hub
from app.api.strict_json import read_body
from app.domain.errors import FieldProblem, Invalid

View = TypeVar("View", bound=Callable[..., Any])

MAX_PROBLEMS = 100


class StrictSchema(ma.Schema):
    """A schema that refuses unknown fields and names those it knows."""

    lenient = False
    """Bad characters become U+FFFD instead of refusing the body."""
    optional_body = False
    """No body at all means `{}`."""

    class Meta:
        """Nothing unknown passes."""

        unknown = ma.RAISE

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.error_messages["unknown"] = f"is not a known field; allowed: {', '.join(self.load_fields)}"
        self.error_messages["type"] = "must be a JSON object"


class QuerySchema(ma.Schema):
    """A schema of query parameters; unknown ones are ignored."""

    class Meta:
        """Unknown parameters pass unread."""

        unknown = ma.EXCLUDE


class StrictParser(FlaskParser):
    """webargs over strict JSON; refuses with 400 in the contract's form instead of the framework's 422."""

    DEFAULT_VALIDATION_STATUS = 400

    def load_json(self, req: Request, schema: ma.Schema) -> Any:
        """The JSON body, strictly read."""
        lenient = getattr(schema, "lenient", False)
        value = read_body(req, typed=hub().settings.auth == "off", lenient=lenient)
        if value is not None or req.content_length:
            return value
        if getattr(schema, "optional_body", False):
            return {}
        raise Invalid("The request has no body; send a JSON " + ("array." if schema.many else "object."))

    def handle_error(
        self,
        error: ma.ValidationError,
        req: Request,
        schema: ma.Schema,
        *,
        error_status_code: int | None,
        error_headers: Mapping[str, str] | None,
    ) -> NoReturn:
        """Raises Invalid with every field's problem."""
        messages: Any = error.normalized_messages()  # type: ignore[no-untyped-call]
        for location, found in messages.items():
            problems = list(_problems(found, many=location == "json" and bool(schema.many)))
            raise Invalid(_summary(problems), problems[:MAX_PROBLEMS]) from error
        raise Invalid() from error


class Blueprint(flask_smorest.Blueprint):  # type: ignore[misc]
    """flask-smorest's blueprint with strict parsing, and with types."""

    ARGUMENTS_PARSER = StrictParser()

    def route(self, rule: str, **options: Any) -> Callable[[View], View]:
        """Registers and documents a view."""
        made: Callable[[View], View] = super().route(rule, **options)
        return made

    def arguments(self, schema: Any, **options: Any) -> Callable[[View], View]:
        """Parses a body (or, with location="query", the parameters) and passes it to the view."""
        made: Callable[[View], View] = super().arguments(schema, **options)
        return made

    def response(self, status_code: int, schema: Any = None, **options: Any) -> Callable[[View], View]:
        """Documents the answer; views here render it themselves."""
        made: Callable[[View], View] = super().response(status_code, schema, **options)
        return made

    def alt_response(self, status_code: int, response: Any = None, **options: Any) -> Callable[[View], View]:
        """Documents another answer."""
        made: Callable[[View], View] = super().alt_response(status_code, response, **options)
        return made

    def doc(self, *, parameters: Sequence[Mapping[str, Any]] = (), **options: Any) -> Callable[[View], View]:
        """Adds to the documentation of a view; `parameters` (headers) stand beside those that are parsed."""
        made: Callable[[View], View] = super().doc(**options)

        def decorate(view: View) -> View:
            documented: Any = made(view)
            # Passed on as they are they would replace the parsed ones.
            documented._apidoc.setdefault("arguments", {}).setdefault("parameters", []).extend(parameters)
            shown: View = documented
            return shown

        return decorate


def _problems(messages: Any, many: bool) -> Iterator[FieldProblem]:
    if not many:
        yield from _flat(messages, "", None)
        return
    for index, found in messages.items():
        yield from _flat(found, "", index if isinstance(index, int) else None)


def _flat(messages: Any, path: str, index: int | None) -> Iterator[FieldProblem]:
    if isinstance(messages, Mapping):
        for key, inner in messages.items():
            name = (
                path if key == "_schema" else f"{path}[{key}]" if isinstance(key, int) else f"{path}.{key}".lstrip(".")
            )
            yield from _flat(inner, name, index)
    elif isinstance(messages, list):
        for message in messages:
            yield from _flat(message, path, index)
    else:
        yield FieldProblem(path or "body", str(messages), index)


def _summary(problems: list[FieldProblem]) -> str:
    shown = [(f"[{p.index}] " if p.index is not None else "") + f"{p.field[:100]}: {p.message}" for p in problems[:5]]
    more = len(problems) - len(shown)
    return "; ".join(shown) + (f"; and {more} more" if more > 0 else "")
