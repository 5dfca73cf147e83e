"""Shapes of what a tenant's images must be: policy, public keys, places, and names of registry credentials."""

from __future__ import annotations

from typing import Any

import marshmallow as ma
from marshmallow import fields

from app.api.arguments import StrictSchema
from app.api.fields import Choice, Text
from app.domain.image_trust import MAX_CREDENTIALS, MAX_KEYS, MAX_PEM, MAX_PLACES, NAME, ImagePolicy

POLICIES = tuple(policy.value for policy in ImagePolicy)
_NULL = "must not be null; to take all away give an empty one"
_POLICY = "off: any image; digest: images named by their digest; signed: by one of the keys; null: the fabric's own."
_NAMED = {"pattern": f"^{NAME}$", "maxLength": 63}
_EXAMPLE = "-----BEGIN PUBLIC KEY-----\n…\n-----END PUBLIC KEY-----\n"


def _most(count: int, what: str) -> Any:
    return ma.validate.Length(max=count, error=f"must not have more than {count} {what}")


class KeyAsked(StrictSchema):
    """A public key, as cosign writes it to cosign.pub."""

    name = Text(most=63, required=True, metadata={**_NAMED, "description": "What logs call it.", "example": "ci"})
    pem = Text(
        most=MAX_PEM, one_line=False, required=True, metadata={"description": "ECDSA P-256, PEM", "example": _EXAMPLE}
    )


class TrustChanges(StrictSchema):
    """What to change; what is left out stays as it is, what is given takes the place of all there was."""

    policy = Choice(*POLICIES, allow_none=True, metadata={"description": _POLICY})
    keys = fields.List(
        fields.Nested(KeyAsked, error_messages={"null": "must be an object"}),
        validate=_most(MAX_KEYS, "keys"),
        error_messages={"null": _NULL, "invalid": "must be an array of keys"},
        metadata={"description": "Besides these the fabric's own keys (CFAB_IMAGE_KEYS) count."},
    )
    repositories = fields.List(
        Text(most=512),
        validate=_most(MAX_PLACES, "places"),
        error_messages={"null": _NULL, "invalid": "must be an array of strings"},
        metadata={
            "description": "Places that images must come from, with all below them; signed ones go by the name that was"
            " signed. Empty: any place; a signature must then name the image's own repository.",
            "example": ["ghcr.io/acme"],
        },
    )
    credentials = fields.Dict(
        keys=Text(most=255),
        values=Text(most=63, metadata=_NAMED),
        validate=_most(MAX_CREDENTIALS, "registries"),
        error_messages={"null": _NULL, "invalid": "must be a JSON object"},
        metadata={
            "description": "For each registry the name of the tenant's credential, which lies on the nodes.",
            "example": {"ghcr.io": "team-ghcr"},
        },
    )


class KeyShown(ma.Schema):
    """A public key; `sha256` is that of the key in DER."""

    name = fields.String()
    pem = fields.String()
    sha256 = fields.String()


class TrustShown(ma.Schema):
    """What a tenant's images must be. `effective_policy` is its own policy or else the fabric's."""

    policy = Choice(*POLICIES, allow_none=True, metadata={"description": _POLICY})
    effective_policy = Choice(*POLICIES)
    keys = fields.List(fields.Nested(KeyShown))
    repositories = fields.List(fields.String())
    credentials = fields.Dict(keys=fields.String(), values=fields.String())
