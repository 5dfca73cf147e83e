"""What this host offers: CPUs, memory, slots, labels, and the GPUs that were found."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from pathlib import Path

import psutil
from sqlalchemy.engine import make_url

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
        ip=settings.node_address or address(settings.agent_url),
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


def address(database_url: str = "") -> str | None:
    """This host's address as others see it, without sending anything: the one by which it reaches the database."""
    # A host without a default route knows no way to the world at large. Where the database is on this very host, the
    # way to the world is what tells.
    ways = [host for host in (make_url(database_url).host if database_url else None, "192.0.2.1") if host]
    for way in ways:
        found = _source(way)
        if found is not None and not ipaddress.ip_address(found).is_loopback:
            return found
    return "127.0.0.1"


def _source(destination: str) -> str | None:
    """The address that packets from here to `destination` would bear; None when there is no way."""
    try:
        family, kind, _, _, at = socket.getaddrinfo(destination, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(at)
            return str(probe.getsockname()[0]).partition("%")[0]
    except OSError:
        return None
