"""Fields of requests with one plain sentence per refusal, naming the value; used by every contract."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import marshmallow as ma
from marshmallow import fields

from app.domain.amounts import digits

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_DIGITS = re.compile(r"-?[0-9]{1,18}")


def shown(value: Any) -> str:
    """`value` in at most 60 characters of ASCII, for messages."""
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


class _Plain(fields.Field[Any]):
    """Replaces the framework's wording."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.error_messages.update(required="is required", null="must not be null")


class Text(_Plain, fields.String):
    """A string of `least` to `most` characters; `one_line` refuses control characters."""

    def __init__(self, least: int = 1, most: int = 255, one_line: bool = True, **options: Any) -> None:
        super().__init__(**options)
        self._least, self._most, self._one_line = least, most, one_line
        self.metadata = {"minLength": least, "maxLength": most, **self.metadata}

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        if not isinstance(value, str):
            raise ma.ValidationError(f"must be a string, not {shown(value)}")
        if not self._least <= len(value) <= self._most:
            raise ma.ValidationError(f"must have {self._least} to {self._most} characters, not {len(value)}")
        if self._one_line and _CONTROL.search(value):
            raise ma.ValidationError(f"must not have control characters: {shown(value)}")
        return value


class Word(Text):
    """A string without any white space."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        text = super()._deserialize(value, attr, data, **kwargs)
        if not text.isprintable() or " " in text:
            raise ma.ValidationError(f"must not have spaces or invisible characters: {shown(text)}")
        return text


class Choice(_Plain, fields.String):
    """One of a few words."""

    def __init__(self, *words: str, **options: Any) -> None:
        super().__init__(**options)
        self._words = words
        self.metadata = {"enum": list(words), **self.metadata}

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        if value not in self._words:
            raise ma.ValidationError(f"must be one of {', '.join(self._words)}, not {shown(value)}")
        return value


class Whole(_Plain, fields.Integer):
    """A JSON integer (2.0 is not one) from `least` to `most`."""

    def __init__(self, least: int, most: int, **options: Any) -> None:
        super().__init__(**options)
        self._least, self._most = least, most
        self.metadata = {"minimum": least, "maximum": most, **self.metadata}

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        if type(value) is not int or not self._least <= value <= self._most:
            raise ma.ValidationError(f"must be a whole number from {self._least} to {self._most}, not {shown(value)}")
        return value


class QueryWhole(Whole):
    """A whole number in a query string, in plain ASCII digits."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        number = int(value) if isinstance(value, str) and _DIGITS.fullmatch(value) else value
        return super()._deserialize(number, attr, data, **kwargs)


class QueryFlag(_Plain, fields.Boolean):
    """true, false, 1 or 0 in a query string."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        if value not in {"true", "false", "1", "0"}:
            raise ma.ValidationError(f"must be true, false, 1 or 0, not {shown(value)}")
        return value in {"true", "1"}


class Flag(_Plain, fields.Boolean):
    """JSON's true or false, and nothing that merely looks like them."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        if not isinstance(value, bool):
            raise ma.ValidationError(f"must be true or false, not {shown(value)}")
        return value


class Number(_Plain, fields.Float):
    """A JSON number from `least` (or above it, with `above`) to `most`."""

    def __init__(self, least: float, most: float, above: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self._least, self._most, self._above = least, most, above
        bound = {"minimum": least, "exclusiveMinimum": True} if above else {"minimum": least}
        self.metadata = {**bound, "maximum": most, **self.metadata}

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        number = type(value) in {int, float}
        if not number or not self._least <= value <= self._most or (self._above and value == self._least):
            bound = "more than" if self._above else "at least"
            raise ma.ValidationError(
                f"must be a number, {bound} {digits(self._least)} and at most {digits(self._most)}, "
                f"not {digits(value)[:60] if number else shown(value)}"
            )
        return value
