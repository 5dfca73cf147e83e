"""Submit: jobs and the answer under their idempotency key become durable together, or not at all."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

from app.domain.array import ArrayAsked
from app.domain.errors import NotFound, QuotaExceeded, Refused
from app.domain.gang import runner_of_key
from app.domain.identity import uuid7
from app.domain.job import JobRequest, Submitted
from app.domain.resources import MIB, Resources
from app.domain.states import Reason
from app.domain.tenant import Quota, Tenant, amount, effective, excess, may_opt_out, reserved
from app.services.arrays import ArrayView, make_array
from app.services.dependencies import hold_parents
from app.services.idempotency import IdempotencyKey as IdempotencyKey
from app.services.idempotency import keep, replayed
from app.services.queue import position_in
from app.services.tenants import of_row
from app.services.unrunnable import refuse
from app.services.withheld import hold_new
from app.storage import jobs as stored_jobs
from app.storage import keys as stored_keys
from app.storage import queue as stored_queue
from app.storage import tenants as stored_tenants
from app.storage.database import Database, Tx
from app.storage.keys import Shape
from config.settings import Settings

MOST_KNOWN = 10_000
_known: dict[UUID, Tenant] = {}
"""Tenants as they were when they were last read here. Only a guess, which saves a statement per submit: the statement
that inserts the jobs compares it with the tenant's row, and nothing is inserted on terms that are no longer true."""
MAX_OVER = 100
"""So many jobs of a bulk that exceed a quota are named in its refusal."""


@dataclass(frozen=True)
class Submission:
    """What a submit led to: new jobs, or (`replay`) the status and answer that the same request got before."""

    jobs: list[Submitted]
    replay: tuple[int, Any] | None = None


@dataclass(frozen=True)
class ArraySubmission:
    """What the submit of an array led to: a new array, or (`replay`) what the same request got before."""

    array: ArrayView | None
    replay: tuple[int, Any] | None = None


def submit(
    db: Database,
    settings: Settings,
    tenant_id: UUID,
    requests: Sequence[JobRequest],
    idempotency: IdempotencyKey | None = None,
    render: Callable[[list[Submitted]], tuple[int, Any]] | None = None,
    places: bool = False,
    by: str = "user",
) -> Submission:
    """Makes all of `requests` pending jobs in one transaction, in their order.

    With `places` each knows its place in its queue. `by` is who holds those that ask for it.
    With an idempotency key the rendered answer is stored in the same transaction, so a repeat gets it word for word.
    The tenant's tier caps what counts in the queue; what was asked is kept beside it. Raises KeyReused (same key, other
    request), KeyInFlight (its first request still runs), QuotaExceeded (a job that could never start), Refused (the
    tenant is inactive, or has too many different shapes pending), Unrunnable (where the setting says so), Unavailable
    (then nothing is known: repeat with the same key).
    """
    with db.transaction("submit") as tx:
        if idempotency is not None:
            replay = replayed(tx, idempotency)
            if replay is not None:
                return Submission([], replay)
        jobs = submit_in(tx, settings, tenant_id, requests, by)
        if places:
            jobs = [replace(job, queue_position=_place(tx, job.id)) for job in jobs]
        if idempotency is not None and render is not None:
            keep(tx, idempotency, *render(jobs))
    return Submission(jobs)


def submit_in(tx: Tx, settings: Settings, tenant_id: UUID, requests: Sequence[JobRequest], by: str) -> list[Submitted]:
    """`submit` inside the caller's transaction, without a key."""
    held = hold_parents(tx, tenant_id, requests)
    waiting = frozenset(i for i, one in enumerate(requests) if held is not None and held.waits(one.after))
    jobs = _insert(tx, settings, tenant_id, requests, waiting)
    if held is not None:
        held.link(tx, {job.id: one.after for job, one in zip(jobs, requests, strict=True)})
    return hold_new(tx, requests, jobs, by)


