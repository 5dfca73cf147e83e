"""After a keeper of containers died: go on with what still runs, record what ended, remove what belongs to nobody."""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any

from workers.containers.attempt import ENDED, PREPARING, RECORD, STATE, Attempt, read_noted
from workers.containers.book import complain
from workers.containers.engine import Engine, EngineAway, EngineError
from workers.containers.jobs import Jobs
from workers.containers.recipe import LABEL_ATTEMPT, LABEL_NODE
from workers.containers.rubbish import remove_tree
from workers.containers.signals import ASK_AGAIN_S
from workers.keeper.spec import Spec


def recover(jobs: Jobs, engine: Engine) -> None:
    """Take over what an earlier keeper of this directory left. Raises EngineError while the engine does not answer."""
    containers = {
        str(one["Labels"].get(LABEL_ATTEMPT)): str(one["Id"]) for one in engine.labelled(f"{LABEL_NODE}={jobs.name}")
    }
    root = jobs.path("")
    for name in sorted(os.listdir(root)):
        attempt = _noted(jobs, name)
        if attempt is None:
            remove_tree(jobs.path(name))
            continue
        jobs.attempts[name] = attempt
        if attempt.state == ENDED:
            continue
        attempt.container = containers.get(name, "")
        if attempt.container and attempt.state != PREPARING:
            del containers[name]
            jobs.course.lead(attempt, lambda one: _resume(jobs, one))
        else:
            _lose(jobs, attempt)
    for name, container in containers.items():
        # Never started, or of an attempt that has its record: nobody waits for it.
        complain(f"removing container {container[:12]} of attempt {name}, which no attempt needs")
        with contextlib.suppress(EngineError):
            engine.remove(container)
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(f"{jobs.directory}/trash"):
            remove_tree(f"{jobs.directory}/trash/{name}")


def _noted(jobs: Jobs, name: str) -> Attempt | None:
    folder = jobs.path(name)
    state, record = read_noted(folder, STATE), read_noted(folder, RECORD)
    if state is None:
        return None
    known = {field: state["spec"][field] for field in Spec._fields if field in state["spec"]}
    attempt = Attempt(Spec(**known), folder, None)
    attempt.state = str(state["state"])
    attempt.record.update(_of_record(record or state["record"], attempt.record))
    if record is not None:
        attempt.state = ENDED
        return attempt
    # The boot clock starts anew with the host; whatever ran before has ended with it.
    attempt.rebooted = state["boot"] != jobs.boot
    attempt.deadline = 0.0 if attempt.rebooted else float(state["deadline"])
    attempt.term_sent, attempt.kill_at = bool(state["term_sent"]), state["kill_at"]
    attempt.kill_sent = bool(state.get("kill_sent"))
    attempt.output.resume(int(state["said"]))
    return attempt


def _of_record(noted: dict[str, Any], blank: dict[str, Any]) -> dict[str, Any]:
    return {name: noted[name] for name in blank if name in noted}


def _resume(jobs: Jobs, attempt: Attempt) -> None:
    while True:
        try:
            reader, output = jobs.course.read_again(attempt)
            break
        except EngineAway as exc:
            complain(f"the output of attempt {attempt.id} cannot be read: {exc}; asking again")
            time.sleep(ASK_AGAIN_S)
    jobs.course.follow(attempt, reader, output)


def _lose(jobs: Jobs, attempt: Attempt) -> None:
    """End an attempt that has no container to go on with."""
    if attempt.state == PREPARING:
        # Nothing of it ran: the job is simply given another try.
        attempt.record["stop_cause"] = attempt.record["stop_cause"] or "keeper_shutdown"
    else:
        attempt.record["keeper_lost"] = True
    with jobs.lock:
        jobs.end(attempt)
