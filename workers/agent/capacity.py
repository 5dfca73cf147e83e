"""What this host offers: CPUs, memory, slots, GPUs (measured, or simulated by a word such as 4xA100-80GB)."""

from __future__ import annotations

import logging
import os
import re
import socket
from pathlib import Path
from uuid import NAMESPACE_DNS, uuid5

import psutil

from app.domain.resources import MIB, Gpu
from app.services.nodes import NodeOffer
from config.settings import Settings, SettingsError

log = logging.getLogger(__name__)

SLOTS_PER_CPU = 10
"""As many as jobs that ask for nothing fit by their CPUs."""

_GPU = re.compile(r"(?:(\d+)x)?([A-Za-z0-9_.]+(?:-[A-Za-z0-9_.]+)*?)-(\d+)GB", re.IGNORECASE)


def offer(settings: Settings, runners: tuple[str, ...], version: str, host: str) -> NodeOffer:
    """This host's capacity as configured, or as found."""
    cores = os.cpu_count() or 1
    memory = psutil.virtual_memory().total
    simulated = bool(settings.simulate_gpus)
    return NodeOffer(
        node_id=settings.node,
        slots=settings.slots or SLOTS_PER_CPU * cores,
        cpus_milli=settings.cpus_milli or 1000 * cores,
        memory_bytes=settings.memory_mib * MIB if settings.memory_mib else int(memory * 0.9),
        gpus=simulate(settings.simulate_gpus, settings.node) if simulated else select(measure(), settings.gpus),
        runners=runners,
        ip=address(),
        host=host,
        version=version,
    )


def simulate(spec: str, node: str) -> tuple[Gpu, ...]:
    """GPUs from `4xA100-80GB,2xT4-16GB`, with UUIDs that stay the same for this node. Raises SettingsError."""
    gpus: list[Gpu] = []
    for part in filter(None, (p.strip() for p in spec.split(","))):
        match = _GPU.fullmatch(part)
        if match is None or not 1 <= int(match[1] or 1) <= 64:
            raise SettingsError(f"CFAB_SIMULATE_GPUS={part!r}: write a count, a model and a size, such as 4xA100-80GB")
        for _ in range(int(match[1] or 1)):
            uuid = uuid5(NAMESPACE_DNS, f"{node}/{len(gpus)}")
            gpus.append(Gpu(f"GPU-{uuid}", f"NVIDIA {match[2]}", int(match[3]) * 10**9, len(gpus)))
    return tuple(gpus)


def measure() -> tuple[Gpu, ...]:
    """The GPUs that NVML knows, through gpustat; none where there is no driver."""
    try:
        import gpustat

        found = gpustat.new_query()
    except Exception as exc:
        log.debug("no GPUs: %s", exc)
        return ()
    return tuple(Gpu(str(g.uuid), str(g.name), int(g.memory_total) * MIB, int(g.index)) for g in found)


def select(gpus: tuple[Gpu, ...], wanted: str) -> tuple[Gpu, ...]:
    """The GPUs that a list of indices or UUIDs names; all for an empty list, none for `none`. Raises SettingsError."""
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    if names == ["none"]:
        return ()
    if not names:
        return gpus
    chosen = tuple(gpu for gpu in gpus if str(gpu.index) in names or gpu.uuid in names)
    if len(chosen) != len(set(names)):
        have = ", ".join(f"{gpu.index} {gpu.uuid}" for gpu in gpus) or "none"
        raise SettingsError(f"CFAB_GPUS={wanted!r} names GPUs that are not here; there are: {have}")
    return chosen


def host_identity(work_dir: str) -> str:
    """What tells this host and its work directory from any other: the place where a keeper holds jobs."""
    try:
        machine = Path("/etc/machine-id").read_text(encoding="ascii").strip()
    except OSError:
        machine = ""
    return f"{machine or socket.gethostname()}:{work_dir}"


def address() -> str | None:
    """This host's address as others see it, without sending anything."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"
