"""Fields that only the ai contract has: Kubernetes quantities, and configuration of any shape."""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

import marshmallow as ma
from marshmallow import fields

from app.api.fields import shown
from app.domain.quantity import parse_quantity

MAX_CONFIG_BYTES = 2**20


class Quantity(fields.Field[Any]):
    """A quantity in its own form or as a plain number; kept as it was written. `least` and `most` bound its value."""

    def __init__(self, least: Fraction, most: Fraction, **options: Any) -> None:
        super().__init__(**options)
        self._least, self._most = least, most
        self.metadata = {"oneOf": [{"type": "string"}, {"type": "number"}], **self.metadata}
        self.error_messages.update(required="is required", null="must not be null")

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ma.ValidationError(f"must be a quantity such as 2, 500m or 8Gi, not {shown(value)}")
        try:
            number = parse_quantity(value) if isinstance(value, str) else Fraction(value)
        except ValueError as exc:
            raise ma.ValidationError(f"{exc}: {shown(value)}") from exc
        if not self._least <= number <= self._most:
            raise ma.ValidationError(f"is out of range: {shown(value)}")
        return value


def _unwritten(value: Any) -> int:
    """How much longer the numbers of a JSON value become where they are kept: PostgreSQL writes 1e300 out in full."""
    if isinstance(value, float):
        short = repr(value)
        return max(0, len(f"{Decimal(short):f}") - len(short)) if "e" in short else 0
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(_unwritten, inside))


class Config(fields.Dict):
    """A JSON object of any shape, within a size."""

    def _deserialize(self, value: Any, attr: str | None, data: Mapping[str, Any] | None, **kwargs: Any) -> Any:
        if not isinstance(value, dict):
            raise ma.ValidationError(f"must be an object, not {shown(value)}")
        size = len(json.dumps(value)) + _unwritten(value)
        if size > MAX_CONFIG_BYTES:
            raise ma.ValidationError(f"has {size} bytes; at most {MAX_CONFIG_BYTES} are allowed")
        return value
