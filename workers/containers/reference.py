"""Names of container images: host, repository, tag and digest, read as Docker reads them."""

from __future__ import annotations

import re
from typing import NamedTuple

DEFAULT_HOST = "docker.io"
_HOST = r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[0-9A-Fa-f:]+\]"
_HOST_PORT = re.compile(rf"(?:{_HOST})(?::[0-9]{{1,5}})?\Z")
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_PART}(?:/{_PART})*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
MAX_CHARS = 512


class BadReference(ValueError):
    """Not the name of an image; the message says what is wrong."""


class Reference(NamedTuple):
    """An image's name; `repository` is written as the user did, host included if there was one."""

    host: str
    repository: str
    tag: str | None
    digest: str | None

    @property
    def name(self) -> str:
        """What to ask the engine for: the digest if there is one, else the tag."""
        if self.digest is not None:
            return f"{self.repository}@{self.digest}"
        return f"{self.repository}:{self.tag or 'latest'}"

    def pinned(self, digest: str) -> str:
        """The name of exactly the image with that digest."""
        return f"{self.repository}@{digest}"


def parse_reference(text: str) -> Reference:
    """Read `[host[:port]/]path[:tag][@sha256:…]`. Raises BadReference."""
    if not text or len(text) > MAX_CHARS:
        raise BadReference(f"image name of {len(text)} characters: it must have 1 to {MAX_CHARS}")
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.match(digest):
        raise BadReference(f"image {text!r}: after @ comes sha256: and 64 hexadecimal digits in lower case")
    tag: str | None = None
    if ":" in rest.rpartition("/")[2]:
        rest, _, tag = rest.rpartition(":")
        if not _TAG.match(tag):
            raise BadReference(f"image {text!r}: {tag!r} is not a tag")
    first, slash, path = rest.partition("/")
    named = bool(slash) and ("." in first or ":" in first or first == "localhost")
    host, path = (first, path) if named else (DEFAULT_HOST, rest)
    if named and not _HOST_PORT.match(host):
        raise BadReference(f"image {text!r}: {host!r} is not a registry's address")
    if not _PATH.match(path) or rest == "sha256":
        raise BadReference(f"image {text!r}: {path!r} is not a repository's name, which is in lower case")
    return Reference(host, rest, tag, digest or None)
