"""What a job holds while it runs and what a node has: CPUs, memory, GPUs.

CPUs are thousandths, memory is bytes. A shape is rounded up to a coarse grid, so that jobs of one shape share one
scheduling key however finely users vary their asks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

MIB = 2**20
GIB = 2**30


@dataclass(frozen=True)
class Resources:
    """One allocation's share: thousandths of a CPU, bytes, GPUs with at least `gpu_memory_bytes` each.

    `gpu_shared`: a slice of one GPU, of which it takes `gpu_memory_bytes` and leaves the rest to other slices.
    Otherwise its GPUs are its own.
    """

    cpus_milli: int
    memory_bytes: int
    gpus: int = 0
    gpu_memory_bytes: int = 0
    gpu_model: str = ""
    gpu_shared: bool = False

    def __post_init__(self) -> None:
        if self.gpu_shared and (self.gpus != 1 or self.gpu_memory_bytes < 1):
            raise ValueError("a slice is of one GPU and names the memory that it takes")

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
    """One GPU of a node; `model` is its name as NVML gives it, `healthy` is false when taken out, `reason` says why.

    `sharing`: its operator lets jobs share it by memory. `held_bytes` is what slices hold of it now.
    """

    uuid: str
    model: str
    memory_bytes: int
    index: int = 0
    healthy: bool = True
    reason: str = ""
    sharing: bool = False
    held_bytes: int = 0

    @property
    def free_bytes(self) -> int:
        """The memory that no slice holds."""
        return self.memory_bytes - self.held_bytes

    def suits(self, need: Resources) -> bool:
        """Whether `need` can have it, or a slice: model (a part of the name, any case), memory, nobody in the way.

        Who has a GPU to himself never shares it: one of which slices are held suits nobody else, and a slice goes only
        where sharing is allowed.
        """
        if not self.healthy or need.gpu_model.lower() not in self.model.lower():
            return False
        mixes = not self.sharing if need.gpu_shared else self.held_bytes > 0
        return not mixes and self.free_bytes >= need.gpu_memory_bytes


@dataclass(frozen=True)
class Free:
    """What a node can still give: slots, CPUs, memory, and those GPUs that nobody has to himself."""

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
        """What is left after `need`, and the GPUs given in the order of the PCI bus.

        Of one kind if there are enough, and the smallest that suit, so that large ones stay free; a slice of the GPU
        that it fills most, so that others stay whole; and those that are not shared before those that are.
        """
        suited = [gpu for gpu in self.gpus if gpu.suits(need)]
        if need.gpu_shared:
            suited.sort(key=lambda gpu: (gpu.held_bytes == 0, gpu.free_bytes, gpu.index))
        else:
            suited.sort(key=lambda gpu: (gpu.memory_bytes, gpu.sharing, gpu.index))
        given = tuple(sorted(alike(suited, need.gpus), key=lambda gpu: gpu.index))
        return self.less(need, given), given

    def less(self, need: Resources, given: tuple[Gpu, ...]) -> Free:
        """What is left after one allocation of `need` that got these GPUs."""
        uuids = {gpu.uuid for gpu in given}
        left = (gpu for gpu in self.gpus if need.gpu_shared or gpu.uuid not in uuids)
        return Free(
            slots=self.slots - 1,
            cpus_milli=self.cpus_milli - need.cpus_milli,
            memory_bytes=self.memory_bytes - need.memory_bytes,
            gpus=tuple(
                replace(gpu, held_bytes=gpu.held_bytes + need.gpu_memory_bytes) if gpu.uuid in uuids else gpu
                for gpu in left
            ),
        )

    def without(self, held: Mapping[str, int | None]) -> Free:
        """What is left when these GPUs are held: the bytes that slices hold, or None for all of a GPU."""
        return replace(
            self,
            gpus=tuple(
                replace(gpu, held_bytes=held[gpu.uuid] or 0) if gpu.uuid in held else gpu
                for gpu in self.gpus
                if gpu.uuid not in held or held[gpu.uuid] is not None
            ),
        )


def alike(gpus: Sequence[Gpu], count: int) -> Sequence[Gpu]:
    """The first `count` of these that are of one model and memory; the first of all where no kind has so many.

    GPUs that work together go at the pace of the slowest, and some libraries refuse to mix.
    """
    if count > 1:
        kinds: dict[tuple[str, int], list[Gpu]] = {}
        for gpu in gpus:
            kinds.setdefault((gpu.model, gpu.memory_bytes), []).append(gpu)
        gpus = next((kind for kind in kinds.values() if len(kind) >= count), gpus)
    return gpus[:count]


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
