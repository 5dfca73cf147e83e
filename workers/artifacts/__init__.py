"""Verified downloads and the cache that keeps them: `ArtifactCache.fetch(url, sha256)`."""

from workers.artifacts.artifact import Artifact
from workers.artifacts.cache import ArtifactCache
from workers.artifacts.errors import (
    ArtifactError,
    CacheUnusable,
    ChecksumMismatch,
    DiskFull,
    FetchCancelled,
    FetchFailed,
    InvalidDigest,
    TooLarge,
    UrlRefused,
)
from workers.artifacts.policy import FetchPolicy

__all__ = [
    "Artifact",
    "ArtifactCache",
    "ArtifactError",
    "CacheUnusable",
    "ChecksumMismatch",
    "DiskFull",
    "FetchCancelled",
    "FetchFailed",
    "FetchPolicy",
    "InvalidDigest",
    "TooLarge",
    "UrlRefused",
]
