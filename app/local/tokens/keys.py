"""The signing keys of a stack, in its data directory.

secrets/signing_key       the private key that signs, PEM, for its owner's eyes only
secrets/token_keys.json   the public keys that the stack's API trusts (JWKS): the present one first, then older ones
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.local.data import DataDirectory
from app.local.failure import StackError
from app.local.tokens.signing import SigningKey

PRIVATE, PUBLIC = "signing_key", "token_keys.json"
MAX_OLDER = 50
_ELSEWHERE = "run `cfab up` first, or name its data with --data"


class StackKeys:
    """The keys of one data directory. A crash between two steps leaves keys that fit together."""

    def __init__(self, root: Path) -> None:
        self._data = DataDirectory(root)
        self._secrets = root / "secrets"

    @property
    def public_file(self) -> Path:
        """The JWKS for the API."""
        return self._secrets / PUBLIC

    def ensure(self) -> None:
        """Makes the first key if there is none."""
        with self._alone():
            key = self._present() or SigningKey.new()
            # The public half first: a token is never signed with a key that the API has not been told of.
            trusted = self._trusted()
            if all(known.get("kid") != key.id for known in trusted):
                self._trust([key.public, *trusted])
            if not (self._secrets / PRIVATE).exists():
                self._data.write_secret(PRIVATE, key.pem)

    def signing_key(self) -> SigningKey:
        """The key that signs now. Raises StackError when there is none."""
        key = self._present()
        if key is None:
            raise StackError(f"there is no signing key in {self._secrets}; {_ELSEWHERE}")
        return key

    def public(self) -> dict[str, Any]:
        """The trusted keys as a JWKS."""
        return {"keys": self._trusted()}

    def rotate(self, keep_s: float | None) -> tuple[SigningKey, int]:
        """A new key signs from now on; the older ones stay trusted for `keep_s` seconds, or until they are retired.

        Returns the new key and the number of older ones that are still trusted.
        """
        with self._alone():
            self.signing_key()
            now = time.time()
            older = [known for known in self._trusted() if known.get("exp", now + 1) > now]
            if len(older) > MAX_OLDER:
                raise StackError(
                    f"{len(older)} older keys are trusted; first retire them: `cfab token rotate --retire`"
                )
            if keep_s is not None:
                ends_at = now + keep_s
                older = [{**known, "exp": min(ends_at, known.get("exp", ends_at))} for known in older]
            key = SigningKey.new()
            self._trust([key.public, *older])
            self._data.write_secret(PRIVATE, key.pem)
            return key, len(older)

    def retire(self) -> int:
        """Only the present key is trusted from now on; the number of those that no longer are."""
        with self._alone():
            key, trusted = self.signing_key(), self._trusted()
            left = [known for known in trusted if known.get("kid") == key.id]
            self._trust(left or [key.public])
            return len(trusted) - len(left)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One command at a time changes the keys."""
        try:
            lock = os.open(self._secrets, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError as exc:
            raise StackError(f"there are no keys in {self._secrets}; {_ELSEWHERE}") from exc
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _present(self) -> SigningKey | None:
        path = self._secrets / PRIVATE
        try:
            return SigningKey.read(path.read_bytes(), str(path))
        except FileNotFoundError:
            return None

    def _trusted(self) -> list[dict[str, Any]]:
        try:
            keys: list[dict[str, Any]] = json.loads(self.public_file.read_text(encoding="ascii"))["keys"]
            return keys
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError) as exc:
            raise StackError(f"{self.public_file} is damaged; delete it, and tokens of older keys with it") from exc

    def _trust(self, keys: list[dict[str, Any]]) -> None:
        self._data.write_secret(PUBLIC, json.dumps({"keys": keys}, indent=1))
