"""Tenants: who owns jobs, what they may hold at a time (quota), how far up they may ask (tier), their share (weight).

Quotas count what is held now, never what was used over time. None is unlimited.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from app.domain.errors import FieldProblem
from app.domain.policy import Room
from app.domain.priority import PriorityClass
from app.domain.resources import GIB, MIB, Resources

MAX_NAME = 63
MAX_TEXT = 255
MAX_WEIGHT = 1e6
MAX_QUOTA = 2**60
"""No sum of quotas or usages can overflow 64 bits, and no fabric comes near it."""


class Tier(StrEnum):
    """How far up the jobs of a tenant may ask; see `effective`."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


_CAPS: Mapping[Tier, tuple[PriorityClass, int | None]] = {
    Tier.LOW: (PriorityClass.BEST_EFFORT, 100),
    Tier.MEDIUM: (PriorityClass.BACKGROUND, 500),
    Tier.HIGH: (PriorityClass.FOREGROUND, 1000),
    Tier.CRITICAL: (PriorityClass.FOREGROUND, None),
}
"""The highest class and the greatest priority inside it (best_effort 0-499, background 500-999, foreground 1000-5000)
that count for a tier: the priorities that the gpu contract's document gives its tiers, and the classes they lie in."""


@dataclass(frozen=True)
class Quota:
    """What a tenant may hold at a time: jobs, thousandths of a CPU, bytes, GPUs, bytes of GPU memory over all GPUs."""

    jobs: int | None = None
    cpus_milli: int | None = None
    memory_bytes: int | None = None
    gpus: int | None = None
    gpu_memory_bytes: int | None = None


@dataclass(frozen=True)
class Usage:
    """What a tenant holds now, in the units of Quota."""

    jobs: int = 0
    cpus_milli: int = 0
    memory_bytes: int = 0
    gpus: int = 0
    gpu_memory_bytes: int = 0


@dataclass(frozen=True)
class Tenant:
    """One tenant. `weight` is its share of the fabric against other tenants; inactive ones start no job."""

    id: UUID
    name: str
    email: str | None
    organization: str | None
    tier: Tier
    weight: float
    quota: Quota
    allow_preemption: bool
    can_preempt_others: bool
    active: bool
    created_at: datetime


@dataclass(frozen=True)
class NewTenant:
    """A tenant as asked for; what is left out has the value that most tenants have."""

    name: str
    email: str | None = None
    organization: str | None = None
    tier: str = Tier.MEDIUM
    weight: float = 1.0
    quota: Quota = field(default_factory=Quota)
    allow_preemption: bool = True
    can_preempt_others: bool = False
    active: bool = True


CHANGEABLE = frozenset(
    {"email", "organization", "tier", "weight", "quota", "allow_preemption", "can_preempt_others", "active"}
)
QUOTA_NAMES = frozenset(asdict(Quota()))


def normal_name(name: str) -> str:
    """The form of a name that is stored and compared: characters that look the same are the same."""
    return unicodedata.normalize("NFC", name)


def name_problem(name: str) -> str | None:
    """Why this cannot be a tenant's name, or None. Names stand in URLs, so that they have no spaces and no slashes."""
    if not 1 <= len(name) <= MAX_NAME:
        return f"must have 1 to {MAX_NAME} characters, not {len(name)}"
    if not name.isprintable() or " " in name or "/" in name or "\\" in name:
        return f"must have printable characters only, without spaces and slashes: {name!a}"
    if not name.strip("."):
        return f"must not be dots alone, for a path would lose them: {name!a}"
    if as_id(name) is not None:
        return f"must not look like an id: {name!a}"
    return None


def as_id(text: str) -> UUID | None:
    """`text` as a UUID in any of the forms that Python reads, or None."""
    try:
        return UUID(text)
    except ValueError:
        return None


def new_problems(asked: NewTenant) -> list[FieldProblem]:
    """Everything that keeps `asked` from being made."""
    problem = name_problem(normal_name(asked.name))
    values = asdict(asked)
    named = [] if problem is None else [FieldProblem("name", problem)]
    return named + change_problems({name: values[name] for name in CHANGEABLE})


def change_problems(changes: Mapping[str, Any]) -> list[FieldProblem]:
    """Everything that keeps `changes` (names of CHANGEABLE; `quota` maps names of Quota) from being made."""
    return list(_problems(changes))


