"""Why a program could not be had, as one small tree.

`retryable`: a later try may succeed. `node_fault`: this host is to blame, so the job must not pay for the
retry.
"""

from __future__ import annotations


class ArtifactError(Exception):
    """A program could not be fetched."""

    retryable: bool = False
    node_fault: bool = False


class InvalidDigest(ArtifactError):
    """The expected SHA-256 is not 64 hexadecimal digits."""


class ChecksumMismatch(ArtifactError):
    """The bytes at the URL are not the ones the job asked for. Never retried: it would run something else."""


class UrlRefused(ArtifactError):
    """The URL, or an address behind it or behind one of its redirects, is not allowed by the policy."""


class TooLarge(ArtifactError):
    """The program is larger than the policy allows."""


class FetchFailed(ArtifactError):
    """The server or the way to it failed. An answer such as 404 is the job's own fault and not retryable."""

    def __init__(self, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable


class FetchCancelled(ArtifactError):
    """The caller asked to stop before the program was there."""


class CacheUnusable(ArtifactError):
    """The cache directory of this host cannot be used; another host, or a later try, may do."""

    retryable = True
    node_fault = True


class DiskFull(CacheUnusable):
    """The disk under the cache is full and nothing more could be evicted."""
