"""What was asked (JobRequest), and what a node is handed (Assignment)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any
from uuid import UUID

from app.domain.dependency import After
from app.domain.gang import GangPlace
from app.domain.priority import MAX_PRIORITY, PriorityClass
from app.domain.resources import Resources

DEFAULT_TENANT = UUID(int=1)
MAX_MEMBERS = 1024
"""Processes of one job that start together."""


@dataclass(frozen=True)
class JobRequest:
    """One job as asked, already validated by the spoke that took it; with `hold` it waits until it is released.

    `runner` is process, container or fake. `resources` None means: reserve the default share, set no hard limit.
    `asked` holds the contract's own words, echoed by that contract alone; `config` reaches the job as a file.
    `priority` is from 0 to MAX_PRIORITY; None is the class's own. Times are seconds. A job of several `members` runs
    as that many processes, each with these resources, all at the same time or none. `preemptible` None: as its tenant's
    jobs are. It starts when all that it is to run `after` have ended so.
    """

    type: str
    priority_class: PriorityClass
    contract: str = "jobs"
    runner: str = "process"
    priority: int | None = None
    binary_url: str | None = None
    binary_sha256: str | None = None
    image: str | None = None
    script: str | None = None
    command: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    resources: Resources | None = None
    time_limit_s: float | None = None
    grace_s: float | None = None
    max_retries: int = 0
    backoff_s: float = 1.0
    backoff_multiplier: float = 2.0
    asked: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    hold: bool = False
    members: int = 1
    preemptible: bool | None = None
    after: tuple[After, ...] = ()

    def __post_init__(self) -> None:
        if self.priority is not None and not 0 <= self.priority <= MAX_PRIORITY:
            raise ValueError(f"a priority is from 0 to {MAX_PRIORITY}, not {self.priority}")
        if not 1 <= self.members <= MAX_MEMBERS:
            raise ValueError(f"a job has from 1 to {MAX_MEMBERS} members, not {self.members}")


@dataclass(frozen=True)
class Submitted:
    """A job that is now durable; `queue_position` is 0 unless it was asked for; `reason` is why it is pending."""

    id: UUID
    type: str
    priority_class: PriorityClass
    created_at: datetime
    queue_position: int = 0
    reason: str = "new"


@dataclass(frozen=True)
class Assignment:
    """One allocation that a node holds from now on: the fence (job, attempt, token), the share, and what to run.

    `preemptible`: it may be stopped to make room for others. `gang` is None for a job of one member.
    `gpu_memory_bytes` is what it may use of each of its GPUs, 0 without any.
    """

    job_id: UUID
    attempt_id: UUID
    attempt: int
    token: UUID
    type: str
    tenant_id: UUID
    priority_class: PriorityClass
    log_day: date
    resources: Resources
    hard_limits: bool
    gpu_uuids: tuple[str, ...]
    runner: str
    binary_url: str | None
    binary_sha256: str | None
    image: str | None
    script: str | None
    command: tuple[str, ...]
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    time_limit_s: float | None
    grace_s: float
    expires_at: datetime | None = None
    config: Mapping[str, Any] | None = field(default=None, repr=False)
    gpu_memory_bytes: int = 0
    preemptible: bool = False
    gang: GangPlace | None = None
