"""What a reader sees of jobs, attempts, nodes and the whole: plain values, no rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from app.domain.dependency import Terms
from app.domain.hold import Hold
from app.domain.phase import Phase, phase_of
from app.domain.priority import PriorityClass
from app.domain.resources import Resources
from app.domain.states import JobState, StopCause
from app.storage.database import Row


@dataclass(frozen=True)
class JobView:
    """One job as it is now. `external_id` is what its reporter calls it when the fabric only tracks it.

    `started_at` is when its first attempt began, `attempt_started_at` (known in lists) when its last one did.
    """

    id: UUID
    tenant_id: UUID
    type: str
    state: JobState
    ready: bool
    reason: str | None
    message: str
    stop_cause: StopCause | None
    stop_by: str | None
    stop_reason: str | None
    contract: str
    priority_class: PriorityClass
    executor_id: str | None
    attempt: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    exit_code: int | None
    signal: int | None
    not_before: datetime | None
    external_id: str | None = None
    priority: int = 500
    array_id: UUID | None = None
    array_index: int | None = None
    attempt_started_at: datetime | None = None

    @property
    def phase(self) -> Phase:
        """Where the job stands for a reader."""
        return phase_of(self.state, self.ready, self.reason, self.stop_cause)


@dataclass(frozen=True)
class SpecView:
    """What was asked; `resources` is None where nothing was asked and the default share is reserved.

    `effective_class` and `effective_priority` are what counts in the queue after the cap of the tenant's tier.
    """

    runner: str
    binary_url: str | None
    binary_sha256: str | None
    image: str | None
    script: str | None
    command: Sequence[str]
    arguments: Sequence[str]
    environment: Mapping[str, str]
    resources: Resources | None
    time_limit_s: float | None
    grace_s: float
    max_retries: int
    asked: Mapping[str, Any]
    effective_class: PriorityClass
    effective_priority: int
    config: Mapping[str, Any] | None = None
    members: int = 1


@dataclass(frozen=True)
class AttemptView:
    """One try and its typed record: a plain job's, one member's of a gang, or (with `members`) the gang's in sum."""

    id: UUID
    number: int
    executor_id: str
    executor_ip: str | None
    claimed_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    state_word: str
    outcome: str | None
    exit_code: int | None
    signal: int | None
    oom: bool
    limit_hit: str | None
    reason: str | None
    stopped_by: str | None
    gpu_uuids: Sequence[str]
    peak_memory_bytes: int | None
    cpu_seconds: float | None
    peak_cpu_cores: float | None
    peak_gpu_memory_bytes: int | None
    output_bytes: int
    truncated_bytes: int
    log_gap: bool
    image_digest: str | None
    member: int = 0
    leader_id: UUID | None = None
    members: Sequence[AttemptView] = ()


@dataclass(frozen=True)
class ParentView:
    """What a job depends on: on which end it may start, whether that was settled, and the parent's state now.

    `settled`: None while the parent goes on, True when the job may start, False when it never can. `state` is a word;
    None when the parent is forgotten.
    """

    id: UUID
    is_array: bool
    terms: Terms
    settled: bool | None
    state: str | None


@dataclass(frozen=True)
class JobDetail:
    """A job with what was asked, its attempts, who holds it, and the beginning of the last attempt's output."""

    job: JobView
    spec: SpecView
    attempts: Sequence[AttemptView]
    stdout: bytes = b""
    stderr: bytes = b""
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    hold: Hold | None = None
    depends_on: Sequence[ParentView] = ()


@dataclass(frozen=True)
class Stats:
    """Exact counts of one tenant's jobs (or all), and how many executors live."""

    by_state: Mapping[JobState, int]
    pending_by_class: Mapping[PriorityClass, int]
    active_executors: int


@dataclass(frozen=True)
class ExecutorView:
    """One executor: a node with an agent, or a program that claims through the jobs contract."""

    executor_id: str
    kind: str
    state: str
    current_job_id: UUID | None
    job_type: str | None
    last_heartbeat: datetime
    jobs_completed: int
    slots: int
    gpus: Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Gauges:
    """Numbers for Prometheus; keys are words."""

    jobs: Mapping[tuple[str, str], int]
    executors: Mapping[str, int]
    tasks_age_s: Mapping[str, float]
    task_detail: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    reserved_jobs: int = 0


def view_of(row: Row | None) -> JobView:
    """The view of a job's row."""
    assert row is not None
    return JobView(
        id=row.id,
        tenant_id=row.tenant_id,
        type=row.type,
        state=JobState(row.state),
        ready=row.ready,
        reason=row.reason,
        message=row.message,
        stop_cause=None if row.stop_cause is None else StopCause(row.stop_cause),
        stop_by=row.stop_by,
        stop_reason=row.stop_reason,
        contract=row.contract,
        priority_class=PriorityClass(row._mapping["class"]),
        priority=row.priority,
        executor_id=row.node_id,
        attempt=row.attempt,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        exit_code=row.exit_code,
        signal=row.signal,
        not_before=row.not_before,
        array_id=row.array_id,
        array_index=row.array_index,
        attempt_started_at=row._mapping.get("attempt_started_at"),
    )


_ENDED_AS = {"completed": "completed", "cancelled": "cancelled"}


def word_of_outcome(outcome: str | None) -> str:
    """How an attempt stands in one word; whatever did not complete and was not cancelled reads as failed."""
    return "running" if outcome is None else _ENDED_AS.get(outcome, "failed")


def attempt_view(row: Row) -> AttemptView:
    """The view of an attempt's row."""
    return AttemptView(
        id=row.id,
        number=row.number,
        executor_id=row.node_id,
        executor_ip=row.node_ip,
        claimed_at=row.claimed_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        state_word=word_of_outcome(row.outcome),
        outcome=row.outcome,
        exit_code=row.exit_code,
        signal=row.signal,
        oom=row.oom,
        limit_hit=row.limit_hit,
        reason=row.reason,
        stopped_by=row.stopped_by,
        gpu_uuids=tuple(row.gpu_uuids),
        peak_memory_bytes=row.peak_memory_bytes,
        cpu_seconds=row.cpu_seconds,
        peak_cpu_cores=row.peak_cpu_cores,
        peak_gpu_memory_bytes=row.peak_gpu_memory_bytes,
        output_bytes=row.output_bytes,
        truncated_bytes=row.truncated_bytes,
        log_gap=row.log_gap,
        image_digest=row.image_digest,
        member=row.member,
        leader_id=row.leader_id,
    )


def spec_view(row: Row, key: Row) -> SpecView:
    """The view of a spec's row with its scheduling key's."""
    asked = row.hard_limits
    share = Resources(row.cpus_milli, row.memory_bytes, key.gpus, key.gpu_memory_bytes, key.gpu_model, key.gpu_shared)
    return SpecView(
        runner=row.runner,
        binary_url=row.binary_url,
        binary_sha256=row.binary_sha256,
        image=row.image,
        script=row.script,
        command=tuple(row.command),
        arguments=tuple(row.arguments),
        environment=row.environment,
        resources=share if asked else None,
        time_limit_s=row.time_limit_s,
        grace_s=row.grace_s,
        max_retries=row.max_retries,
        members=row.members,
        asked=row.asked,
        config=row.config,
        effective_class=PriorityClass(key._mapping["class"]),
        effective_priority=key.priority,
    )
