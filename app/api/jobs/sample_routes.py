"""Routes of samples: what a job used over time, and what the caller's running jobs use now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Response

from app.api.answers import json_answer, utc
from app.api.auth import principal
from app.api.hub import hub
from app.api.jobs import sample_schemas as schemas
from app.api.jobs import translate
from app.api.jobs.blueprint import blueprint
from app.api.jobs.schemas import ErrorShown
from app.api.limits import limited
from app.domain.resources import Resources
from app.services import samples
from app.services.samples import JobUsage, Sample


@blueprint.route("/jobs/<job_id>/samples", methods=["GET"])
@limited("read")
@blueprint.arguments(schemas.SamplesAsked(), location="query")
@blueprint.response(200, schemas.SamplesShown)
@blueprint.alt_response(404, schema=ErrorShown)
@blueprint.doc(summary="Show what a job used over time")
def list_samples(asked: Mapping[str, Any], job_id: str) -> Response:
    """CPU cores and memory every few seconds; kept for fewer days than the job itself."""
    page = samples.of_job(
        hub().db,
        principal().tenant_id,
        translate.parse_job_id(job_id),
        asked.get("start_time"),
        asked.get("end_time"),
        asked["limit"],
        asked.get("attempt"),
    )
    return json_answer(
        {
            "job_id": job_id.lower(),
            "total": page.total,
            "holds": _share(page.share),
            "samples": [_sample(one) for one in page.samples],
        }
    )


@blueprint.route("/samples/latest", methods=["GET"])
@limited("read")
@blueprint.arguments(schemas.LatestAsked(), location="query")
@blueprint.response(200, schemas.UsageShown(many=True))
@blueprint.alt_response(404, schema=ErrorShown)
@blueprint.doc(summary="Show what running jobs use now")
def latest_samples(asked: Mapping[str, Any]) -> Response:
    """The caller's active jobs, the newest first, each with its last samples; `job_id` asks for one of them."""
    job_id = translate.parse_job_id(asked["job_id"]) if "job_id" in asked else None
    used = samples.latest(hub().db, principal().tenant_id, job_id, asked["limit"])
    return json_answer([_usage(one) for one in used])


def _usage(one: JobUsage) -> dict[str, Any]:
    return {
        "job_id": str(one.job_id),
        "type": one.type,
        "state_detail": one.state.word,
        "executor_id": one.node_id,
        "attempt": one.attempt,
        "member": one.member,
        "started_at": utc(one.started_at),
        "holds": _share(one.share),
        "hard_limits": one.hard_limits,
        "recent": [_sample(sample) for sample in one.recent],
    }


def _share(share: Resources) -> dict[str, Any]:
    return {
        "cpus": share.cpus_milli / 1000,
        "memory_bytes": share.memory_bytes,
        "gpus": share.gpus,
        "gpu_memory_bytes": share.gpu_memory_bytes,
    }


def _sample(sample: Sample) -> dict[str, Any]:
    return {
        "timestamp": utc(sample.at),
        "attempt": sample.attempt,
        "member": sample.member,
        "cpu_cores": None if sample.cpu_cores is None else round(sample.cpu_cores, 3),
        "memory_bytes": sample.memory_bytes,
        "gpu_percent": sample.gpu_percent,
        "gpu_memory_bytes": sample.gpu_memory_bytes,
    }
