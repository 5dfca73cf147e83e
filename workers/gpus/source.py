"""Where this host's GPUs come from, and which of them the node offers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from config.settings import Settings, SettingsError
from workers.gpus.nvml import NvmlSource
from workers.gpus.reading import GpuSource, Reading
from workers.gpus.simulated import SimulatedGpus

log = logging.getLogger(__name__)


def open_source(settings: Settings) -> GpuSource | None:
    """Simulated GPUs if asked for, else those of NVML; None where there is no driver or the node offers none."""
    if settings.simulate_gpus:
        return SimulatedGpus(settings.simulate_gpus, settings.node, _file(settings.simulate_gpu_faults))
    if settings.gpus.strip() == "none":
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        pynvml.nvmlShutdown()
    except Exception as exc:
        log.debug("no GPUs: %s", exc)
        if settings.gpus:
            raise SettingsError(f"CFAB_GPUS={settings.gpus!r} names GPUs, and NVML has none: {exc}") from exc
        return None
    return NvmlSource(pynvml)


def _file(name: str) -> Path | None:
    return Path(name) if name else None


def select(readings: Sequence[Reading], wanted: str) -> frozenset[str] | None:
    """The UUIDs that a list of indices or UUIDs names; None, which is all there are or will be, for an empty list.

    Raises SettingsError for a name that is not there.
    """
    names = {name.strip() for name in wanted.split(",") if name.strip()}
    if not names:
        return None
    chosen = frozenset(one.uuid for one in readings if {str(one.index), one.uuid} & names)
    if len(chosen) != len(names):
        have = ", ".join(f"{one.index} {one.uuid}" for one in readings) or "none"
        raise SettingsError(f"CFAB_GPUS={wanted!r} names GPUs that are not here; there are: {have}")
    return chosen
