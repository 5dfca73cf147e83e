"""Jobs that no registered node could ever run: refused at submit where the setting says so, never silently pending."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from app.domain.errors import FieldProblem, Unrunnable
from app.domain.explain import Ask, Cause, NodeNow
from app.domain.resources import Resources
from app.domain.states import JobState
from app.domain.unrunnable import distinct, never_cause
from app.services.explain import node_now, shape_of
from app.services.passes import Pass, run_task
from app.services.views import JobView
from app.storage import explain as stored_nodes
from app.storage import unrunnable as stored
from app.storage.database import Database, Tx
from app.storage.keys import Shape
from config.settings import Settings

EXTERNAL_S = 86_400.0
"""An executor outside that was heard in the last day may come again."""
MOST_KEYS = 20_000
COUNTED = 10_000
"""Jobs of one key are counted so far."""
MOST_ALERTS = 20
NEVER = "No registered node could ever run this job."


def refuse(tx: Tx, settings: Settings, shapes: Sequence[Shape]) -> None:
    """Raises Unrunnable when one of the shapes (in the order of the request) could run on no registered node."""
    if settings.unrunnable != "refuse":
        return
    nodes = _nodes(tx, settings)
    causes = {shape: never_cause(nodes, _ask(shape), shape[9]) for shape in set(shapes)}
    problems = [
        FieldProblem("resources", f"{NEVER} {cause.message}", index if len(shapes) > 1 else None)
        for index, shape in enumerate(shapes)
        if (cause := causes[shape]) is not None
    ]
    if problems:
        first = problems[0]
        at = "" if first.index is None else f"[{first.index}] "
        raise Unrunnable(f"{at}{first.message}", problems[:100])


def never_wait(tx: Tx, job: JobView) -> JobView:
    """The job with reason and message where no registered node could ever run it, as the scheduler last found."""
    if job.state != JobState.PENDING or not job.ready:
        return job
    told = stored.message_of(tx, job.id)
    return job if told is None else replace(job, reason="unrunnable", message=told)


def mark(db: Database, settings: Settings) -> Pass:
    """Notes which live keys no registered node could ever serve, counts their jobs, and alerts of those found anew."""

    def work(tx: Tx, done: Pass) -> None:
        keys = stored.live_keys(tx, MOST_KEYS)
        nodes = _nodes(tx, settings)
        kinds = distinct(nodes)
        known: dict[tuple[Ask, int], Cause | None] = {}
        found: dict[int, tuple[str, str]] = {}
        for key in keys:
            ask = Ask(shape_of(key), key.runner, key.external_ok)
            if (ask, key.members) not in known:
                known[ask, key.members] = never_cause(nodes if key.members > 1 else kinds, ask, key.members)
            cause = known[ask, key.members]
            if cause is not None:
                found[key.id] = (cause.code.value, cause.message)
        before = stored.marked(tx)
        changed = {key_id: told for key_id, told in found.items() if before.get(key_id) != told[1]}
        stored.note(tx, changed, sorted(before.keys() - found.keys()))
        tenants = {key.id: key.tenant for key in keys}
        fresh = [key_id for key_id in found if key_id not in before]
        done.detail |= {
            "keys": len(found),
            "jobs": stored.waiting(tx, list(found), COUNTED) if found else 0,
            "alerts": [_alert(tenants[key_id], found[key_id]) for key_id in fresh[:MOST_ALERTS]],
        }

    return run_task(db, "unrunnable", work)


def _alert(tenant: str, told: tuple[str, str]) -> str:
    return f"jobs of tenant {tenant} wait that no registered node could ever run ({told[0]}): {told[1]}"


def _nodes(tx: Tx, settings: Settings) -> list[NodeNow]:
    return [node_now(row, set(), settings.lease_s) for row in stored_nodes.nodes_now(tx, True, EXTERNAL_S)]


def _ask(shape: Shape) -> Ask:
    _cls, _priority, runner, external, cpus, memory, gpus, gpu_memory, model, _members, shared = shape
    return Ask(Resources(cpus, memory, gpus, gpu_memory, model, shared), runner, external)
