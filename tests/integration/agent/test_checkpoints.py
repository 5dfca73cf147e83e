"""Jobs say when they saved their work, by a file or through the API, and know whether they may be stopped."""

from __future__ import annotations

import pytest

from app.domain.errors import NotFound, StateConflict
from app.domain.job import DEFAULT_TENANT
from app.domain.states import JobState
from app.services import checkpoints
from app.services.stop import request_stop
from tests.factories import job, until
from tests.integration.agent.conftest import Site

SAVES = """echo "preemptible=$CFAB_PREEMPTIBLE"
touch "$CFAB_CHECKPOINT"
trap 'exit 0' TERM
while true; do sleep 0.1; done"""


def test_a_touched_file_is_a_checkpoint_and_each_touch_a_later_one(site: Site) -> None:
    site.agent(runner=site.processes(), sample_s=0.2)
    (job_id,) = site.fabric.submit(job(script=SAVES, grace_s=1.0))
    age = "SELECT min(extract(epoch FROM clock_timestamp() - checkpoint_at)) FROM attempt WHERE job_id = %s"
    until(lambda: site.fabric.value(age, job_id) is not None, 60)
    assert 0 <= site.fabric.value(age, job_id) < 60
    first = site.fabric.attempts(job_id)[0]
    assert first.checkpoint_at >= first.started_at
    request_stop(site.fabric.db, DEFAULT_TENANT, job_id, "test")
    site.until_ended(job_id)
    assert b"preemptible=1" in site.output(job_id)


@pytest.mark.parametrize(
    "script",
    [
        'ln -s /etc/hostname "$CFAB_CHECKPOINT"; echo made; exec sleep 600',
        'mkdir "$CFAB_CHECKPOINT"; echo made; exec sleep 600',
    ],
    ids=["link", "directory"],
)
def test_what_is_no_file_says_nothing(site: Site, script: str) -> None:
    site.agent(runner=site.processes(), sample_s=0.2)
    (job_id,) = site.fabric.submit(job(script=script, grace_s=0.1))
    until(lambda: b"made" in site.output(job_id), 60)
    count = "SELECT count(*) FROM sample s JOIN attempt a ON a.id = s.attempt_id WHERE a.job_id = %s"
    until(lambda: site.fabric.value(count, job_id) >= 3, 60)
    assert site.fabric.attempts(job_id)[0].checkpoint_at is None


def test_a_time_to_come_is_now(site: Site) -> None:
    site.agent(runner=site.processes(), sample_s=0.2)
    (job_id,) = site.fabric.submit(job(script='touch -d "2099-01-01" "$CFAB_CHECKPOINT"; exec sleep 600', grace_s=0.1))
    until(lambda: site.fabric.attempts(job_id) and site.fabric.attempts(job_id)[0].checkpoint_at is not None, 60)
    assert site.fabric.value("SELECT checkpoint_at <= clock_timestamp() FROM attempt WHERE job_id = %s", job_id)


def test_a_job_that_opted_out_knows_it(site: Site) -> None:
    site.agent(runner=site.processes())
    (job_id,) = site.fabric.submit(job(script='echo "preemptible=$CFAB_PREEMPTIBLE"', preemptible=False))
    site.until_ended(job_id)
    assert b"preemptible=0" in site.output(job_id)


def test_the_api_reports_checkpoints_of_running_jobs_only(site: Site) -> None:
    fabric = site.fabric
    (job_id,) = fabric.submit(job())
    with pytest.raises(StateConflict, match="pending, not running"):
        checkpoints.report(fabric.db, DEFAULT_TENANT, job_id)
    taken = fabric.run(fabric.add_node())
    checkpoints.report(fabric.db, DEFAULT_TENANT, job_id)
    assert fabric.attempts(job_id)[0].checkpoint_at is not None
    with pytest.raises(NotFound):
        checkpoints.report(fabric.db, fabric.add_tenant(), job_id)
    fabric.finish(taken)
    assert fabric.state(job_id) == JobState.COMPLETED
    with pytest.raises(StateConflict, match="completed"):
        checkpoints.report(fabric.db, DEFAULT_TENANT, job_id)
