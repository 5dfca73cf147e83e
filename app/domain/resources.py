"""What a job holds while it runs and what a node has: CPUs, memory, GPUs.

CPUs are thousandths, memory is bytes. A shape is rounded up to a coarse grid, so that jobs of one shape share one
scheduling key however finely users vary their asks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

MIB = 2**20
GIB = 2**30


@dataclass(frozen=True)
class Resources:
    """One allocation's share: thousandths of a CPU, bytes, GPUs with at least `gpu_memory_bytes` each."""

    cpus_milli: int
    memory_bytes: int
    gpus: int = 0
    gpu_memory_bytes: int = 0
    gpu_model: str = ""

    def rounded(self) -> Resources:
        """This shape rounded up: CPUs by 0.1 to 1, 0.5 to 4, 1 to 64, then 8; memory by eighths of a power of two.

        GPU memory stays as asked: cards come in odd sizes, and an ask for all of one must still fit it.
        """
        return replace(
            self,
            cpus_milli=_round_cpus(self.cpus_milli),
            memory_bytes=_round_eighth(self.memory_bytes, 16 * MIB),
        )


@dataclass(frozen=True)
class Gpu:
    """One GPU of a node; `model` is its name as NVML gives it, `healthy` is false when taken out, `reason` says why."""

    uuid: str
    model: str
    memory_bytes: int
    index: int = 0
    healthy: bool = True
    reason: str = ""

    def suits(self, need: Resources) -> bool:
        """Whether the GPU has the memory and the model that `need` names (a part of the name, any case)."""
        wanted = need.gpu_model.lower()
        return self.healthy and self.memory_bytes >= need.gpu_memory_bytes and wanted in self.model.lower()


@dataclass(frozen=True)
class Free:
    """What a node can still give: slots, CPUs, memory, and its free GPUs by UUID."""

    slots: int
    cpus_milli: int
    memory_bytes: int
    gpus: tuple[Gpu, ...] = ()

    def fits(self, need: Resources) -> bool:
        """Whether one more allocation of `need` fits."""
        return (
            self.slots >= 1
            and self.cpus_milli >= need.cpus_milli
            and self.memory_bytes >= need.memory_bytes
            and (need.gpus == 0 or sum(gpu.suits(need) for gpu in self.gpus) >= need.gpus)
        )

    def take(self, need: Resources) -> tuple[Free, tuple[Gpu, ...]]:
        """What is left after `need`, and the GPUs given: the smallest that suit, so that large ones stay free."""
        suited = sorted((g for g in self.gpus if g.suits(need)), key=lambda g: (g.memory_bytes, g.index))
        given = tuple(suited[: need.gpus])
        return self.less(need, given), given

    def less(self, need: Resources, given: tuple[Gpu, ...]) -> Free:
        """What is left after one allocation of `need` that got these GPUs."""
        return Free(
            slots=self.slots - 1,
            cpus_milli=self.cpus_milli - need.cpus_milli,
            memory_bytes=self.memory_bytes - need.memory_bytes,
            gpus=tuple(g for g in self.gpus if g not in given),
        )


def total(shares: Iterable[Resources]) -> Resources:
    """The sum of several shares; GPU memory is counted per GPU held."""
    cpus = memory = gpus = gpu_memory = 0
    for share in shares:
        cpus += share.cpus_milli
        memory += share.memory_bytes
        gpus += share.gpus
        gpu_memory += share.gpus * share.gpu_memory_bytes
    return Resources(cpus, memory, gpus, gpu_memory)


def _round_cpus(milli: int) -> int:
    for limit, step in ((1000, 100), (4000, 500), (64_000, 1000)):
        if milli <= limit:
            return -(-milli // step) * step
    return -(-milli // 8000) * 8000


def _round_eighth(value: int, least: int) -> int:
    """`value` rounded up to the next of eight steps between powers of two, at least `least`."""
    if value <= least:
        return least
    step = max(least, (1 << (value - 1).bit_length()) // 16)
    return -(-value // step) * step
