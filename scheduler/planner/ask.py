"""An ask: a shape with what is looked up again and again while hosts are compared with it."""

from __future__ import annotations

from collections.abc import Sequence

from app.domain.resources import Gpu, Resources


class Ask:
    """What one allocation needs. GPUs of one model and size suit alike, so each kind is judged once."""

    __slots__ = ("_kinds", "cpus_milli", "gpus", "memory_bytes", "shape", "whole_gpus")

    def __init__(self, shape: Resources) -> None:
        self.shape = shape
        self.gpus = shape.gpus
        # A slice may go to a GPU that is shared already, on a host without any to spare.
        self.whole_gpus = 0 if shape.gpu_shared else shape.gpus
        self.cpus_milli = shape.cpus_milli
        self.memory_bytes = shape.memory_bytes
        self._kinds: dict[tuple[int, str, bool], bool] = {}

    def suited_by(self, gpu: Gpu) -> bool:
        """Whether a healthy GPU suits."""
        kind = (gpu.memory_bytes, gpu.model, gpu.sharing)
        known = self._kinds.get(kind)
        if known is None:
            known = self._kinds[kind] = gpu.suits(self.shape)
        return known

    def suiting(self, gpus: Sequence[Gpu], uniform: bool) -> int:
        """How many of these healthy GPUs suit; `uniform` ones are of one kind."""
        if not gpus or not self.gpus:
            return 0
        if uniform:
            return len(gpus) if self.suited_by(gpus[0]) else 0
        return sum(self.suited_by(gpu) for gpu in gpus)

    def times(self, slots: int, cpus_milli: int, memory_bytes: int, gpus: int) -> int:
        """How often it fits in these amounts; `gpus` counts suiting ones."""
        times = slots
        if self.gpus:
            times = min(times, gpus // self.gpus)
        if self.cpus_milli:
            times = min(times, cpus_milli // self.cpus_milli)
        if self.memory_bytes:
            times = min(times, memory_bytes // self.memory_bytes)
        return max(0, times)
