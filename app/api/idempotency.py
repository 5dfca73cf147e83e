"""Idempotency keys in headers: the same request sent again gets the first one's answer instead of a second effect."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

from flask import Request, Response

from app.api.answers import json_answer
from app.api.auth import principal
from app.api.strict_json import read_body
from app.domain.errors import FieldProblem, Invalid
from app.services.idempotency import Answer, IdempotencyKey

HEADER = "Idempotency-Key"
KEY_HEADER = {
    "in": "header",
    "name": "Idempotency-Key",
    "schema": {"type": "string", "maxLength": 255},
    "description": "The same request with the same key has one effect, and gets the first one's answer.",
}
REPLAYED = "Idempotent-Replayed"
_USABLE = re.compile(r"[\x21-\x7e]{1,255}")


def idempotency_key(request: Request, header: str = HEADER) -> IdempotencyKey | None:
    """The request's key, or None. Two bodies are the same when their JSON values are: white space and order may differ.

    `header` is the contract's name for it. A key belongs to a tenant, a method and a full path. Raises Invalid for a
    key that cannot be one.
    """
    key = request.headers.get(header)
    if key is None:
        return None
    if not _USABLE.fullmatch(key):
        problem = FieldProblem(header, "must have 1 to 255 visible ASCII characters without spaces")
        raise Invalid(problems=[problem])
    canonical = json.dumps(read_body(request, typed=False), sort_keys=True, separators=(",", ":")).encode()
    return IdempotencyKey(
        tenant_id=principal().tenant_id,
        method=request.method,
        path=request.path.rstrip("/"),
        key=key,
        body_sha256=hashlib.sha256(canonical).digest(),
    )


def answered(answer: Answer[Any]) -> Response:
    """The answer, marked when it is an earlier request's."""
    return json_answer(answer.body, answer.status, None if answer.fresh is not None else {REPLAYED: "true"})
