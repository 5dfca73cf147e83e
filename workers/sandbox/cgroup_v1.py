"""Control groups, version 1: the same interface over one directory per hierarchy.

Killing uses the unified hierarchy's cgroup.kill where that is mounted beside (0.5 ms), else the freezer (3 ms).
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence
from typing import Any

from workers.sandbox.cgroups import (
    Limits,
    Mount,
    Usage,
    read_number,
    read_pairs,
    read_text,
    write_text,
)

CPU_PERIOD_US = 100_000
# Memory and pids are what a job must not exceed; the others are taken where they exist.
REQUIRED = ("memory", "pids")
OPTIONAL = ("cpu", "cpuacct", "freezer")
UNIFIED = "unified"


class V1Cgroup:
    """One job's directories, by hierarchy."""

    __slots__ = ("_paths", "name")

    def __init__(self, name: str, paths: dict[str, str]) -> None:
        """Point at directories, present or not."""
        self.name = name
        self._paths = paths

    def join_paths(self) -> Sequence[str]:
        """Return the files into which a process writes "0" to enter every hierarchy."""
        return [f"{path}/cgroup.procs" for path in self.directories()]

    def directories(self) -> list[str]:
        """Return the distinct directories; cpu and cpuacct are often one mount."""
        return list(dict.fromkeys(self._paths.values()))

    def pids(self) -> list[int]:
        """Return the processes inside."""
        path = self._paths.get(UNIFIED) or self._paths["pids"]
        return [int(pid) for pid in read_text(f"{path}/cgroup.procs").split()]

    def kill(self) -> None:
        """SIGKILL everything inside; frozen meanwhile where only the freezer can stop a fork bomb."""
        unified = self._paths.get(UNIFIED)
        if unified:
            try:
                write_text(f"{unified}/cgroup.kill", "1")
                return
            except OSError:
                pass
        freezer = self._paths.get("freezer")
        if freezer:
            with contextlib.suppress(OSError):
                write_text(f"{freezer}/freezer.state", "FROZEN")
        for pid in self.pids():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        if freezer:
            with contextlib.suppress(OSError):
                write_text(f"{freezer}/freezer.state", "THAWED")

    def usage(self) -> Usage:
        """Read the memory and cpuacct counters."""
        memory = self._paths["memory"]
        cpuacct = self._paths.get("cpuacct")
        cpu_ns = read_number(f"{cpuacct}/cpuacct.usage") if cpuacct else None
        return Usage(
            memory_bytes=read_number(f"{memory}/memory.usage_in_bytes"),
            peak_memory_bytes=read_number(f"{memory}/memory.max_usage_in_bytes"),
            cpu_seconds=None if cpu_ns is None else cpu_ns / 1e9,
            oom_kills=read_pairs(f"{memory}/memory.oom_control").get("oom_kill", 0),
        )

    def cache_bytes(self) -> int:
        """Read the inactive file cache, of groups below too."""
        return read_pairs(f"{self._paths['memory']}/memory.stat").get("total_inactive_file", 0)

    def remove(self) -> bool:
        """Remove every directory; True when all are gone."""
        gone = True
        for path in self.directories():
            try:
                os.rmdir(path)
            except FileNotFoundError:
                continue
            except OSError:
                gone = False
        return gone


class V1Layer:
    """The directories below which jobs' groups are made, by hierarchy."""

    kind = "v1"

    def __init__(self, roots: dict[str, str]) -> None:
        """Use existing directories; `memory` and `pids` must be among them."""
        self._roots = roots

    def _paths(self, name: str) -> dict[str, str]:
        # Entering a hierarchy costs system calls for each job: the freezer is idle where cgroup.kill exists.
        skip = {"freezer"} if UNIFIED in self._roots else set()
        return {kind: f"{root}/{name}" for kind, root in self._roots.items() if kind not in skip}

    def create(self, name: str, limits: Limits) -> V1Cgroup:
        """Make the group; a limit the kernel refuses removes it again and raises OSError."""
        paths = self._paths(name)
        if limits.cpus_milli is None and paths.get("cpu") != paths.get("cpuacct"):
            paths.pop("cpu", None)
        group = V1Cgroup(name, paths)
        try:
            for path in group.directories():
                os.makedirs(path)
            if limits.memory_bytes is not None:
                write_text(f"{paths['memory']}/memory.limit_in_bytes", str(limits.memory_bytes))
                swap = f"{paths['memory']}/memory.memsw.limit_in_bytes"
                if os.path.exists(swap):
                    write_text(swap, str(limits.memory_bytes))
            if limits.pids_max is not None:
                write_text(f"{paths['pids']}/pids.max", str(limits.pids_max))
            if limits.cpus_milli is not None and "cpu" in paths:
                quota_us = max(1000, limits.cpus_milli * CPU_PERIOD_US // 1000)
                write_text(f"{paths['cpu']}/cpu.cfs_period_us", str(CPU_PERIOD_US))
                write_text(f"{paths['cpu']}/cpu.cfs_quota_us", str(quota_us))
        except OSError:
            group.remove()
            raise
        return group

    def open(self, name: str) -> V1Cgroup:
        """Return a handle on a group by name."""
        return V1Cgroup(name, self._paths(name))

    def describe(self) -> dict[str, Any]:
        """Return the layer's kind and directories."""
        return {"kind": self.kind, "roots": self._roots}

    def close(self) -> None:
        """Remove the layer's own directories where nothing is left below them."""
        for root in set(self._roots.values()):
            with contextlib.suppress(OSError):
                os.rmdir(root)


def find_v1(base: str, mounts: list[Mount]) -> V1Layer | None:
    """Return a layer below this process's own groups, None where memory or pids is not writable."""
    roots: dict[str, str] = {}
    for mount in mounts:
        names = [name for name in REQUIRED + OPTIONAL if name in mount.controllers] if mount.version == 1 else [UNIFIED]
        for name in names:
            root = f"{mount.own}/{base}"
            try:
                os.makedirs(root, exist_ok=True)
            except OSError:
                continue
            if name != UNIFIED or os.path.exists(f"{root}/cgroup.kill"):
                roots[name] = root
    return V1Layer(roots) if all(name in roots for name in REQUIRED) else None
