"""Ids as contracts show them: a prefix and the 32 hexadecimal digits of the fabric's UUID, and back."""

from __future__ import annotations

import re
from uuid import UUID

from app.domain.errors import NotFound

_DIGITS = re.compile(r"[0-9a-f]{32}")


def shown_id(prefix: str, identity: UUID) -> str:
    """Such as `job_0190…` for the prefix `job_`."""
    return prefix + identity.hex


def parse_id(prefix: str, text: str, what: str = "Job") -> UUID:
    """The UUID that `shown_id` showed. Raises NotFound for anything else: no object has such a name."""
    digits = text.removeprefix(prefix)
    if not text.startswith(prefix) or not _DIGITS.fullmatch(digits):
        raise NotFound(f"{what} not found", job_id=text[:100])
    return UUID(digits)
