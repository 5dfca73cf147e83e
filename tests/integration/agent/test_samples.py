"""What an agent measures of real processes is what they use, children counted, with control groups and without."""

from __future__ import annotations

from typing import Any

import pytest

from app.domain.states import JobState
from app.services import samples
from app.services.samples import Sample
from app.services.stop import request_stop
from app.storage.faults import Fault, FaultPlan
from tests.factories import job, until
from tests.integration.agent.conftest import Site
from workers.agent.agent import Agent
from workers.runners.process import ProcessRunner

MIB = 2**20
HOLDS = 200 * MIB
# Its main process waits and its child does all: measuring the main process alone would show nothing.
LOAD = f"""python3 -c '
import time
held = bytearray({HOLDS})
held[::4096] = b"x" * len(held[::4096])
print("begun", flush=True)
while True: pass
' & trap "kill $!" TERM; wait"""


@pytest.fixture(params=["off", "auto"], ids=["from /proc", "from a control group"])
def runner(request: pytest.FixtureRequest, site: Site) -> ProcessRunner:
    """Real processes; where this host lets us make control groups, in one of their own each."""
    opened = site.processes(cgroups=request.param)
    if request.param != "off" and not opened.hello.get("cgroups"):
        pytest.skip("this host offers no control groups")
    return opened


def stored(site: Site, job_id: Any) -> list[Sample]:
    return list(samples.of_job(site.fabric.db, site.fabric.tenant, job_id).samples)


def test_a_busy_child_with_memory_shows_as_one_core_and_its_memory(site: Site, runner: ProcessRunner) -> None:
    site.agent(runner=runner, sample_s=1.0)
    (job_id,) = site.fabric.submit(job(script=LOAD, grace_s=1.0))
    until(lambda: len(stored(site, job_id)) >= 4)
    # The first may have seen the interpreter start, the others saw nothing but the loop.
    later = stored(site, job_id)[1:]
    assert all(one.cpu_cores is not None and 0.1 < one.cpu_cores < 1.1 for one in later), later
    assert all(one.memory_bytes is not None and HOLDS < one.memory_bytes < HOLDS + 60 * MIB for one in later), later
    assert len({one.at for one in later}) == len(later)
    _stop(site, job_id)
    (attempt,) = site.fabric.attempts(job_id)
    assert attempt.peak_memory_bytes > HOLDS
    assert 0.1 < attempt.peak_cpu_cores < 1.5
    assert attempt.cpu_seconds > 1


def test_a_job_shorter_than_any_sample_still_has_its_peaks(site: Site, runner: ProcessRunner) -> None:
    site.agent(runner=runner, sample_s=60.0)
    script = f"""python3 -c 'held = bytearray({HOLDS}); held[::4096] = b"x" * len(held[::4096])'"""
    (job_id,) = site.fabric.submit(job(script=script))
    site.until_ended(job_id)
    (attempt,) = site.fabric.attempts(job_id)
    assert attempt.outcome == "completed"
    assert HOLDS < attempt.peak_memory_bytes < HOLDS + 100 * MIB
    assert attempt.peak_cpu_cores > 0


def test_samples_that_cannot_be_stored_are_dropped_and_the_job_does_not_notice(site: Site) -> None:
    site.agent(faults=FaultPlan([Fault("samples", "before", 0.5)]), sample_s=0.1)
    (job_id,) = site.fabric.submit(job(environment={"FAKE_DURATION_S": "forever"}))
    until(lambda: len(stored(site, job_id)) >= 2)
    assert site.fabric.state(job_id) == JobState.RUNNING
    _stop(site, job_id)
    assert site.fabric.attempts(job_id)[0].outcome == "cancelled"


def test_a_restarted_agent_goes_on_measuring(site: Site) -> None:
    first: Agent = site.agent(sample_s=0.1)
    (job_id,) = site.fabric.submit(job(environment={"FAKE_DURATION_S": "forever"}))
    until(lambda: stored(site, job_id))
    first.stop()
    before = len(stored(site, job_id))
    site.agent(sample_s=0.1)
    until(lambda: len(stored(site, job_id)) > before + 1)
    # The fake uses one core all the time, so that what was used meanwhile is not counted as a burst.
    assert all(one.cpu_cores is not None and one.cpu_cores < 2 for one in stored(site, job_id))


def _stop(site: Site, job_id: Any) -> None:
    request_stop(site.fabric.db, site.fabric.tenant, job_id, "ann")
    site.until_ended(job_id)
