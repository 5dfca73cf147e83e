"""Whether a container image may be used: the policy, and the port through which signatures are verified."""

from __future__ import annotations

from typing import Protocol
from uuid import UUID

from app.domain.errors import Refused
from config.settings import Settings


class Verifier(Protocol):
    """Checks an image's signature against what a tenant trusts."""

    def verify(self, tenant_id: UUID, image: str) -> None:
        """Returns when the image is signed as it must be. Raises Refused, or Unavailable when its registry is away."""


def check_image(settings: Settings, tenant_id: UUID, image: str, verifier: Verifier | None = None) -> None:
    """Returns when `tenant_id` may use `image`. Ask before a job is made, never inside its transaction.

    With CFAB_IMAGE_SIGNATURES=required a server without a verifier refuses every image: what cannot be checked is
    not run. Raises Refused and what the verifier raises.
    """
    if settings.image_signatures == "off":
        return
    if verifier is None:
        raise Refused(
            "Image signatures are required here and this server has no verifier, so no image can be accepted; "
            "its operator can set CFAB_IMAGE_SIGNATURES=off.",
            image=image,
        )
    verifier.verify(tenant_id, image)
