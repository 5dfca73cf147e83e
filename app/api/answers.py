"""Rendering of JSON answers and of times; knows no contract."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from flask import Response


def json_answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A JSON answer; a NaN or a value that JSON lacks is a fault of ours and raises instead of being sent."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return Response(text + "\n", status=status, headers=dict(headers or {}), mimetype="application/json")


def utc(moment: datetime | None) -> str | None:
    """`moment` in whole seconds of UTC, as in 2024-01-01T12:00:00Z."""
    if moment is None:
        return None
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
