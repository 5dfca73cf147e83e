"""The route by which a job, or a service that works for it, says that its work is saved."""

from __future__ import annotations

from flask import Response

from app.api.auth import principal
from app.api.hub import hub
from app.api.jobs import translate
from app.api.jobs.blueprint import blueprint
from app.api.jobs.schemas import ErrorShown
from app.services import checkpoints


@blueprint.route("/jobs/<job_id>/checkpoint", methods=["POST"])
@blueprint.response(204)
@blueprint.alt_response(400, schema=ErrorShown, description="The job does not run")
@blueprint.alt_response(404, schema=ErrorShown)
@blueprint.doc(summary="Report a checkpoint of a running job")
def report_checkpoint(job_id: str) -> Response:
    """What the job did until now is safe: if others need its place, stopping it costs only what comes after.

    Inside a job it is simpler to touch the file that `CFAB_CHECKPOINT` names.
    """
    checkpoints.report(hub().db, principal().tenant_id, translate.parse_job_id(job_id))
    return Response(status=204)
