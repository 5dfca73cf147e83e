"""One download: redirects, limits, hash. It hands the bytes on and knows nothing of the cache they go to."""

from __future__ import annotations

import hashlib
import http.client
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

from workers.artifacts.addresses import Endpoint, Resolver, resolve
from workers.artifacts.connection import Hangup, PinnedConnection
from workers.artifacts.errors import ArtifactError, ChecksumMismatch, FetchCancelled, FetchFailed, TooLarge
from workers.artifacts.policy import FetchPolicy
from workers.artifacts.targets import Target, follow

_READ_BYTES = 256 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_RETRYABLE_STATUSES = frozenset({408, 429})


@dataclass
class Transfer:
    """How far a download is. Written by the thread that downloads, read by those who wait for it."""

    target: Target
    timeout_s: float
    received_bytes: int = 0
    total_bytes: int | None = None
    hangup: Hangup = field(default_factory=Hangup)
    started_at: float = field(default_factory=time.monotonic)

    @property
    def deadline(self) -> float:
        """On the monotonic clock."""
        return self.started_at + self.timeout_s

    def check(self) -> None:
        """Raise FetchCancelled after a hang-up, FetchFailed (retryable) after the deadline."""
        if self.hangup.called:
            raise FetchCancelled(f"the download of {self.target.shown} was cancelled")
        if time.monotonic() >= self.deadline:
            raise FetchFailed(f"{self.target.shown} was not complete after {self.timeout_s:g} s")


class Downloader:
    """Fetches over HTTP within one policy. Safe to share between threads; holds no connection."""

    def __init__(self, policy: FetchPolicy, resolver: Resolver, tls: ssl.SSLContext | None = None) -> None:
        self._policy = policy
        self._resolver = resolver
        self._tls = tls
        self._tls_lock = threading.Lock()

    def download(self, transfer: Transfer, sha256: str, write: Callable[[bytes], None]) -> None:
        """Pass the body at the transfer's target to `write`, piece by piece; return once it proved to be
        `sha256`.

        On any error bytes may have been written that must not be used. Raises ArtifactError, and whatever
        `write` raises.
        """
        target = transfer.target
        for _ in range(self._policy.max_redirects + 1):
            transfer.check()
            with self._answer(target, transfer) as response:
                if response.status not in _REDIRECTS:
                    self._receive(target, response, transfer, sha256, write)
                    return
                location = response.headers.get("Location")
            if location is None:
                raise FetchFailed(f"{target.shown} answers {response.status} without a Location", retryable=False)
            target = follow(target, location, self._policy)
        raise FetchFailed(
            f"{transfer.target.shown} redirects more than {self._policy.max_redirects} times", retryable=False
        )

    @contextmanager
    def _answer(self, target: Target, transfer: Transfer) -> Iterator[http.client.HTTPResponse]:
        connection = self._connection(target, transfer)
        try:
            with _network_errors(target, transfer):
                response = connection.get()
            # http.client gives the socket over to the answer, which has to be closed by itself.
            with closing(response):
                yield response
        finally:
            transfer.hangup.forget()
            connection.close()

    def _connection(self, target: Target, transfer: Transfer) -> PinnedConnection:
        if target.address is None:
            endpoints = resolve(target.host, target.port, self._policy, self._resolver)
        else:
            family = socket.AF_INET if target.address.version == 4 else socket.AF_INET6
            endpoints = [Endpoint(family, (target.host, target.port))]
        return PinnedConnection(
            target,
            endpoints,
            self._tls_context() if target.scheme == "https" else None,
            self._policy.connect_timeout_s,
            self._policy.read_timeout_s,
            transfer.deadline,
            transfer.hangup,
        )

    def _receive(
        self,
        target: Target,
        response: http.client.HTTPResponse,
        transfer: Transfer,
        sha256: str,
        write: Callable[[bytes], None],
    ) -> None:
        _require_ok(target, response.status)
        # With chunked encoding http.client ignores the length, as it must.
        total = response.length
        self._require_size(target, total or 0)
        transfer.total_bytes = total
        hasher = hashlib.sha256()
        while True:
            transfer.check()
            with _network_errors(target, transfer):
                piece = response.read1(_READ_BYTES)
            if not piece:
                break
            self._require_size(target, transfer.received_bytes + len(piece))
            hasher.update(piece)
            write(piece)
            transfer.received_bytes += len(piece)
        transfer.check()
        if total is not None and transfer.received_bytes < total:
            raise FetchFailed(f"{target.shown} broke off after {transfer.received_bytes} of {total} bytes")
        if hasher.hexdigest() != sha256:
            encoding = response.headers.get("Content-Encoding", "identity")
            hint = "" if encoding == "identity" else f" (sent with Content-Encoding {encoding!r}, which is kept)"
            raise ChecksumMismatch(
                f"{target.shown} has SHA-256 {hasher.hexdigest()}, not {sha256} as the job says{hint}"
            )

    def _require_size(self, target: Target, size_bytes: int) -> None:
        if size_bytes > self._policy.max_bytes:
            raise TooLarge(f"{target.shown} has more than the {self._policy.max_bytes} bytes allowed here")

    def _tls_context(self) -> ssl.SSLContext:
        with self._tls_lock:
            if self._tls is None:
                self._tls = _default_tls_context()
            return self._tls


def _default_tls_context() -> ssl.SSLContext:
    # The host's own store comes first, because that is where operators put their private authorities.
    paths = ssl.get_default_verify_paths()
    places: tuple[str | None, ...] = (paths.cafile, paths.capath)  # The stubs say they are always there; they are not.
    if any(place is not None for place in places):
        return ssl.create_default_context()
    import certifi

    return ssl.create_default_context(cafile=certifi.where())


def _require_ok(target: Target, status: int) -> None:
    if status == 200:
        return
    raise FetchFailed(f"{target.shown} answers {status}", retryable=status >= 500 or status in _RETRYABLE_STATUSES)


@contextmanager
def _network_errors(target: Target, transfer: Transfer) -> Iterator[None]:
    try:
        yield
    except ArtifactError:
        raise
    except ssl.SSLCertVerificationError as exc:
        raise FetchFailed(f"the certificate of {target.shown} is not accepted: {exc.verify_message}") from exc
    except (OSError, http.client.HTTPException) as exc:
        # After a hang-up or at the deadline the broken connection is only the consequence.
        transfer.check()
        reason = str(exc) or type(exc).__name__
        raise FetchFailed(f"{target.shown} could not be fetched: {reason}") from exc
