"""Programs by their SHA-256: fetched once under the policy, verified, kept read-only, evicted when old.

The one entrance of this package for the node agent. It must not know jobs, attempts or how programs are run.
"""

from __future__ import annotations

import logging
import re
import socket
import ssl
import threading
from pathlib import Path

from workers.artifacts.addresses import Resolver
from workers.artifacts.artifact import Artifact
from workers.artifacts.download import Downloader, Transfer
from workers.artifacts.errors import ArtifactError, CacheUnusable, FetchCancelled, InvalidDigest
from workers.artifacts.flight import Flight, Progress
from workers.artifacts.policy import FetchPolicy
from workers.artifacts.store import Store
from workers.artifacts.targets import Target, parse_target

_log = logging.getLogger(__name__)

_DIGEST = re.compile(r"[0-9a-f]{64}")


class ArtifactCache:
    """A cache in the directory `root` of at most `max_bytes`, apart from programs that are held or on their
    way.

    Safe to use from many threads; several processes of one user may share `root`. `resolver` looks names up
    in the manner of socket.getaddrinfo; `tls` replaces the host's own trust in certificate authorities.
    Raises CacheUnusable if `root` cannot be used safely.
    """

    def __init__(
        self,
        root: Path,
        max_bytes: int,
        policy: FetchPolicy,
        *,
        resolver: Resolver = socket.getaddrinfo,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._policy = policy
        self._store = Store(root, max_bytes)
        self._downloader = Downloader(policy, resolver, tls)
        self._lock = threading.Lock()
        self._flights: dict[tuple[str, Target], Flight] = {}
        self._closed = False

    def fetch(
        self,
        url: str,
        sha256: str,
        cancelled: threading.Event | None = None,
        progress: Progress | None = None,
    ) -> Artifact:
        """Return the program with this digest, held against eviction until it is released.

        The URL must be allowed by the policy even if the program is here already. Whoever asks for one digest
        at one URL shares one download. Different URLs are fetched side by side and the first right answer
        serves all, so that nobody's slow or wrong URL can fail another's job. `progress(received_bytes,
        total_bytes or None)` is called in the caller's thread, about ten times a second at most.

        Raises the errors of workers.artifacts.errors; FetchCancelled within 0.5 s after `cancelled` is set.
        """
        digest = sha256.lower()
        if not _DIGEST.fullmatch(digest):
            raise InvalidDigest(f"the SHA-256 is {sha256[:80]!r}; it must be 64 hexadecimal digits")
        target = parse_target(url, self._policy)
        if cancelled is not None and cancelled.is_set():
            raise FetchCancelled(f"the download of {target.shown} was cancelled")
        held = self._store.hold(digest)
        if held is None:
            held = self._fly(digest, target, cancelled, progress)
        if progress is not None:
            progress(held.size, held.size)
        return held

    def cached(self, url: str, sha256: str) -> Artifact | None:
        """Return the program if it is here already, held like `fetch` does, and None if it must be downloaded.

        Raises InvalidDigest and UrlRefused as `fetch` does; never waits for a network.
        """
        digest = sha256.lower()
        if not _DIGEST.fullmatch(digest):
            raise InvalidDigest(f"the SHA-256 is {sha256[:80]!r}; it must be 64 hexadecimal digits")
        parse_target(url, self._policy)
        return self._store.hold(digest)

    def close(self) -> None:
        """End the downloads under way and refuse new ones; what is held stays usable. Safe to repeat."""
        with self._lock:
            self._closed = True
            flights = list(self._flights.values())
        for flight in flights:
            flight.crash(CacheUnusable("the artifact cache was closed"))
            flight.transfer.hangup.call()

    def _fly(
        self, digest: str, target: Target, cancelled: threading.Event | None, progress: Progress | None
    ) -> Artifact:
        flight = self._board(digest, target)
        try:
            flight.wait(cancelled, progress)
            held = self._store.hold(digest)
            if held is None:
                raise CacheUnusable(f"the cache entry {digest} was removed by somebody else")
            held.cached = flight.cached
            return held
        finally:
            self._disembark(flight)

    def _board(self, digest: str, target: Target) -> Flight:
        with self._lock:
            if self._closed:
                raise CacheUnusable("the artifact cache was closed")
            flight = self._flights.get((digest, target))
            if flight is not None:
                flight.join()
                return flight
            flight = Flight(digest, Transfer(target, self._policy.timeout_s))
            flight.join()
            name = f"fetch-{digest[:12]}"
            thread = threading.Thread(target=self._run, args=(flight,), name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError as exc:
                raise CacheUnusable(f"no thread could be started for a download: {exc}") from exc
            self._flights[(digest, target)] = flight
            return flight

    def _disembark(self, flight: Flight) -> None:
        # Under the lock, so that nobody boards a flight that the last one is just leaving.
        with self._lock:
            if flight.leave():
                self._forget(flight)

    def _forget(self, flight: Flight) -> None:
        key = (flight.digest, flight.transfer.target)
        if self._flights.get(key) is flight:
            del self._flights[key]

    def _run(self, flight: Flight) -> None:
        try:
            self._land(flight)
        except ArtifactError as exc:
            self._crash(flight, exc)
        except BaseException as exc:
            _log.exception("the download of %s failed unexpectedly", flight.transfer.target.shown)
            error = CacheUnusable(f"an unexpected error ended {flight.transfer.target.shown}: {exc!r}")
            error.__cause__ = exc
            self._crash(flight, error)

    def _land(self, flight: Flight) -> None:
        digest = flight.digest
        hold = self._store.verify(digest, flight.transfer.check)
        cached = hold is not None
        if hold is None:
            with self._store.part(digest) as part:
                self._downloader.download(flight.transfer, digest, part.write)
                hold = self._store.publish(part, digest)
        with self._lock:
            self._forget(flight)
            siblings = [other for other in self._flights.values() if other.digest == digest]
        for sibling in siblings:
            theirs = self._store.hold(digest)
            if theirs is not None:
                sibling.land(theirs, cached)
                sibling.transfer.hangup.call()
        flight.land(hold, cached)

    def _crash(self, flight: Flight, error: ArtifactError) -> None:
        with self._lock:
            self._forget(flight)
        flight.crash(error)
