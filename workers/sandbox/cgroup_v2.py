"""Control groups, version 2 (https://docs.kernel.org/admin-guide/cgroup-v2.html): plain files below one directory."""

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
# Processes that were in the parent move here: a group with controllers below it may hold no processes.
SUPERVISOR = "cfab-supervisor"
WANTED = ("memory", "pids", "cpu")


class V2Cgroup:
    """One job's directory."""

    __slots__ = ("_path", "name")

    def __init__(self, path: str) -> None:
        """Point at a directory, present or not."""
        self._path = path
        self.name = os.path.basename(path)

    def join_paths(self) -> Sequence[str]:
        """Return the file into which a process writes "0" to enter."""
        return [f"{self._path}/cgroup.procs"]

    def directories(self) -> list[str]:
        """Return the group's directory."""
        return [self._path]

    def pids(self) -> list[int]:
        """Return the processes in this group and those a job made below it."""
        found = [int(pid) for pid in read_text(f"{self._path}/cgroup.procs").split()]
        if not found and read_pairs(f"{self._path}/cgroup.events").get("populated"):
            for folder, _, _ in os.walk(self._path):
                found.extend(int(pid) for pid in read_text(f"{folder}/cgroup.procs").split())
        return found

    def kill(self) -> None:
        """SIGKILL everything inside: cgroup.kill, or freeze and kill one by one before Linux 5.14."""
        try:
            write_text(f"{self._path}/cgroup.kill", "1")
        except OSError:
            with contextlib.suppress(OSError):
                write_text(f"{self._path}/cgroup.freeze", "1")
            for pid in self.pids():
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(OSError):
                write_text(f"{self._path}/cgroup.freeze", "0")

    def usage(self) -> Usage:
        """Read memory.current, memory.peak (Linux 5.19), cpu.stat and memory.events."""
        cpu_us = read_pairs(f"{self._path}/cpu.stat").get("usage_usec")
        return Usage(
            memory_bytes=read_number(f"{self._path}/memory.current"),
            peak_memory_bytes=read_number(f"{self._path}/memory.peak"),
            cpu_seconds=None if cpu_us is None else cpu_us / 1e6,
            oom_kills=read_pairs(f"{self._path}/memory.events").get("oom_kill", 0),
        )

    def cache_bytes(self) -> int:
        """Read the inactive file cache."""
        return read_pairs(f"{self._path}/memory.stat").get("inactive_file", 0)

    def remove(self) -> bool:
        """Remove the directory; True when it is gone."""
        try:
            os.rmdir(self._path)
        except FileNotFoundError:
            return True
        except OSError:
            for folder, _, _ in os.walk(self._path, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
            return not os.path.exists(self._path)
        return True


class V2Layer:
    """The directory below which jobs' groups are made."""

    kind = "v2"

    def __init__(self, root: str) -> None:
        """Use an existing directory whose controllers are enabled for its children."""
        self._root = root

    def create(self, name: str, limits: Limits) -> V2Cgroup:
        """Make the group; a limit the kernel refuses removes it again and raises OSError."""
        path = f"{self._root}/{name}"
        try:
            os.mkdir(path)
        except FileNotFoundError:
            # Somebody tidied the empty layer away; it is made again with its controllers.
            os.makedirs(self._root)
            _enable(self._root)
            os.mkdir(path)
        try:
            if limits.memory_bytes is not None:
                write_text(f"{path}/memory.max", str(limits.memory_bytes))
                if os.path.exists(f"{path}/memory.swap.max"):
                    write_text(f"{path}/memory.swap.max", "0")
            if limits.pids_max is not None:
                write_text(f"{path}/pids.max", str(limits.pids_max))
            if limits.cpus_milli is not None:
                quota_us = max(1000, limits.cpus_milli * CPU_PERIOD_US // 1000)
                write_text(f"{path}/cpu.max", f"{quota_us} {CPU_PERIOD_US}")
        except OSError:
            with contextlib.suppress(OSError):
                os.rmdir(path)
            raise
        return V2Cgroup(path)

    def open(self, name: str) -> V2Cgroup:
        """Return a handle on a group by name."""
        return V2Cgroup(f"{self._root}/{name}")

    def describe(self) -> dict[str, Any]:
        """Return the layer's kind and directory."""
        return {"kind": self.kind, "root": self._root}

    def close(self) -> None:
        """Remove the layer's own directory where nothing is left below it."""
        with contextlib.suppress(OSError):
            os.rmdir(self._root)


def _enable(folder: str) -> bool:
    """Enable the wanted controllers for the children of `folder`; tell whether all of them are on."""
    for controller in WANTED:
        with contextlib.suppress(OSError):
            write_text(f"{folder}/cgroup.subtree_control", f"+{controller}")
    return set(WANTED) <= set(read_text(f"{folder}/cgroup.subtree_control").split())


def _make_room(folder: str) -> None:
    """Move the processes of `folder` into a leaf of it: inner groups may hold none."""
    leaf = f"{folder}/{SUPERVISOR}"
    with contextlib.suppress(FileExistsError):
        os.mkdir(leaf)
    for pid in read_text(f"{folder}/cgroup.procs").split():
        with contextlib.suppress(OSError):
            write_text(f"{leaf}/cgroup.procs", pid)


def find_v2(base: str, mounts: list[Mount]) -> V2Layer | None:
    """Return a layer below this process's own group, None where it is not delegated to us with its controllers."""
    mount = next((mount for mount in mounts if mount.version == 2), None)
    if mount is None:
        return None
    parent = mount.own
    if os.path.basename(parent) == SUPERVISOR:
        parent = os.path.dirname(parent)
    if not set(WANTED) <= set(read_text(f"{parent}/cgroup.controllers").split()):
        return None
    root = f"{parent}/{base}"
    try:
        if not _enable(parent):
            _make_room(parent)
        os.makedirs(root, exist_ok=True)
    except OSError:
        return None
    if _enable(parent) and _enable(root):
        return V2Layer(root)
    with contextlib.suppress(OSError):
        os.rmdir(root)
    return None
