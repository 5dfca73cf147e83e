"""Where an issuer's keys come from: a file, or an https address. Each read is one try, without memory."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import requests
import urllib3

from app.api.auth.loopback import is_loopback_name

MAX_BYTES = 2**18
CONNECT_S, READ_S, TOTAL_S = 3.0, 3.0, 5.0


class NotRead(Exception):
    """The keys cannot be had at the moment; the message says why."""


class Source(Protocol):
    """Gives the text of a JWKS."""

    def read(self) -> bytes:
        """The text, at most MAX_BYTES of it. Raises NotRead."""


class FileSource:
    """A JWKS in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def mark(self) -> tuple[int, ...]:
        """Changes whenever the file does: by writing in place or by a new file in its place. Raises NotRead."""
        try:
            seen = self.path.stat()
        except OSError as exc:
            raise NotRead(f"{self.path}: {exc.strerror}") from exc
        return seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns

    def settled(self) -> bool:
        """Whether the last change is so old that a further one would show: file times tick every few milliseconds."""
        try:
            return time.time() - self.path.stat().st_mtime > 1.0
        except OSError:
            return False

    def read(self) -> bytes:
        """The file's bytes."""
        try:
            with self.path.open("rb") as file:
                text = file.read(MAX_BYTES + 1)
        except OSError as exc:
            raise NotRead(f"{self.path}: {exc.strerror}") from exc
        if len(text) > MAX_BYTES:
            raise NotRead(f"{self.path} has more than {MAX_BYTES} bytes")
        return text


class UrlSource:
    """A JWKS behind an https address (http only on loopback addresses). Follows no redirect."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._http = requests.Session()
        self._http.auth = _no_credentials
        # A proxy that the environment names is asked, but never for this machine's own addresses.
        self._http.trust_env = not is_loopback_name(urlsplit(url).hostname or "")

    def read(self) -> bytes:
        """The answer's body, within TOTAL_S."""
        until = time.monotonic() + TOTAL_S
        try:
            with self._http.get(
                self.url, timeout=(CONNECT_S, READ_S), allow_redirects=False, stream=True,
                headers={"Accept": "application/jwk-set+json, application/json"},
            ) as answer:  # fmt: skip
                if answer.status_code != 200:
                    raise NotRead(f"{self.url} answered {answer.status_code}")
                return self._body(answer, until)
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as exc:
            raise NotRead(f"{self.url} cannot be asked ({type(exc).__name__})") from exc

    def _body(self, answer: requests.Response, until: float) -> bytes:
        text = bytearray()
        # What has arrived, not a piece of a fixed size: that is awaited whole, and a server that drips could hold the
        # thread for hours.
        while piece := answer.raw.read1(16_384, decode_content=True):
            text += piece
            if len(text) > MAX_BYTES:
                raise NotRead(f"{self.url} sent more than {MAX_BYTES} bytes")
            if time.monotonic() > until:
                raise NotRead(f"{self.url} took longer than {TOTAL_S:g} s")
        return bytes(text)


def source_of(keys: str) -> FileSource | UrlSource:
    """The source that a setting names."""
    return UrlSource(keys) if "://" in keys else FileSource(Path(keys))


def _no_credentials(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Keeps an entry of ~/.netrc from being sent along."""
    return request
