"""Which images on this host were brought with a tenant's own credentials, and who has shown that it may have them.

Without it a private image would be anybody's on this host who knows its digest, once its owner's job has run here.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Collection, Iterable

MOST = 4096
KEPT_S = 86_400.0


class PrivateImages:
    """Digests of images, each with those who may use it. All methods may be called from any thread."""

    def __init__(self, path: str) -> None:
        """Read what was noted at `path` before."""
        self._path = path
        self._lock = threading.Lock()
        self._known: dict[str, tuple[float, list[str]]] = {}
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            with open(path, encoding="utf-8") as file:
                for digest, (at, users) in json.load(file).items():
                    self._known[str(digest)] = float(at), [str(user) for user in users]

    def barred(self, digests: Iterable[str], user: str) -> str | None:
        """The first of an image's digests that `user` has yet to show a right to; None when it may have the image."""
        with self._lock:
            return next((one for one in digests if one in self._known and user not in self._known[one][1]), None)

    def allow(self, digest: str, user: str) -> None:
        """Let a user have a private image. Call it before the image is brought, so that no crash leaves it open."""
        with self._lock:
            users = self._known.get(digest, (0.0, []))[1]
            self._known[digest] = time.time(), list(dict.fromkeys((*users, user)))
            self._save()

    def open(self, digest: str) -> None:
        """Everybody can have it: it was to be had without a tenant's credentials."""
        with self._lock:
            if self._known.pop(digest, None) is not None:
                self._save()

    def prune(self, there: Collection[str]) -> None:
        """Forget images that are long gone, if very many are known; `there` are the digests on this host."""
        with self._lock:
            if len(self._known) > MOST:
                old = time.time() - KEPT_S
                self._known = {one: known for one, known in self._known.items() if one in there or known[0] > old}
                self._save()

    def _save(self) -> None:
        with contextlib.suppress(OSError):
            with open(f"{self._path}.new", "w", encoding="utf-8") as file:
                json.dump(self._known, file)
            os.replace(f"{self._path}.new", self._path)
