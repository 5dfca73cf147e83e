"""What one chaos run is asked for: its seed, its size, and the short leases that let recovery fit into it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

LEASE_S = 8.0
RENEW_S = 1.0
FENCE_MARGIN_S = 2.0
SLOTS = 6
CPUS_MILLI = 4000
MEMORY_MIB = 2048
GPUS = "2xA100-80GB"
NODES = ("chaos-a", "chaos-b")

FAULTS = ",".join(
    f"{name}:{point}:{chance}"
    for name, before, after in (
        ("claim", 0.02, 0.04), ("renew", 0.02, 0.03), ("start", 0.02, 0.03), ("output", 0.01, 0.03),
        ("finish", 0.03, 0.05), ("hand_back", 0.05, 0.1), ("register", 0.05, 0.1), ("reap", 0.05, 0.05),
    )
    for point, chance in (("before", before), ("after", after))
)  # fmt: skip
"""Database faults of the agents: a transaction fails before its commit, or commits and says that it failed."""


@dataclass(frozen=True)
class Options:
    """One run: `jobs` jobs while things are hit for `seconds`, then at most `patience_s` of calm to finish."""

    seed: int = field(default_factory=lambda: random.SystemRandom().randrange(1_000_000))
    jobs: int = 300
    seconds: float = 240.0
    patience_s: float = 240.0
    broker_kills: int = 50
    keep: bool = False
