"""GPUs without hardware: a word such as 4xA100-80GB gives what the driver would, and a file makes them err."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import NAMESPACE_DNS, uuid5

from app.domain.resources import MIB
from config.settings import SettingsError
from workers.gpus.reading import GpuProcess, Reading

_GPU = re.compile(r"(?:(\d+)x)?([A-Za-z0-9_.]+(?:-[A-Za-z0-9_.]+)*?)-(\d+)GB", re.IGNORECASE)
IDLE_CELSIUS = 30


class SimulatedGpus:
    """GPUs from `4xA100-80GB,2xT4-16GB`, with UUIDs that stay the same for this node.

    `faults` names a file that is read at each look, and may come and go. A line is an index or UUID and what happens:
    `0 lost`, `1 error ECC`, `2 memory 4096` (MiB in use, unknown by whom), `2 process 4711 4096` (a process and its
    MiB), `3 busy 80` (percent), `3 hot 90` (°C). Raises SettingsError for a word that is no GPU.
    """

    def __init__(self, spec: str, node: str, faults: Path | None = None) -> None:
        self._gpus = list(_parse(spec, node))
        self._faults = faults

    def read(self) -> list[Reading]:
        """All of them as the file says; idle where it says nothing."""
        faults = list(self._lines())
        return [self._read(gpu, [words for who, *words in faults if who in {gpu.uuid, str(gpu.index)}])
                for gpu in self._gpus]  # fmt: skip

    def close(self) -> None:
        """Nothing is held."""

    def _lines(self) -> Iterator[list[str]]:
        if self._faults is None:
            return
        try:
            text = self._faults.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return
        yield from (line.split() for line in text.splitlines() if line.strip())

    @staticmethod
    def _read(gpu: Reading, faults: list[list[str]]) -> Reading:
        idle = replace(gpu, memory_used_bytes=0, utilization_percent=0, temperature_celsius=IDLE_CELSIUS, processes=())
        for kind, *words in filter(None, faults):
            number = int(words[0]) if words and words[0].isdecimal() else 0
            if kind == "lost":
                return replace(gpu, error="GPU is lost")
            if kind == "error":
                return replace(gpu, error=" ".join(words) or "unknown error")
            if kind == "memory":
                idle = replace(idle, memory_used_bytes=number * MIB)
            elif kind == "process" and len(words) > 1 and words[1].isdecimal():
                size = int(words[1]) * MIB
                idle = replace(
                    idle,
                    memory_used_bytes=(idle.memory_used_bytes or 0) + size,
                    processes=(*(idle.processes or ()), GpuProcess(number, size)),
                )
            elif kind == "busy":
                idle = replace(idle, utilization_percent=number)
            elif kind == "hot":
                idle = replace(idle, temperature_celsius=number)
        return idle


def _parse(spec: str, node: str) -> Iterator[Reading]:
    index = 0
    for part in filter(None, (p.strip() for p in spec.split(","))):
        match = _GPU.fullmatch(part)
        if match is None or not 1 <= int(match[1] or 1) <= 64:
            raise SettingsError(f"CFAB_SIMULATE_GPUS={part!r}: write a count, a model and a size, such as 4xA100-80GB")
        for _ in range(int(match[1] or 1)):
            uuid = uuid5(NAMESPACE_DNS, f"{node}/{index}")
            yield Reading(f"GPU-{uuid}", index, f"NVIDIA {match[2]}", int(match[3]) * 10**9)
            index += 1
