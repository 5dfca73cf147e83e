"""Which role each process of a running fabric plays, its memory, and the CPU time it has used."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import psutil

JOBS = "jobs"
"""The jobs' own processes, from their fork to their end, as the keeper was told when they ended."""

_WORDS = (
    ("workers/keeper/zygote", "zygote"),
    ("workers/keeper", "keeper"),
    ("valkey-server", "valkey"),
    ("gunicorn", "api"),
    ("postgres", "postgres"),
)
_ROLES = ("worker", "scheduler", "flower", "up")


def roles_of(data: Path, supervisor_pid: int) -> dict[psutil.Process, str]:
    """Every process of the fabric that keeps its data in `data`, with its role."""
    family = {supervisor_pid, *(child.pid for child in psutil.Process(supervisor_pid).children(recursive=True))}
    roles: dict[psutil.Process, str] = {}
    keepers: set[int] = set()
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if str(data) in " ".join(words) and "workers/keeper" in " ".join(words):
                keepers |= {process.pid, *(child.pid for child in process.children(recursive=True))}
        except psutil.Error:
            continue
    for pid in family | keepers:
        try:
            process = psutil.Process(pid)
            role = _role(process)
        except psutil.Error:
            continue
        if role is not None:
            roles[process] = role
    return roles


def cpu_seconds(roles: dict[psutil.Process, str]) -> dict[str, float]:
    """User and system time by role. That of ended jobs is told by the keeper, who waited for them."""
    used: defaultdict[str, float] = defaultdict(float)
    for process, role in roles.items():
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        used[role] += times.user + times.system
        if role in {"keeper", "zygote"}:
            used[JOBS] += times.children_user + times.children_system
    return used


def memory_mib(roles: dict[psutil.Process, str]) -> dict[str, dict[str, float]]:
    """By role: processes, resident and proportional memory in MiB (shared pages count in part in the latter)."""
    found: dict[str, dict[str, float]] = {}
    for process, role in roles.items():
        try:
            full = process.memory_full_info()
        except psutil.Error:
            continue
        one = found.setdefault(role, {"processes": 0, "rss_mib": 0.0, "pss_mib": 0.0})
        one["processes"] += 1
        one["rss_mib"] += full.rss / 2**20
        one["pss_mib"] += full.pss / 2**20
    return found


def _role(process: psutil.Process) -> str | None:
    words = process.cmdline()
    line = " ".join(words)
    for word, role in _WORDS:
        if word in line:
            return role
    return next(("supervisor" if word == "up" else word for word in words if word in _ROLES), _inherited(process))


def _inherited(process: psutil.Process) -> str | None:
    """A helper process (a resource tracker, beat) counts with the role that started it; a job counts as jobs."""
    for parent in process.parents():
        line = " ".join(parent.cmdline())
        if "workers/keeper" in line:
            return None
        for word in parent.cmdline():
            if word in _ROLES:
                return word
    return None