def submit_array(
    db: Database,
    settings: Settings,
    tenant_id: UUID,
    request: JobRequest,
    asked: ArrayAsked,
    idempotency: IdempotencyKey | None = None,
    render: Callable[[ArrayView], tuple[int, Any]] | None = None,
) -> ArraySubmission:
    """Accepts an array whole, and makes its first indices pending jobs, in one transaction.

    Promises and errors are those of `submit`; besides, raises Invalid for more indices than may be.
    """
    with db.transaction("submit") as tx:
        if idempotency is not None:
            replay = replayed(tx, idempotency)
            if replay is not None:
                return ArraySubmission(None, replay)
        held = hold_parents(tx, tenant_id, [request])
        tenant = _active(tx, tenant_id)
        share = _admitted(settings, tenant, [request])[0]
        shape = _shape(tenant, request, share)
        refuse(tx, settings, [shape])
        row = _row(UUID(int=0), _keys(tx, settings, tenant.id, [shape])[shape], request, share, settings, 0)
        template = {name: value for name, value in row.items() if name not in {"id", "place"}}
        waits = held is not None and held.waits(request.after)
        array = make_array(tx, settings, tenant.id, request, asked, template, waits)
        if held is not None:
            held.link(tx, {array.id: request.after}, are_arrays=True)
        if idempotency is not None and render is not None:
            keep(tx, idempotency, *render(array))
    return ArraySubmission(array)


def _place(tx: Tx, job_id: UUID) -> int:
    row = stored_queue.place(tx, job_id)
    return 0 if row is None else position_in(tx, row).position


def _insert(
    tx: Tx, settings: Settings, tenant_id: UUID, requests: Sequence[JobRequest], waiting: frozenset[int]
) -> list[Submitted]:
    known = _known.get(tenant_id)
    if known is not None:
        try:
            jobs = _insert_as(tx, settings, known, requests, waiting, sure=False)
        except Refused:
            jobs = None  # Perhaps for what was true once only.
        if jobs is not None:
            return jobs
    tenant = _active(tx, tenant_id)
    if len(_known) >= MOST_KNOWN:
        _known.clear()
    _known[tenant_id] = tenant
    jobs = _insert_as(tx, settings, tenant, requests, waiting, sure=True)
    assert jobs is not None
    return jobs


def _insert_as(
    tx: Tx,
    settings: Settings,
    tenant: Tenant,
    requests: Sequence[JobRequest],
    waiting: frozenset[int],
    sure: bool,
) -> list[Submitted] | None:
    """Inserts the jobs on the terms of `tenant`; None, and no job, when these are not `sure` and no longer true.

    Those at the places `waiting` wait for other jobs.
    """
    _check_preemptible(tenant, requests)
    shares = _admitted(settings, tenant, requests)
    shapes = [_shape(tenant, request, share) for request, share in zip(requests, shares, strict=True)]
    refuse(tx, settings, shapes)
    key_ids = _keys(tx, settings, tenant.id, sorted(set(shapes)))
    now_ms = time.time_ns() // 1_000_000
    rows = [
        _row(uuid7(now_ms, place, secrets.randbits(62)), key_ids[shape], request, share, settings, place)
        for place, (request, shape, share) in enumerate(zip(requests, shapes, shares, strict=True))
    ]
    for place in waiting:
        rows[place]["waits"] = 1
    quota = {f"quota_{name}": limit for name, limit in vars(tenant.quota).items()}
    terms = None if sure else {"tier": tenant.tier.value, **quota}
    made = {row.id: row.created_at for row in stored_jobs.insert_jobs(tx, tenant.id, rows, terms)}
    if rows and not made:
        return None
    return [
        Submitted(
            UUID(row["id"]),
            request.type,
            request.priority_class,
            made[UUID(row["id"])],
            reason=Reason.DEPENDENCY if "waits" in row else Reason.NEW,
        )
        for row, request in zip(rows, requests, strict=True)
    ]


def _active(tx: Tx, tenant_id: UUID) -> Tenant:
    row = stored_tenants.by_id(tx, tenant_id)
    if row is None:
        raise NotFound("Tenant not found", tenant_id=str(tenant_id))
    if not row.active:
        message = f"Tenant {row.name} is inactive: it can submit nothing until an admin activates it again."
        raise Refused(message, tenant=row.name)
    return of_row(row)


def _check_preemptible(tenant: Tenant, requests: Sequence[JobRequest]) -> None:
    """Raises Refused for a job that will not make room for others though its tenant's tier is too low for that."""
    if any(one.preemptible is False for one in requests) and not may_opt_out(tenant):
        raise Refused(
            f"A job of tier {tenant.tier} cannot be exempt from preemption (preemptible: false); tiers high and"
            " critical can, or an admin changes allow_preemption of the tenant.",
            tenant=tenant.name,
            field="preemptible",
        )


