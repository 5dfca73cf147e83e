"""Fields that only a submitted job has: its program's address, digest or image, its arguments and its environment."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

import marshmallow as ma
from marshmallow import fields

from app.api.fields import Text, shown

MAX_URL = 2048
MAX_ARGUMENTS = 1000
MAX_STRING_BYTES = 131_071
"""Linux takes no longer single argument or environment entry (MAX_ARG_STRLEN, less its NUL)."""
MAX_TOTAL_BYTES = 2**20
"""Arguments and environment together stay below half of what Linux gives a new process by default."""

_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RESERVED = "CFAB_"
_IMAGE = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{1,5})?/)?"
    r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@sha256:[0-9a-f]{64})?"
)
"""The grammar of the distribution project's references, its host part in short."""


class Url(Text):
    """An http or https URL in ASCII without credentials."""

    def __init__(self, **options: Any) -> None:
        super().__init__(1, MAX_URL, **options)
        self.metadata = {"format": "uri", **self.metadata}

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        text: str = super()._deserialize(value, attr, data, **kwargs)
        problem = _url_problem(text)
        if problem:
            raise ma.ValidationError(f"{problem}: {shown(text)}")
        return text


def _url_problem(text: str) -> str | None:
    if not text.isascii() or " " in text or "\\" in text:
        return "must be ASCII without spaces or backslashes (percent-encode others)"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return "is not a URL"
    if parts.scheme.lower() not in {"http", "https"}:
        return "must be an http or https URL"
    if not parts.hostname or port == 0:
        return "must name a host"
    if parts.username is not None or parts.password is not None:
        return "must not hold a user name or password, for every reader of the job would see them"
    return None


class Sha256(Text):
    """64 hexadecimal digits, in either case; kept in lower case."""

    def __init__(self, **options: Any) -> None:
        super().__init__(1, 200, **options)
        self.metadata = {**self.metadata, "minLength": 64, "maxLength": 64, "pattern": "^[0-9a-fA-F]{64}$"}

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        text = super()._deserialize(value, attr, data, **kwargs)
        if not _DIGEST.fullmatch(text):
            raise ma.ValidationError(f"must be 64 hexadecimal digits (as sha256sum prints them), not {shown(text)}")
        return text.lower()


class Arguments(fields.List[str]):
    """A list of strings for the command line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(fields.String(), **options)
        self.metadata = {"maxItems": MAX_ARGUMENTS, **self.metadata}

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        if not isinstance(value, list):
            raise ma.ValidationError(f"must be an array of strings, not {shown(value)}")
        if len(value) > MAX_ARGUMENTS:
            raise ma.ValidationError(f"has {len(value)} elements; at most {MAX_ARGUMENTS} are allowed")
        problems: dict[int, list[str]] = {}
        for place, item in enumerate(value):
            if not isinstance(item, str):
                problems[place] = [f"must be a string, not {shown(item)}"]
            elif len(item) * 4 > MAX_STRING_BYTES and len(item.encode()) > MAX_STRING_BYTES:
                problems[place] = [f"has {len(item.encode())} bytes; at most {MAX_STRING_BYTES} are allowed"]
        if problems:
            raise ma.ValidationError(problems)
        return value


class Environment(fields.Dict):
    """Environment variables: names as a shell takes them, without the fabric's own CFAB_ prefix."""

    def __init__(self, **options: Any) -> None:
        super().__init__(keys=fields.String(), values=fields.String(), **options)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        if not isinstance(value, dict):
            raise ma.ValidationError(f"must be an object of strings, not {shown(value)}")
        problems = {name[:100]: [problem] for name, text in value.items() if (problem := _variable_problem(name, text))}
        if problems:
            raise ma.ValidationError(problems)
        return value


def _variable_problem(name: str, text: Any) -> str | None:
    if not _NAME.fullmatch(name):
        return "is not a variable name; use letters, digits and _, not beginning with a digit"
    if name.startswith(_RESERVED):
        return f"begins with {_RESERVED}, which is kept for the fabric's own variables"
    if not isinstance(text, str):
        return f"must be a string, not {shown(text)}"
    size = len(name) + 1 + len(text.encode())
    if size > MAX_STRING_BYTES:
        return f"has {size} bytes with its name; at most {MAX_STRING_BYTES} are allowed"
    return None


class Image(Text):
    """A container image's reference: `name[:tag][@digest]`, with a registry's host before it or without."""

    def __init__(self, **options: Any) -> None:
        super().__init__(1, 512, **options)

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        text: str = super()._deserialize(value, attr, data, **kwargs)
        if not _IMAGE.fullmatch(text):
            raise ma.ValidationError(f"must be an image reference such as repo/name:tag, not {shown(text)}")
        return text


def start_bytes(arguments: Iterable[str], environment: Mapping[str, str]) -> int:
    """Bytes that a job's arguments and environment take when its process starts."""
    taken = sum(len(text.encode()) + 1 for text in arguments)
    return taken + sum(len(name) + len(text.encode()) + 2 for name, text in environment.items())
