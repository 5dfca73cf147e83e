"""Which images a tenant may run: the policy, the keys that it trusts, the places images come from, and by which
credentials its registries are signed in at. Values only; a credential is a name here, never the secret itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from app.domain.errors import FieldProblem
from app.domain.image_name import is_place, is_registry

MAX_KEYS = 32
MAX_PLACES = 100
MAX_CREDENTIALS = 100
MAX_PEM = 4096
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
_NAME = re.compile(rf"{NAME}\Z")


class ImagePolicy(StrEnum):
    """What an image must have: nothing; a digest in its name; a signature by a trusted key."""

    OFF = "off"
    DIGEST = "digest"
    SIGNED = "signed"


@dataclass(frozen=True)
class TrustedKey:
    """A public key (ECDSA P-256, PEM) under the name that logs and refusals call it by."""

    name: str
    pem: str


@dataclass(frozen=True)
class ImageTrust:
    """What one tenant may run. `policy` None is the fabric's own; `repositories` empty is any.

    `credentials` maps a registry (host[:port]) to the name of the tenant's credential for it.
    """

    policy: ImagePolicy | None = None
    keys: tuple[TrustedKey, ...] = ()
    repositories: tuple[str, ...] = ()
    credentials: Mapping[str, str] = field(default_factory=dict)


CHANGEABLE = frozenset({"policy", "keys", "repositories", "credentials"})


def trust_problems(changes: Mapping[str, Any]) -> list[FieldProblem]:
    """Everything that keeps `changes` (names of CHANGEABLE) from being made, but for keys that cannot be read."""
    return list(_problems(changes))


def _problems(changes: Mapping[str, Any]) -> Iterator[FieldProblem]:
    for name, value in changes.items():
        if name == "policy":
            if value is not None and value not in tuple(ImagePolicy):
                yield FieldProblem(name, f"must be one of {', '.join(ImagePolicy)}, or null for the fabric's own")
        elif name == "keys":
            yield from _key_problems(value)
        elif name == "repositories":
            yield from _place_problems(value)
        elif name == "credentials":
            yield from _credential_problems(value)
        else:
            yield FieldProblem(name, f"cannot be changed; allowed: {', '.join(sorted(CHANGEABLE))}")


def _key_problems(keys: Sequence[TrustedKey]) -> Iterator[FieldProblem]:
    if len(keys) > MAX_KEYS:
        yield FieldProblem("keys", f"has {len(keys)} keys; at most {MAX_KEYS} are allowed")
    names = [key.name for key in keys]
    for place, key in enumerate(keys):
        if not _NAME.match(key.name):
            yield FieldProblem(f"keys[{place}].name", f"must match {NAME}, not {ascii(key.name)[:80]}")
        elif names.index(key.name) != place:
            yield FieldProblem(f"keys[{place}].name", f"is there twice: {key.name}")
        if len(key.pem) > MAX_PEM:
            yield FieldProblem(f"keys[{place}].pem", f"has {len(key.pem)} characters; a key has fewer than {MAX_PEM}")


def _place_problems(places: Sequence[str]) -> Iterator[FieldProblem]:
    if len(places) > MAX_PLACES:
        yield FieldProblem("repositories", f"has {len(places)} places; at most {MAX_PLACES} are allowed")
    for at, place in enumerate(places):
        if not is_place(place):
            yield FieldProblem(
                f"repositories[{at}]",
                f"must be a registry or a repository with its registry, such as ghcr.io/acme, not {ascii(place)[:80]}",
            )


def _credential_problems(credentials: Mapping[str, str]) -> Iterator[FieldProblem]:
    if len(credentials) > MAX_CREDENTIALS:
        yield FieldProblem("credentials", f"has {len(credentials)} registries; at most {MAX_CREDENTIALS} are allowed")
    for registry, name in credentials.items():
        if not is_registry(registry):
            problem = f"must be named by registries (host or host:port), not {ascii(registry)[:80]}"
            yield FieldProblem("credentials", problem)
        elif not _NAME.match(name):
            yield FieldProblem(f"credentials.{registry}", f"must be a name that matches {NAME}, not {ascii(name)[:80]}")
