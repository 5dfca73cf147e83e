"""Who has shown a right to which images on this host: everybody, or tenants with credentials of their own.

Without it a private image would be anybody's on this host who knows its digest, once its owner's job has run here. An
image that is unknown, because another keeper of the engine brought it or the list was lost, is nobody's: the registry
is asked.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Collection, Iterable

EVERYBODY = ""


class Rights:
    """Digests of images, each with those who may use it. All methods may be called from any thread."""

    def __init__(self, path: str) -> None:
        """Read what was noted at `path` before."""
        self._path = path
        self._lock = threading.Lock()
        self._users: dict[str, list[str]] = {}
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            with open(path, encoding="utf-8") as file:
                self._users = {str(one): [str(user) for user in users] for one, users in json.load(file).items()}

    def are_shown(self, digests: Iterable[str], user: str) -> bool:
        """Whether `user` may have the image with these digests, whose content is one and the same."""
        wanted = {user, EVERYBODY}
        with self._lock:
            return any(not wanted.isdisjoint(self._users.get(digest, ())) for digest in digests)

    def are_private(self, digests: Iterable[str]) -> bool:
        """Whether the image is known to be had with credentials, and not to be everybody's."""
        with self._lock:
            known = [users for digest in digests if (users := self._users.get(digest))]
        return bool(known) and not any(EVERYBODY in users for users in known)

    def allow(self, digest: str, user: str) -> None:
        """The registry let `user` have the image; EVERYBODY where that took no credentials of a tenant's own."""
        with self._lock:
            users = self._users.setdefault(digest, [])
            if user not in users:
                users.append(user)
                self._save()

    def prune(self, there: Collection[str]) -> None:
        """Forget all images but those with a digest in `there`."""
        with self._lock:
            gone = [digest for digest in self._users if digest not in there]
            for digest in gone:
                del self._users[digest]
            if gone:
                self._save()

    def _save(self) -> None:
        with contextlib.suppress(OSError):
            with open(f"{self._path}.new", "w", encoding="utf-8") as file:
                json.dump(self._users, file)
            os.replace(f"{self._path}.new", self._path)
