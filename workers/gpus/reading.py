"""One look at one GPU, and what every source of them promises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class GpuProcess:
    """A process that uses a GPU, of anyone's; None where the driver does not tell how much memory."""

    pid: int
    memory_bytes: int | None


@dataclass(frozen=True)
class Reading:
    """What a GPU is and does now. `error`: why it cannot be used. None: the driver does not tell."""

    uuid: str
    index: int
    model: str
    memory_bytes: int
    error: str = ""
    memory_used_bytes: int | None = None
    utilization_percent: int | None = None
    temperature_celsius: int | None = None
    processes: tuple[GpuProcess, ...] | None = None


class GpuSource(Protocol):
    """Where readings come from."""

    def read(self) -> Sequence[Reading]:
        """All GPUs by index. One that was seen before and no longer answers is still there, with its error."""

    def close(self) -> None:
        """Lets go of the driver; may be called again."""
