"""What an engine's words about an image mean: it will never run, or it cannot be had just now."""

from __future__ import annotations

import re

from workers.containers.reference import DEFAULT_HOST, Reference

_REFUSALS = re.compile(
    r"\b(?:manifest unknown|not found|does not exist|access denied|unauthorized|authentication required"
    r"|no basic auth|no matching manifest|invalid reference|invalid checksum|verification failed"
    r"|unexpected commit digest|unsupported|name unknown)\b",
    re.IGNORECASE,
)
_FAULTS = re.compile(
    r"\b(?:dial tcp|connection (?:refused|reset)|timeout|timed out|no such host|i/o|no space left|eof|toomanyrequests"
    r"|tls)\b",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"\bhttps?://[^\s\"]+")


class ImageRefused(Exception):
    """The image cannot be had, and trying again will not help."""


class ImageUnavailable(Exception):
    """The image cannot be had now: its registry is away, or this host is in trouble."""


def trouble(reference: Reference, name: str, status: int, message: str) -> Exception:
    """What an engine's refusal to resolve or pull an image means: ImageRefused or ImageUnavailable, in its words."""
    text = f"image {name} cannot be pulled: {message}"
    said = _without_names(reference, message)
    if _FAULTS.search(said):
        return ImageUnavailable(text)
    if status in (400, 401, 403, 404) or _REFUSALS.search(said):
        return ImageRefused(text)
    return ImageUnavailable(text)


def _without_names(reference: Reference, message: str) -> str:
    """An engine's words without addresses and the image's names, which are its user's: they mean nothing."""
    said = _ADDRESS.sub("", message)
    path = reference.repository.removeprefix(f"{reference.host}/")
    names = {reference.repository, f"{DEFAULT_HOST}/library/{path}", f"{reference.host}/{path}", path, reference.host}
    for name in sorted(names, key=len, reverse=True):
        said = re.sub(rf"(?<![\w./:-]){re.escape(name)}(?:[:@][\w:.-]+)?(?![\w/-])", "", said)
    return said
