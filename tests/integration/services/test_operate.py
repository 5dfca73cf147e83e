"""Operators and nodes: drains hold until they are ended and stop what is late; labels stay; GPUs go out and in."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.domain.errors import Invalid, NotFound
from app.domain.states import JobState, StopCause
from app.services import operate, recover
from app.services.clusters import clusters
from app.services.external import claim_external
from app.services.nodes import NodeOffer, register
from app.services.nodes import renew as tell
from tests.factories import BACKGROUND, Fabric, at_once, binary_job, gpu, job, share


def test_a_drain_says_who_why_and_since_when_and_survives_a_new_agent(fabric: Fabric) -> None:
    node = fabric.add_node("host")
    drained = operate.drain(fabric.db, node.id, "new driver", "ops", 3600)
    assert drained.state == "draining"
    assert drained.drain is not None
    assert (drained.drain.reason, drained.drain.by) == ("new driver", "ops")
    assert drained.drain.deadline is not None and drained.drain.since is not None
    again = fabric.add_node("host")
    told = fabric.renew(again)
    assert told.drain is not None
    assert (told.drain.reason, told.drain.by, told.drain.over) == ("new driver", "ops", False)
    fabric.submit_one()
    assert fabric.claim(again) == []
    resumed = operate.resume(fabric.db, node.id, 60)
    assert (resumed.state, resumed.drain) == ("ready", None)
    assert len(fabric.claim(again)) == 1


def test_a_second_order_changes_reason_and_deadline_but_not_since_when(fabric: Fabric) -> None:
    node = fabric.add_node()
    first = operate.drain(fabric.db, node.id, "a", "ops", 60).drain
    second = operate.drain(fabric.db, node.id, "b", "other").drain
    assert first is not None and second is not None
    assert (second.reason, second.by, second.deadline) == ("b", "other", None)
    assert second.since == first.since
    third = operate.drain(fabric.db, node.id, None, "other", 60).drain
    assert third is not None and third.reason == "b"
    assert operate.drain(fabric.db, node.id, "", "other").drain.reason == ""  # type: ignore[union-attr]
    operate.resume(fabric.db, node.id, 60)
    assert operate.drain(fabric.db, node.id, None, "other").drain.reason == ""  # type: ignore[union-attr]


def test_jobs_run_on_until_the_deadline_then_they_are_stopped_and_wait_again_uncharged(fabric: Fabric) -> None:
    node = fabric.add_node()
    fabric.submit_one()
    taken = fabric.run(node)
    operate.drain(fabric.db, node.id, "", "ops", 60)
    assert recover.end_drains(fabric.db).wake == frozenset()
    assert fabric.state(taken.job_id) == JobState.RUNNING
    fabric.sql("UPDATE node SET drain_deadline = now() - interval '1 s'")
    drain = fabric.renew(node, taken).drain
    assert drain is not None and drain.over
    assert recover.end_drains(fabric.db).wake == {node.id}
    row = fabric.row(taken.job_id)
    assert (row.state, row.stop_cause, row.stop_by) == (JobState.STOPPING, StopCause.DRAIN, "ops")
    assert fabric.renew(node, taken).stops[taken.attempt_id][0] == StopCause.DRAIN
    assert recover.end_drains(fabric.db).wake == frozenset()
    fabric.finish(taken)
    fabric.assert_in_order()


def test_no_time_at_all_stops_jobs_with_the_order_itself(fabric: Fabric) -> None:
    node, other = fabric.add_node(), fabric.add_node()
    mine, others = fabric.submit(*[job()] * 2)
    fabric.run(node)
    fabric.run(other)
    running = operate.drain(fabric.db, node.id, "fire", "ops", 0).running
    assert [(one.id, one.stop_cause) for one in running] == [(mine, StopCause.DRAIN)]
    assert fabric.row(mine).stop_reason == "its node is drained: fire"
    assert fabric.state(others) == JobState.RUNNING


def test_a_cancel_is_stronger_than_a_drain(fabric: Fabric) -> None:
    node = fabric.add_node()
    fabric.submit_one()
    taken = fabric.run(node)
    fabric.sql("UPDATE job SET state = 3, stop_cause = 4")
    operate.drain(fabric.db, node.id, "", "ops", 0)
    assert fabric.row(taken.job_id).stop_cause == StopCause.CANCEL


def test_a_resumed_node_that_is_silent_is_offline(fabric: Fabric) -> None:
    node = fabric.add_node()
    operate.drain(fabric.db, node.id, "", "ops")
    fabric.sql("UPDATE node SET last_seen_at = now() - interval '1 hour'")
    assert operate.resume(fabric.db, node.id, 60).state == "offline"
    assert operate.resume(fabric.db, node.id, 60).state == "offline"


def test_an_executor_outside_stays_drained_though_it_asks_for_jobs(fabric: Fabric) -> None:
    fabric.submit(binary_job(), binary_job())
    assert claim_external(fabric.db, fabric.settings, "outside", None) is not None
    operate.drain(fabric.db, "outside", "", "ops")
    assert claim_external(fabric.db, fabric.settings, "outside", None) is None
    operate.resume(fabric.db, "outside", 60)
    assert claim_external(fabric.db, fabric.settings, "outside", None) is not None


def test_claims_and_drains_at_once_leave_nothing_behind(fabric: Fabric) -> None:
    nodes = [fabric.add_node(slots=4) for _ in range(3)]
    fabric.submit(*[job()] * 40)

    def act(turn: int) -> None:
        node = nodes[turn % 3]
        if turn % 2:
            operate.drain(fabric.db, node.id, "", "ops", 0)
            operate.resume(fabric.db, node.id, 60)
        else:
            for taken in fabric.claim(node, 2):
                fabric.finish(taken)

    at_once(12, act)
    fabric.assert_in_order()


def test_labels_of_operators_lie_over_the_agents_and_outlive_it(fabric: Fabric) -> None:
    offer = NodeOffer("host", 1, 1000, 10**9, labels={"zone": "a", "disk": "nvme"})
    register(fabric.db, offer, 60)
    assert operate.label(fabric.db, "host", {"zone": "b", "rack": "7"}).labels == {
        "zone": "b", "disk": "nvme", "rack": "7",
    }  # fmt: skip
    register(fabric.db, replace(offer, labels={"zone": "c"}), 60)
    assert operate.get_node(fabric.db, "host").labels == {"zone": "b", "rack": "7"}
    changed = operate.label(fabric.db, "host", {"zone": None, "never-set": None})
    assert (changed.labels, changed.operator_labels) == ({"zone": "c", "rack": "7"}, {"rack": "7"})
    assert [node.name for node in operate.list_nodes(fabric.db, labels={"rack": "7"})] == ["host"]
    assert operate.list_nodes(fabric.db, labels={"rack": "8"}) == []
    assert operate.list_nodes(fabric.db, state="draining") == []
    with pytest.raises(Invalid, match="at most 64"):
        operate.label(fabric.db, "host", {f"l{n}": "" for n in range(64)})
    assert operate.get_node(fabric.db, "host").operator_labels == {"rack": "7"}


def test_a_gpu_that_is_out_is_given_to_nobody_until_it_is_in_again(fabric: Fabric) -> None:
    node = fabric.add_node(gpus=[gpu(0), gpu(1)])
    out = operate.take_gpu_out(fabric.db, node.id, "1", "fan", "ops")
    assert [(one.uuid, one.state, one.reason, one.out_by) for one in out.gpus] == [
        ("GPU-0", "free", "", None), ("GPU-1", "out", "fan", "ops"),
    ]  # fmt: skip
    fabric.submit(*[job(resources=share(gpus=1))] * 2)
    (taken,) = fabric.claim(node)
    assert taken.gpu_uuids == ("GPU-0",)
    assert clusters(fabric.db)[0].nodes[0].free_gpus == 0
    again = fabric.add_node(node.id, gpus=[gpu(0), gpu(1)])
    assert fabric.claim(again) == []
    back = operate.put_gpu_in(fabric.db, node.id, "GPU-1")
    assert [(one.state, one.job_id) for one in back.gpus] == [("held", taken.job_id), ("free", None)]
    assert [one.gpu_uuids for one in fabric.claim(again)] == [("GPU-1",)]
    operate.put_gpu_in(fabric.db, node.id, "GPU-1")


def test_a_job_keeps_its_gpu_when_that_is_taken_out(fabric: Fabric) -> None:
    node = fabric.add_node(gpus=[gpu(0)])
    fabric.submit_one(resources=share(gpus=1))
    taken = fabric.run(node)
    (one,) = operate.take_gpu_out(fabric.db, node.id, "GPU-0", "fan", "ops").gpus
    assert (one.state, one.job_id) == ("out", taken.job_id)
    fabric.finish(taken)
    fabric.submit_one(resources=share(gpus=1))
    assert fabric.claim(node) == []


def test_what_a_renewal_says_of_gpus_replaces_what_was_known(fabric: Fabric) -> None:
    node = fabric.add_node(gpus=[gpu(0)])
    sick = {**vars(gpu(0)), "healthy": False, "reason": "lost"}
    fabric.submit_one(resources=share(gpus=1))
    renew = {"lease_s": 60.0, "held": []}
    tell(fabric.db, node.id, node.incarnation, gpus=[sick], **renew)  # type: ignore[arg-type]
    assert fabric.claim(node) == []
    fabric.renew(node)
    (one,) = operate.get_node(fabric.db, node.id).gpus
    assert (one.state, one.reason, one.out_by) == ("out", "lost", None)
    tell(fabric.db, node.id, node.incarnation, gpus=[vars(gpu(0))], **renew)  # type: ignore[arg-type]
    assert len(fabric.claim(node)) == 1


def test_what_does_not_exist_is_said_so(fabric: Fabric) -> None:
    node = fabric.add_node(gpus=[gpu(0)])
    with pytest.raises(NotFound, match="nobody"):
        operate.get_node(fabric.db, "nobody")
    with pytest.raises(NotFound, match="nobody"):
        operate.drain(fabric.db, "nobody", "", "ops")
    with pytest.raises(NotFound, match="nobody"):
        operate.resume(fabric.db, "nobody", 60)
    with pytest.raises(NotFound, match="nobody"):
        operate.label(fabric.db, "nobody", {"a": "b"})
    with pytest.raises(NotFound, match="0 GPU-0"):
        operate.take_gpu_out(fabric.db, node.id, "GPU-7", "fan", "ops")


def test_a_node_shows_its_jobs_and_what_they_leave(fabric: Fabric) -> None:
    node = fabric.add_node(slots=4, cpus=8, gpus=[gpu(0)])
    fabric.submit_one(priority_class=BACKGROUND, resources=share(cpus=2, memory_mib=1024, gpus=1))
    taken = fabric.run(node)
    shown = operate.get_node(fabric.db, node.id)
    assert (shown.slots.free, shown.cpus_milli.free, shown.jobs) == (3, 6000, 1)
    (running,) = shown.running
    assert (running.id, running.state, running.gpu_uuids) == (taken.job_id, JobState.RUNNING, ("GPU-0",))
