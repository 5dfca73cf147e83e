"""Ids of jobs: UUIDs of version 7 (RFC 9562, section 5.7), so that newer jobs sort after older ones."""

from __future__ import annotations

from uuid import UUID


def uuid7(unix_ms: int, sequence: int, random_bits: int) -> UUID:
    """A UUID of version 7 from a time in milliseconds, a 12-bit sequence inside a batch and 62 random bits."""
    value = (
        (unix_ms & (2**48 - 1)) << 80 | 0x7 << 76 | (sequence & 0xFFF) << 64 | 0b10 << 62 | random_bits & (2**62 - 1)
    )
    return UUID(int=value)
