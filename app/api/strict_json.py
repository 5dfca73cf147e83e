"""Reads JSON bodies without guessing: what PostgreSQL, a worker or another parser could read differently is refused.

Refused: anything but UTF-8, duplicate keys, NaN and Infinity (also as 1e400), nesting beyond 32 levels, NUL and lone
surrogates in strings. `lenient` turns bad characters into U+FFFD instead, for output that must be deliverable.
"""

from __future__ import annotations

import json
import math
from typing import Any, NoReturn

from flask import Request

from app.api.errors import UnsupportedMediaType
from app.domain.errors import Invalid

MAX_DEPTH = 32
_JSON_TYPES = frozenset({"application/json"})


def read_body(request: Request, typed: bool, lenient: bool = False) -> Any:
    """The request's JSON value; None when there is no body at all.

    `typed` demands a Content-Type, so that a web page cannot post without asking the browser for leave. Raises
    UnsupportedMediaType, werkzeug's RequestEntityTooLarge, then Invalid, in this order.
    """
    declared = request.content_length or request.headers.get("Transfer-Encoding") is not None
    if declared:
        check_media_type(request, typed)
    raw = request.get_data(cache=True)
    return loads(raw, lenient=lenient) if raw else None


def check_media_type(request: Request, typed: bool) -> None:
    """Raises UnsupportedMediaType unless the body is declared as plain JSON (or, not `typed`, not declared at all)."""
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UnsupportedMediaType("Send the body without Content-Encoding.")
    if not request.headers.get("Content-Type"):
        if typed:
            raise UnsupportedMediaType()
        return
    kind = request.mimetype
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    if kind not in _JSON_TYPES and not kind.endswith("+json"):
        raise UnsupportedMediaType(
            f"The body is declared as {kind[:100]!r}; send JSON with the header `Content-Type: application/json`."
        )
    if charset not in {"utf-8", "utf8"}:
        raise UnsupportedMediaType(f"The body is declared in charset {charset[:40]!r}; send UTF-8.")


def loads(raw: bytes, lenient: bool = False) -> Any:
    """The value of a JSON text. Raises Invalid saying what is wrong and where."""
    try:
        text = raw.decode("utf-8", errors="replace" if lenient else "strict")
    except UnicodeDecodeError as exc:
        raise Invalid(f"The body is not UTF-8: byte {exc.start} is 0x{raw[exc.start]:02x}.") from exc
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_refuse_constant,
            parse_float=_finite_float,
            strict=not lenient,
        )
    except json.JSONDecodeError as exc:
        raise Invalid(f"The body is not JSON: {exc.msg} at line {exc.lineno}, column {exc.colno}.") from exc
    except RecursionError as exc:
        raise _too_deep() from exc
    except ValueError as exc:  # Python refuses to read numbers of thousands of digits.
        raise Invalid("The body is not usable: it has a number with too many digits.") from exc
    _check_depth(value)
    # Bad characters can come only from escapes (or, when lenient, raw control characters).
    if "\\u" in text or lenient:
        value = _check_characters(value, lenient)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise Invalid(f"The body has the key {_shown(name)} twice in one object.", field=_clean(name)[:100])
            seen.add(name)
    return result


def _refuse_constant(word: str) -> NoReturn:
    raise Invalid(f"The body is not JSON: {word} is not a JSON number.")


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Invalid(f"The body has the number {text[:40]}, which is too large.")
    return value


def _too_deep() -> Invalid:
    return Invalid(f"The body is nested deeper than {MAX_DEPTH} levels.")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        following: list[Any] = []
        for item in level:
            children = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
            following.extend(child for child in children if isinstance(child, dict | list))
        if not following:
            return
        level = following
    raise _too_deep()


def _check_characters(value: Any, lenient: bool) -> Any:
    if isinstance(value, str):
        if _storable(value):
            return value
        if lenient:
            return _clean(value)
        raise Invalid(f"The string {_shown(value)} has a NUL or half of a surrogate pair, which cannot be stored.")
    if isinstance(value, list):
        return [_check_characters(item, lenient) for item in value]
    if isinstance(value, dict):
        return {_check_characters(k, lenient): _check_characters(v, lenient) for k, v in value.items()}
    return value


def _storable(text: str) -> bool:
    return "\0" not in text and (text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text))


def _clean(text: str) -> str:
    return "".join("\ufffd" if c == "\0" or "\ud800" <= c <= "\udfff" else c for c in text)


def _shown(text: str) -> str:
    short = text if len(text) <= 60 else text[:60] + "…"
    return ascii(short)
