"""Telling which version of control groups could be used here, without leaving anything behind."""

from __future__ import annotations

import contextlib
import os

from workers.sandbox.cgroup_v1 import REQUIRED
from workers.sandbox.cgroup_v2 import SUPERVISOR, WANTED
from workers.sandbox.cgroups import Mount, read_text


def cgroups_offered(mounts: list[Mount]) -> str | None:
    """Return "v2", "v1" or None: what `find_layer` would most likely find."""
    for mount in mounts:
        if mount.version == 2:
            parent = os.path.dirname(mount.own) if os.path.basename(mount.own) == SUPERVISOR else mount.own
            offered = set(read_text(f"{parent}/cgroup.controllers").split())
            if set(WANTED) <= offered and _can_make(parent):
                return "v2"
    writable = {name for mount in mounts if mount.version == 1 and _can_make(mount.own) for name in mount.controllers}
    return "v1" if set(REQUIRED) <= writable else None


def _can_make(folder: str) -> bool:
    probe = f"{folder}/cfab-probe-{os.getpid()}"
    try:
        os.mkdir(probe)
    except OSError:
        return False
    with contextlib.suppress(OSError):
        os.rmdir(probe)
    return True
