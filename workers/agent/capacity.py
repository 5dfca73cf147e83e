"""What this host offers: CPUs, memory, slots, labels, and the GPUs that were found."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import psutil

from app.domain.resources import MIB, Gpu
from app.services.nodes import NodeOffer
from config.settings import Settings, SettingsError

SLOTS_PER_CPU = 10
"""As many as jobs that ask for nothing fit by their CPUs."""

_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")


def offer(settings: Settings, runners: tuple[str, ...], version: str, host: str, gpus: tuple[Gpu, ...]) -> NodeOffer:
    """This host's capacity as configured, or as found. Raises SettingsError."""
    cores = os.cpu_count() or 1
    memory = psutil.virtual_memory().total
    return NodeOffer(
        node_id=settings.node,
        slots=settings.slots or SLOTS_PER_CPU * cores,
        cpus_milli=settings.cpus_milli or 1000 * cores,
        memory_bytes=settings.memory_mib * MIB if settings.memory_mib else int(memory * 0.9),
        gpus=gpus,
        runners=runners,
        ip=address(),
        host=host,
        cluster=settings.cluster,
        labels=parse_labels(settings.node_labels),
        version=version,
    )


def parse_labels(text: str) -> dict[str, str]:
    """Labels from `zone=a,disk=nvme`. Raises SettingsError."""
    labels: dict[str, str] = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        name, given, value = part.partition("=")
        if not given or not _LABEL.fullmatch(name) or len(value) > 255 or not value.isprintable():
            raise SettingsError(f"CFAB_NODE_LABELS={part!r}: write NAME=VALUE, such as zone=a,disk=nvme")
        labels[name] = value
    return labels


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
