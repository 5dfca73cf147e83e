"""Routes of arrays: see them and their jobs, end some or all of their indices, run those that failed again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Response, request

from app.api.answers import json_answer
from app.api.auth import principal
from app.api.hub import hub
from app.api.idempotency import KEY_HEADER, answered, idempotency_key
from app.api.jobs import translate
from app.api.jobs.array_schemas import (
    ArrayCancelAsked,
    ArrayCancelled,
    ArrayJobsAsked,
    ArrayListed,
    ArrayRetried,
    ArrayRetryAsked,
    ArraysAsked,
    ArrayShown,
)
from app.api.jobs.array_translate import STATES, array_listed, parents_shown, parse_array_id, ranges_of
from app.api.jobs.blueprint import blueprint
from app.api.jobs.schemas import ErrorShown, JobListed
from app.api.limits import limited
from app.services import arrays
from app.services.idempotency import answer_once

TAGS = ["arrays"]
COUNTED = {"X-Total-Count": {"schema": {"type": "integer"}}}


@blueprint.route("/arrays", methods=["GET"], tags=TAGS)
@limited("read")
@blueprint.arguments(ArraysAsked(), location="query")
@blueprint.response(200, ArrayListed(many=True))
@blueprint.doc(summary="List arrays")
def list_arrays(asked: Mapping[str, Any]) -> Response:
    """Newest first, each with exact counts."""
    views = arrays.list_arrays(hub().db, principal().tenant_id, asked["limit"], asked["offset"])
    return json_answer([array_listed(view) for view in views])


@blueprint.route("/arrays/<array_id>", methods=["GET"], tags=TAGS)
@limited("read")
@blueprint.response(200, ArrayShown)
@blueprint.alt_response(404, schema=ErrorShown)
@blueprint.doc(summary="Show an array")
def show_array(array_id: str) -> Response:
    """What became of its indices, in numbers that are exact at this moment; those without a job yet are pending."""
    view, parents = arrays.array_detail(hub().db, principal().tenant_id, parse_array_id(array_id))
    return json_answer({**array_listed(view), "depends_on": parents_shown(parents)})


@blueprint.route("/arrays/<array_id>/jobs", methods=["GET"], tags=TAGS)
@limited("read")
@blueprint.arguments(ArrayJobsAsked(), location="query")
@blueprint.response(200, JobListed(many=True), headers=COUNTED)
@blueprint.alt_response(404, schema=ErrorShown)
@blueprint.doc(summary="List the jobs of an array")
def list_array_jobs(asked: Mapping[str, Any], array_id: str) -> Response:
    """The latest job of each index that has one, by index; X-Total-Count says how many match in all."""
    states = None if asked.get("status") is None else STATES[asked["status"]]
    views, total = arrays.list_array_jobs(
        hub().db, principal().tenant_id, parse_array_id(array_id), states, asked["limit"], asked["offset"]
    )
    return json_answer([translate.listed(view) for view in views], headers={"X-Total-Count": str(total)})


@blueprint.route("/arrays/<array_id>/cancel", methods=["POST"], tags=TAGS)
@limited("bulk")
@blueprint.arguments(ArrayCancelAsked(), required=False)
@blueprint.response(200, ArrayCancelled)
@blueprint.alt_response(400, schema=ErrorShown, description="The array has ended, or has no such index")
@blueprint.alt_response(404, schema=ErrorShown)
@blueprint.alt_response(409, schema=ErrorShown, description="The first request with this key still runs")
@blueprint.alt_response(422, schema=ErrorShown, description="The key was used with another body")
@blueprint.doc(summary="End an array, or some of its indices", parameters=[KEY_HEADER])
def cancel_array(asked: Mapping[str, Any], array_id: str) -> Response:
    """What has not started is cancelled at once, what runs gets SIGTERM, its grace, SIGKILL. Again: nothing more."""
    shared, caller, identity = hub(), principal(), parse_array_id(array_id)
    ranges = ranges_of(asked["indices"], arrays.get_array(shared.db, caller.tenant_id, identity))
    answer = answer_once(
        shared.db,
        "stop",
        idempotency_key(request),
        lambda tx: arrays.cancel(
            tx, shared.settings, caller.tenant_id, identity, ranges, caller.subject, asked["reason"], asked["running"]
        ),
        lambda done: (
            200,
            {**array_listed(done.array), "cancelled": done.cancelled, "stopping": done.stopping},
        ),
    )
    if answer.fresh is not None:
        for node in answer.fresh.nodes:
            shared.ringer.wake_node(node)
    return answered(answer)


@blueprint.route("/arrays/<array_id>/retry", methods=["POST"], tags=TAGS)
@limited("bulk")
@blueprint.arguments(ArrayRetryAsked(), required=False)
@blueprint.response(200, ArrayRetried)
@blueprint.alt_response(400, schema=ErrorShown, description="None of these indices has failed, or there is no such")
@blueprint.alt_response(404, schema=ErrorShown)
@blueprint.alt_response(409, schema=ErrorShown, description="The first request with this key still runs")
@blueprint.alt_response(422, schema=ErrorShown, description="The key was used with another body")
@blueprint.doc(summary="Run the failed indices of an array again", parameters=[KEY_HEADER])
def retry_array(asked: Mapping[str, Any], array_id: str) -> Response:
    """Each becomes a new job that takes the place of the one that failed; others are left as they are."""
    shared, caller, identity = hub(), principal(), parse_array_id(array_id)
    ranges = ranges_of(asked["indices"], arrays.get_array(shared.db, caller.tenant_id, identity))
    answer = answer_once(
        shared.db,
        "retry",
        idempotency_key(request),
        lambda tx: arrays.retry(tx, shared.settings, caller.tenant_id, identity, ranges),
        lambda done: (200, {**array_listed(done[0]), "retried": done[1]}),
    )
    if answer.fresh is not None:
        shared.ring([answer.fresh[0].priority_class])
    return answered(answer)
