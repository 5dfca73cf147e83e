"""The planner beside jobs that share GPUs: it sees slices as slices, and what their ends free."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from scheduler.loading import load
from scheduler.plan import run_plan
from tests.factories import BEST_EFFORT, FOREGROUND, Fabric, gpu, job, make_fabric, share
from tests.servers import TestServers

SLICE = replace(share(gpus=1, gpu_memory=30 * 10**9), gpu_shared=True)


@pytest.fixture
def fabric(servers: TestServers) -> Any:
    url = servers.database()
    made = make_fabric(url, min_runtime_s=0.0)
    yield made
    made.db.close()
    servers.drop(url)


def test_a_snapshot_tells_slices_from_whole_gpus(fabric: Fabric) -> None:
    node = fabric.add_node(gpus=[replace(gpu(1), sharing=True)])
    fabric.submit(*[job(resources=SLICE)] * 3)
    fabric.claim(node)
    seen = load(fabric.db, 60.0).snapshot
    assert [one.gpus[0].sharing for one in seen.nodes] == [True]
    assert [one.shape.gpu_shared for one in seen.running] == [True, True]
    assert [one.shape.gpu_shared for one in seen.waiting] == [True]


def test_no_slice_is_stopped_in_vain_for_a_job_that_needs_the_whole_gpu(fabric: Fabric) -> None:
    """The end of one slice frees no GPU: the job gets it when the last slice has ended."""
    low = fabric.add_tenant(tier="low")
    high = fabric.add_tenant(tier="critical", can_preempt_others=True)
    node = fabric.add_node(gpus=[replace(gpu(1), sharing=True)])
    fabric.submit(*[job(priority_class=BEST_EFFORT, resources=SLICE) for _ in range(2)], tenant=low)
    held = [fabric.run(node), fabric.run(node)]
    urgent = fabric.submit(job(priority_class=FOREGROUND, resources=share(gpus=1)), tenant=high)[0]
    for one in held:
        fabric.sql("DELETE FROM task_run")
        run_plan(fabric.db, fabric.settings)
        assert fabric.row(one.job_id).stop_cause is None
        assert fabric.claim(node) == []
        fabric.finish(one)
    assert fabric.claim_one(node).job_id == urgent
    assert fabric.attempts(urgent)[0].gpu_uuids == ["GPU-1"]