def _admitted(settings: Settings, tenant: Tenant, requests: Sequence[JobRequest]) -> list[Resources]:
    """The share of each job. Raises QuotaExceeded for all when one alone exceeds the quota: it would wait for ever."""
    asked = [r.resources or Resources(settings.default_cpus_milli, settings.default_memory_mib * MIB) for r in requests]
    if tenant.quota == Quota():
        return [one.rounded() for one in asked]
    asks = [(one, request.members) for one, request in zip(asked, requests, strict=True)]
    share_of = {ask: reserved(ask[0], tenant.quota, ask[1]) for ask in set(asks)}
    shares = [share_of[ask] for ask in asks]
    broken = {ask: limits[0].name for ask, share in share_of.items() if (limits := excess(tenant.quota, share, ask[1]))}
    over = [
        {"index": place, "field": broken[ask], "message": _over(tenant, *ask, broken[ask])}
        for place, ask in enumerate(asks)
        if ask in broken
    ]
    if not over:
        return shares
    if len(requests) == 1:
        raise QuotaExceeded(f"The job {over[0]['message']}.", tenant=tenant.name, field=over[0]["field"])
    raise QuotaExceeded(
        f"Job [{over[0]['index']}] {over[0]['message']}. None of the {len(requests)} jobs was submitted.",
        tenant=tenant.name,
        index=over[0]["index"],
        field=over[0]["field"],
        errors=over[:MAX_OVER],
    )


def _over(tenant: Tenant, asked: Resources, members: int, name: str) -> str:
    broken = next(one for one in excess(tenant.quota, asked, members) if one.name == name)
    need = amount(name, broken.need) + (f" for its {members} members" if members > 1 else "")
    return f"asks for {need}; the quota of tenant {tenant.name} is {amount(name, broken.limit)}"


def _keys(tx: Tx, settings: Settings, tenant_id: UUID, shapes: list[Shape]) -> dict[Shape, int]:
    found = stored_keys.find_keys(tx, tenant_id, shapes)
    missing = [shape for shape in shapes if shape not in found]
    if missing:
        if stored_keys.count_live(tx, tenant_id) + len(missing) > settings.live_keys_per_tenant:
            raise Refused(
                f"More than {settings.live_keys_per_tenant} different combinations of class, priority and resources "
                "are pending; wait until some have run, or ask for shapes that are used already."
            )
        found |= stored_keys.make_keys(tx, tenant_id, missing)
    return found


def _shape(tenant: Tenant, request: JobRequest, share: Resources) -> Shape:
    alone = request.members == 1 and share.gpus == 0
    external = request.runner == "process" and request.binary_url is not None and alone
    priority_class, priority = effective(tenant.tier, request.priority_class, request.priority)
    runner = runner_of_key(request.runner, request.members)
    return (
        int(priority_class), priority, runner, external, share.cpus_milli, share.memory_bytes, share.gpus,
        share.gpu_memory_bytes, share.gpu_model, request.members, share.gpu_shared,
    )  # fmt: skip


def _row(
    job_id: UUID, key_id: int, request: JobRequest, share: Resources, settings: Settings, place: int
) -> dict[str, Any]:
    return {
        "id": str(job_id),
        "place": place,
        "key_id": key_id,
        "class": int(request.priority_class),
        "priority": request.priority_class.default_priority if request.priority is None else request.priority,
        "contract": request.contract,
        "type": request.type,
        "runner": request.runner,
        "binary_url": request.binary_url,
        "binary_sha256": request.binary_sha256,
        "image": request.image,
        "script": request.script,
        "command": list(request.command),
        "arguments": list(request.arguments),
        "environment": dict(request.environment),
        "hard_limits": request.resources is not None,
        "cpus_milli": share.cpus_milli,
        "memory_bytes": share.memory_bytes,
        "time_limit_s": request.time_limit_s,
        "grace_s": settings.default_grace_s if request.grace_s is None else request.grace_s,
        "max_retries": request.max_retries,
        "backoff_s": request.backoff_s,
        "backoff_multiplier": request.backoff_multiplier,
        "asked": dict(request.asked),
        "config": None if request.config is None else dict(request.config),
        "members": request.members,
        "preemptible": request.preemptible,
    }


def keys_for(tx: Tx, settings: Settings, tenant_id: UUID, shapes: list[Shape]) -> dict[Shape, int]:
    """The ids of the keys of these shapes, live from now on. Raises Refused when the tenant would have too many."""
    return _keys(tx, settings, tenant_id, shapes)
