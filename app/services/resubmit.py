"""The same again: a new job from what another was asked."""

from __future__ import annotations

from uuid import UUID

from app.domain.errors import NotFound
from app.domain.job import JobRequest
from app.domain.priority import PriorityClass
from app.domain.resources import Resources
from app.storage import jobs
from app.storage.database import Database


def request_of(db: Database, tenant_id: UUID, job_id: UUID) -> JobRequest:
    """What a job was asked, with the class and priority it has now. Raises NotFound, also for another tenant's."""
    with db.transaction("read") as tx:
        row, spec = jobs.job_view(tx, job_id), jobs.job_spec(tx, job_id)
        if row is None or spec is None or row.tenant_id != tenant_id:
            raise NotFound("Job not found", job_id=str(job_id))
        (key,) = jobs.specs_with_keys(tx, [job_id])
    share = Resources(spec.cpus_milli, spec.memory_bytes, key.gpus, key.gpu_memory_bytes, key.gpu_model, key.gpu_shared)
    return JobRequest(
        type=row.type,
        priority_class=PriorityClass(row._mapping["class"]),
        contract=row.contract,
        runner=spec.runner,
        priority=row.priority,
        binary_url=spec.binary_url,
        binary_sha256=spec.binary_sha256,
        image=spec.image,
        script=spec.script,
        command=tuple(spec.command),
        arguments=tuple(spec.arguments),
        environment=spec.environment,
        resources=share if spec.hard_limits else None,
        time_limit_s=spec.time_limit_s,
        grace_s=spec.grace_s,
        max_retries=spec.max_retries,
        backoff_s=spec.backoff_s,
        backoff_multiplier=spec.backoff_multiplier,
        asked=spec.asked,
        config=spec.config,
        members=spec.members,
        preemptible=spec.preemptible,
    )
