"""Control groups behind one interface: a job's limits, its usage, and killing all of it at once.

`find_layer` says what this host offers (v2, v1, or nothing); knows nothing of attempts. Standard library only.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol


class Limits(NamedTuple):
    """Hard limits of one group; None leaves a resource unlimited."""

    memory_bytes: int | None = None
    cpus_milli: int | None = None
    pids_max: int | None = None


class Usage(NamedTuple):
    """What a group uses now and has used; None where the host does not count it."""

    memory_bytes: int | None
    peak_memory_bytes: int | None
    cpu_seconds: float | None
    oom_kills: int


class Cgroup(Protocol):
    """One job's group."""

    name: str

    def join_paths(self) -> Sequence[str]:
        """Return the files into which a process writes "0" to enter."""

    def directories(self) -> list[str]:
        """Return the group's directories, for a later keeper to clean up."""

    def pids(self) -> list[int]:
        """Return the processes inside; empty once the group is gone."""

    def kill(self) -> None:
        """SIGKILL everything inside, also what forks meanwhile."""

    def usage(self) -> Usage:
        """Read the counters."""

    def cache_bytes(self) -> int:
        """Return how much of the memory in use is file cache that the kernel takes back when it needs it."""

    def remove(self) -> bool:
        """Remove the empty group; False while something is still inside."""


class CgroupLayer(Protocol):
    """A place in this host's hierarchy under which jobs' groups are made."""

    kind: str

    def create(self, name: str, limits: Limits) -> Cgroup:
        """Make a group with its limits set. Raises OSError where the kernel refuses."""

    def open(self, name: str) -> Cgroup:
        """Return a handle on an existing (or already removed) group."""

    def describe(self) -> dict[str, Any]:
        """Return what `layer_from` makes this layer from again, in another process."""

    def close(self) -> None:
        """Remove the layer's own directories where nothing is left below them."""


def read_text(path: str) -> str:
    """Return a control file's text, empty when the group is gone or lacks the file."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read()
    except OSError:
        return ""


def read_number(path: str) -> int | None:
    """Return a control file's single number, None when absent or "max"."""
    text = read_text(path).strip()
    return int(text) if text.isdigit() else None


def read_pairs(path: str) -> dict[str, int]:
    """Return a flat-keyed control file ("name value" a line)."""
    pairs = {}
    for line in read_text(path).splitlines():
        name, _, value = line.partition(" ")
        if value.isdigit():
            pairs[name] = int(value)
    return pairs


def write_text(path: str, text: str) -> None:
    """Write a control file in one call."""
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


class Mount(NamedTuple):
    """One mounted hierarchy and where this process is in it."""

    path: str
    own: str
    controllers: frozenset[str]
    version: int


def find_mounts(proc: str = "/proc") -> list[Mount]:
    """Return the mounted hierarchies, with the directory that holds this process in each.

    In a container without a namespace of its own the mount shows only a part of the hierarchy: the mount's root is
    then subtracted from the process's path.
    """
    places: dict[str, str] = {}
    for line in read_text(f"{proc}/self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        for controller in names.split(",") if names else [""]:
            places[controller] = path
    mounts = []
    for line in read_text(f"{proc}/self/mountinfo").splitlines():
        fields, _, after = line.partition(" - ")
        words, (kind, _, options) = fields.split(" "), after.split(" ")[:3]
        if kind == "cgroup2":
            controllers, version = [""], 2
        elif kind == "cgroup":
            controllers, version = [name for name in options.split(",") if name in places], 1
        else:
            continue
        place = next((places[name] for name in controllers if name in places), None)
        if place is None:
            continue
        root, path = words[3], words[4]
        inside = os.path.relpath(place, root) if root != "/" else place.lstrip("/")
        if inside.startswith(".."):
            inside = ""
        own = os.path.normpath(os.path.join(path, inside))
        mounts.append(Mount(path, own, frozenset(controllers) - {""}, version))
    return mounts


def find_layer(base: str, proc: str = "/proc") -> CgroupLayer | None:
    """Make the directory `base` below this process's own groups and return the layer on it.

    v2 with its memory and pids controllers is preferred, then v1; None when neither is writable here.
    """
    from workers.sandbox.cgroup_v1 import find_v1
    from workers.sandbox.cgroup_v2 import find_v2

    mounts = find_mounts(proc)
    return find_v2(base, mounts) or find_v1(base, mounts)


def layer_from(description: dict[str, Any]) -> CgroupLayer:
    """Return the layer another process described."""
    from workers.sandbox.cgroup_v1 import V1Layer
    from workers.sandbox.cgroup_v2 import V2Layer

    if description["kind"] == "v2":
        return V2Layer(description["root"])
    return V1Layer(description["roots"])
