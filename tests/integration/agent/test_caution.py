"""A sick node does not eat the backlog: it holds back until a start works again, and others run the jobs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence

import pytest

from app.domain.states import JobState
from app.services import recover
from tests.factories import job, until
from tests.integration.agent.conftest import OutlivingRunner, Site
from workers.runners.base import RunSpec, StartRefused


class Sick(OutlivingRunner):
    """A runner whose disk is full until it is `cured`."""

    cured = False

    def start_many(self, specs: Sequence[RunSpec]) -> list[bool | StartRefused]:
        if self.cured:
            return super().start_many(specs)
        return [StartRefused("io", "No space left on device") for _ in specs]


def test_a_node_that_can_start_nothing_leaves_the_backlog_to_others(site: Site) -> None:
    fabric = site.fabric
    site.runners["bad"] = Sick(site.directory / "bad")
    site.agent("good", slots=4)
    site.agent("bad", slots=8)
    jobs = fabric.submit(*[job(environment={"FAKE_DURATION_S": "0.2"}) for _ in range(120)])
    over = threading.Event()

    def beat() -> None:
        """Backoffs end and bells come all the time, as on a busy fabric."""
        while not over.wait(0.1):
            recover.promote(fabric.db, fabric.settings.retry_elsewhere_s)
            for agent in site.agents:
                agent.bell()

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        site.until_ended(*jobs, within_s=60)
    finally:
        over.set()
        thread.join()
    assert {fabric.state(one) for one in jobs} == {JobState.COMPLETED}
    # What it had taken when it began to hold back, and a few tries, where each of its slots took jobs all the time.
    assert fabric.value("SELECT count(*) FROM attempt WHERE outcome = 'node_fault'") < 30


def test_a_node_that_is_well_again_takes_jobs_as_before(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    fabric = site.fabric
    runner = site.runners["n1"] = Sick(site.directory / "n1")
    agent = site.agent(slots=8)
    jobs = fabric.submit(*[job() for _ in range(40)])
    until(lambda: agent.full)
    assert len(agent.registry) <= 8
    runner.cured = True
    fabric.due()
    recover.promote(fabric.db, fabric.settings.retry_elsewhere_s)
    until(lambda: not agent.full)
    until(lambda: fabric.value("SELECT count(*) FROM job WHERE state = 4") >= 32)
    assert fabric.value("SELECT count(*) FROM job WHERE state = 5") == 0
    said = [record.message for record in caplog.records if record.name == "workers.agent.caution"]
    assert len(said) == 2 and "No space left on device" in said[0] and "takes jobs as before" in said[1]
    assert {fabric.state(one) for one in jobs} <= {JobState.COMPLETED, JobState.PENDING}
