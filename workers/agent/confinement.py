"""How a node confines its jobs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Confinement:
    """How this node confines its jobs: the sandbox in use, and what is hidden from them."""

    sandbox: str = "off"
    network: str = "host"
    hide: tuple[str, ...] = ()