def _problems(changes: Mapping[str, Any]) -> Iterator[FieldProblem]:
    for name, value in changes.items():
        if name not in CHANGEABLE:
            yield FieldProblem(name, f"cannot be changed; allowed: {', '.join(sorted(CHANGEABLE))}")
        elif name == "quota":
            yield from _quota_problems(value)
        elif name == "tier" and value not in tuple(Tier):
            yield FieldProblem(name, f"must be one of {', '.join(Tier)}, not {ascii(value)[:60]}")
        elif name == "weight" and not (math.isfinite(value) and 0 < value <= MAX_WEIGHT):
            yield FieldProblem(name, f"must be a number above 0 and at most {MAX_WEIGHT:.0f}, not {value}")
        elif name in {"email", "organization"} and not _one_line(value):
            yield FieldProblem(name, f"must have 1 to {MAX_TEXT} printable characters")


def _one_line(text: str | None) -> bool:
    return text is None or (text.isprintable() and 1 <= len(text) <= MAX_TEXT)


def _quota_problems(quota: Mapping[str, int | None]) -> Iterator[FieldProblem]:
    for name, limit in quota.items():
        if name not in QUOTA_NAMES:
            yield FieldProblem(f"quota.{name}", f"is not a quota; allowed: {', '.join(sorted(QUOTA_NAMES))}")
        elif limit is not None and not 0 <= limit <= MAX_QUOTA:
            yield FieldProblem(f"quota.{name}", f"must be from 0 to {MAX_QUOTA}, or null for unlimited, not {limit}")


def room_left(quota: Quota, usage: Usage) -> Room:
    """What a tenant may still hold. Below zero where a quota was lowered after jobs had started; None is unlimited."""
    limits, used = asdict(quota), asdict(usage)
    return Room(**{name: None if limit is None else limit - used[name] for name, limit in limits.items()})


def effective(tier: Tier, asked_class: PriorityClass, asked_priority: int | None) -> tuple[PriorityClass, int]:
    """The class and the priority that count in the queue for a job of this tier, whatever was asked.

    A tier never raises either. A job that asked for a class only has the class's usual priority.
    """
    most_class, most = _CAPS[tier]
    priority = asked_class.default_priority if asked_priority is None else asked_priority
    return max(asked_class, most_class), priority if most is None else min(priority, most)


def may_opt_out(tenant: Tenant) -> bool:
    """Whether a job of the tenant may say that it never makes room for others: in high tiers, or where none does."""
    return not tenant.allow_preemption or tenant.tier in {Tier.HIGH, Tier.CRITICAL}


def charge_of(need: Resources, count: int = 1) -> Usage:
    """What `count` allocations of `need` add to their tenant's usage."""
    gpu_memory = need.gpus * need.gpu_memory_bytes
    return Usage(count, count * need.cpus_milli, count * need.memory_bytes, count * need.gpus, count * gpu_memory)


def reserved(asked: Resources, quota: Quota, count: int = 1) -> Resources:
    """The share that each of a job's `count` members holds: as asked, rounded up, but all together not beyond a quota
    that has room for what was asked."""

    def within(ask: int, rounded: int, limit: int | None) -> int:
        return limit // count if limit is not None and count * ask <= limit < count * rounded else rounded

    share = asked.rounded()
    return replace(
        share,
        cpus_milli=within(asked.cpus_milli, share.cpus_milli, quota.cpus_milli),
        memory_bytes=within(asked.memory_bytes, share.memory_bytes, quota.memory_bytes),
    )


@dataclass(frozen=True)
class Excess:
    """One limit that is too small for a job: which (a name of Quota), what the job needs, and the limit or room."""

    name: str
    need: int
    limit: int


def excess(room: Quota | Room, need: Resources, count: int = 1) -> list[Excess]:
    """The limits of `room` that `count` more allocations of `need` would break; empty when they may start.

    With a Quota: why the job can never start under it. With `room_left`: why it cannot start now.
    """
    asks, limits = asdict(charge_of(need, count)), asdict(room)
    return [
        Excess(name, ask, limits[name])
        for name, ask in asks.items()
        if ask > 0 and limits[name] is not None and ask > limits[name]
    ]


def amount(name: str, value: int) -> str:
    """`value` of the quota `name` in the units people think in: 8 GPUs, 2.5 CPUs, 64 GiB of memory."""
    if name == "memory_bytes":
        return f"{_short(value / GIB)} GiB of memory" if abs(value) >= GIB else f"{_short(value / MIB)} MiB of memory"
    if name == "gpu_memory_bytes":
        return f"{_short(value / 1e9)} GB of GPU memory"
    number, word = (value / 1000, "CPU") if name == "cpus_milli" else (value, {"jobs": "job", "gpus": "GPU"}[name])
    return f"{number:.15g} {word}" + ("" if number == 1 else "s")


def _short(number: float) -> str:
    return f"{round(number, 2):.15g}"
