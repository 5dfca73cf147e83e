"""Routes about nodes, for operators: see them, drain and resume them, label them, take GPUs out and in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import Response

from app.api.answers import json_answer
from app.api.auth import OPERATOR, needs, principal
from app.api.hub import hub
from app.api.jobs import schemas
from app.api.jobs.blueprint import blueprint
from app.api.jobs.node_schemas import (
    DrainAsked,
    GpuChanges,
    HostDetailShown,
    HostShown,
    NodeChanges,
    NodesAsked,
    ResumeAsked,
)
from app.api.jobs.node_translate import node_detailed, node_shown
from app.api.limits import limited
from app.domain.errors import NotFound
from app.domain.priority import PriorityClass
from app.services import operate

TAGS = ["nodes"]


@blueprint.route("/nodes", methods=["GET"], tags=TAGS)
@limited("admin")
@needs(OPERATOR)
@blueprint.arguments(NodesAsked(), location="query")
@blueprint.response(200, HostShown(many=True))
@blueprint.doc(summary="List nodes")
def list_nodes(asked: Mapping[str, Any]) -> Response:
    """All that ever joined, by cluster and name; of executors outside, those heard in the last three minutes."""
    return json_answer([node_shown(node) for node in operate.list_nodes(hub().db, asked["state"], asked["label"])])


@blueprint.route("/nodes/<node>", methods=["GET"], tags=TAGS)
@limited("admin")
@needs(OPERATOR)
@blueprint.response(200, HostDetailShown)
@blueprint.alt_response(404, schema=schemas.ErrorShown)
@blueprint.doc(summary="Show a node with the jobs it holds")
def show_node(node: str) -> Response:
    """Totals, what is free, each GPU, labels, its drain, and its jobs."""
    return json_answer(node_detailed(operate.get_node(hub().db, _name(node))))


@blueprint.route("/nodes/<node>", methods=["PATCH"], tags=TAGS)
@limited("admin")
@needs(OPERATOR)
@blueprint.arguments(NodeChanges())
@blueprint.response(200, HostDetailShown)
@blueprint.alt_response(404, schema=schemas.ErrorShown)
@blueprint.doc(summary="Label a node")
def label_node(asked: Mapping[str, Any], node: str) -> Response:
    """Labels of operators lie over those of the node's own agent, and stay when it restarts."""
    return json_answer(node_detailed(operate.label(hub().db, _name(node), asked["labels"])))


@blueprint.route("/nodes/<node>", methods=["DELETE"], tags=TAGS)
@limited("admin")
@needs(OPERATOR)
@blueprint.response(204)
@blueprint.alt_response(400, schema=schemas.ErrorShown, description="It lives, or still holds jobs")
@blueprint.alt_response(404, schema=schemas.ErrorShown)
@blueprint.doc(summary="Forget a node that is gone")
def forget_node(node: str) -> Response:
    """Its labels, drain and GPUs taken out go with it. One that comes back registers as a new node."""
    operate.forget(hub().db, _name(node), hub().settings.lease_s)
    return Response(status=204)


@blueprint.route("/nodes/<node>/drain", methods=["POST"], tags=TAGS)
@limited("admin")
@needs(OPERATOR)
@blueprint.arguments(DrainAsked())
@blueprint.response(200, HostDetailShown)
@blueprint.alt_response(404, schema=schemas.ErrorShown)
@blueprint.doc(summary="Drain a node")
def drain_node(asked: Mapping[str, Any], node: str) -> Response:
    """It takes nothing more, at once, until it is resumed; after the deadline what still runs is stopped, uncharged."""
    shared, name = hub(), _name(node)
    drained = operate.drain(shared.db, name, asked["reason"], principal().subject, asked["deadline_seconds"])
    shared.ringer.wake_node(name)
    return json_answer(node_detailed(drained))


@blueprint.route("/nodes/<node>/resume", methods=["POST"], tags=TAGS)
@limited("admin")
@needs(OPERATOR)
@blueprint.arguments(ResumeAsked())
@blueprint.response(200, HostDetailShown)
@blueprint.alt_response(404, schema=schemas.ErrorShown)
@blueprint.doc(summary="End a drain")
def resume_node(asked: Mapping[str, Any], node: str) -> Response:
    """It takes jobs again. A node that does not drain stays as it is."""
    shared, name = hub(), _name(node)
    resumed = operate.resume(shared.db, name, shared.settings.lease_s)
    shared.ringer.wake_node(name)
    return json_answer(node_detailed(resumed))


@blueprint.route("/nodes/<node>/gpus/<gpu>", methods=["PATCH"], tags=TAGS)
@limited("admin")
@needs(OPERATOR)
@blueprint.arguments(GpuChanges())
@blueprint.response(200, HostDetailShown)
@blueprint.alt_response(404, schema=schemas.ErrorShown)
@blueprint.doc(summary="Take a GPU out or in, or let jobs share it, by UUID or index")
def change_gpu(asked: Mapping[str, Any], node: str, gpu: str) -> Response:
    """A job that has it goes on. One that its own agent has taken out comes back when it is well."""
    shared, name = hub(), _name(node)
    if "shared" in asked:
        changed = operate.share_gpu(shared.db, name, _name(gpu), asked["shared"])
    if asked.get("out") is not None:
        changed = operate.take_gpu_out(shared.db, name, _name(gpu), asked["out"], principal().subject)
    elif "out" in asked:
        changed = operate.put_gpu_in(shared.db, name, _name(gpu))
    shared.ring(PriorityClass)
    return json_answer(node_detailed(changed))


def _name(text: str) -> str:
    """A name from a path. PostgreSQL has no name with a zero byte, and would refuse to look for one."""
    if "\0" in text:
        raise NotFound(f"There is nothing by the name {text[:100]!r}.")
    return text
