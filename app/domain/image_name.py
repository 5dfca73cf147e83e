"""Names of container images, read as Docker reads them: registry, path, tag and digest in their full form."""

from __future__ import annotations

import re
from dataclasses import dataclass

DOCKER_HUB = "docker.io"
MAX_CHARS = 512
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9A-Fa-f:]+\])(?::[0-9]{{1,5}})?\Z")
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_PART}(?:/{_PART})*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")


class BadImageName(ValueError):
    """Not the name of an image; the message says what is wrong."""


@dataclass(frozen=True)
class ImageName:
    """An image's name in full: `busybox` is `library/busybox` of docker.io, with the tag latest."""

    registry: str
    path: str
    tag: str | None
    digest: str | None

    @property
    def repository(self) -> str:
        """Registry and path: what signatures and policies speak of."""
        return f"{self.registry}/{self.path}"

    def pinned(self, digest: str) -> str:
        """The name of exactly the image with that digest, as an engine takes it."""
        return f"{self.repository}@{digest}"

    def lies_in(self, place: str) -> bool:
        """Whether its repository is `place`, or lies below it: `ghcr.io/acme` holds ghcr.io/acme/tool, not acme2."""
        return self.repository == place or self.repository.startswith(f"{place}/")


def parse_image_name(text: str) -> ImageName:
    """Read `[registry[:port]/]path[:tag][@sha256:…]`. Raises BadImageName."""
    if not text or len(text) > MAX_CHARS:
        raise BadImageName(f"image name of {len(text)} characters: it must have 1 to {MAX_CHARS}")
    rest, at, digest = text.partition("@")
    if at and not _DIGEST.match(digest):
        raise BadImageName(f"image {text!r}: after @ comes sha256: and 64 hexadecimal digits in lower case")
    tag: str | None = None
    if ":" in rest.rpartition("/")[2]:
        rest, _, tag = rest.rpartition(":")
        if not _TAG.match(tag):
            raise BadImageName(f"image {text!r}: {tag!r} is not a tag")
    registry, path = split_registry(rest)
    if not is_registry(registry):
        raise BadImageName(f"image {text!r}: {registry!r} is not a registry's address")
    if not _PATH.match(path) or path == "library/sha256":
        raise BadImageName(f"image {text!r}: {path!r} is not a repository's name, which is in lower case")
    return ImageName(registry, path, tag if digest else tag or "latest", digest or None)


def split_registry(repository: str) -> tuple[str, str]:
    """A repository as people write it as registry and path."""
    first, slash, rest = repository.partition("/")
    if not (slash and ("." in first or ":" in first or first == "localhost")):
        first, rest = DOCKER_HUB, repository
    if first in ("index.docker.io", "registry-1.docker.io"):
        first = DOCKER_HUB
    if first == DOCKER_HUB and "/" not in rest:
        rest = f"library/{rest}"
    return first, rest


def is_registry(text: str) -> bool:
    """Whether this can be a registry's address: a host, with or without a port."""
    return len(text) <= 255 and _REGISTRY.match(text) is not None


def is_place(text: str) -> bool:
    """Whether this can be a place of repositories: a registry, or a repository of one with what lies below it."""
    registry, slash, path = text.partition("/")
    named = "." in registry or ":" in registry or registry == "localhost"
    return named and len(text) <= MAX_CHARS and is_registry(registry) and (not slash or _PATH.match(path) is not None)
