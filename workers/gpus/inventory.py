"""This host's GPUs as its agent would offer them, shown by gpustat, real and simulated alike.

What is read comes from the agent's own source. `gpustat.new_query` asks NVML the same, but a lost GPU has no UUID
there, by which the agent takes it out, and every look opens NVML anew and reads each process's command line. So gpustat
shows here, and does not ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TextIO

from gpustat.core import GPUStat, GPUStatCollection

from app.domain.resources import MIB
from config.settings import Settings
from workers.gpus.reading import Reading
from workers.gpus.source import open_source, select


def inventory(settings: Settings) -> list[Reading]:
    """The GPUs that the settings let an agent offer, by index. Raises SettingsError for names that are not there."""
    source = open_source(settings)
    if source is None:
        return []
    try:
        readings = source.read()
        chosen = select(readings, settings.gpus)
    finally:
        source.close()
    return [one for one in readings if chosen is None or one.uuid in chosen]


def collection(readings: Sequence[Reading]) -> GPUStatCollection:
    """The readings as gpustat's own object, which prints itself and gives JSON."""
    return GPUStatCollection([GPUStat(_entry(one)) for one in readings])


def show(readings: Sequence[Reading], out: TextIO) -> None:
    """gpustat's table; then UUIDs, and what is wrong with each that errs."""
    if not readings:
        out.write("This host offers no GPU.\n")
        return
    collection(readings).print_formatted(out, show_pid=True, show_header=False)
    out.write("\n")
    for one in readings:
        out.write(f"[{one.index}] {one.uuid}" + (f"  OUT: {one.error}" if one.error else "") + "\n")


def _entry(one: Reading) -> dict[str, Any]:
    processes = None if one.processes is None else [_process(p.pid, p.memory_bytes) for p in one.processes]
    return {
        "index": one.index,
        "uuid": one.uuid,
        "name": one.model,
        "temperature.gpu": one.temperature_celsius,
        "fan.speed": None,
        "utilization.gpu": one.utilization_percent,
        "utilization.enc": None,
        "utilization.dec": None,
        "power.draw": None,
        "enforced.power.limit": None,
        "memory.used": (one.memory_used_bytes or 0) // MIB,
        "memory.total": one.memory_bytes // MIB,
        "processes": processes,
    }


def _process(pid: int, memory_bytes: int | None) -> dict[str, Any]:
    return {
        "pid": pid,
        "username": "?",
        "command": "?",
        "full_command": ["?"],
        "gpu_memory_usage": None if memory_bytes is None else memory_bytes // MIB,
        "cpu_percent": 0.0,
        "cpu_memory_usage": 0,
    }
