"""Real runs with one bug planted in one real role: the check that guards against it must fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.chaos import checks
from tests.chaos.client import Client
from tests.chaos.evidence import Evidence, Reader, gather, take_sample
from tests.chaos.fabric import TOKEN, Fabric, wait_until
from tests.chaos.options import NODES
from tests.chaos.run import fill_all_slots, long_job, started

QUICK = {"CFAB_LEASE_S": "5", "CFAB_RENEW_S": "1.5", "CFAB_FENCE_MARGIN_S": "1"}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]


@contextmanager
def fabric_with(bugs: dict[str, str]) -> Iterator[Fabric]:
    fabric = Fabric(settings=QUICK, bugs=bugs)
    try:
        fabric.start()
        yield fabric
    finally:
        fabric.close()


def submit_long(fabric: Fabric) -> Client:
    """One job that runs until the file `over` exists."""
    client = Client(fabric.api_url, TOKEN)
    client.submit(long_job(0, fabric, fabric.root / "over"))
    wait_until(lambda: started(fabric) == 1, 30, "the job to run")
    return client


def look(fabric: Fabric) -> Evidence:
    reader = Reader(fabric.postgres.url())
    try:
        samples = [take_sample(reader)]
    finally:
        reader.close()
    return gather(fabric.postgres.url(), {}, fabric.witness, samples)


def freeze_the_jobs_agent(fabric: Fabric) -> None:
    """Freezes the agent whose job runs, for longer than its lease."""
    fabric.roles[look(fabric).attempts[0].node_id].freeze()


def test_without_the_fence_deadline_attempts_overlap() -> None:
    with fabric_with(dict.fromkeys(NODES, "no_fence_deadline")) as fabric:
        submit_long(fabric)
        freeze_the_jobs_agent(fabric)
        wait_until(lambda: started(fabric) == 2, 90, "a second attempt")
        wait_until(lambda: checks.no_overlap(look(fabric)), 10, "an overlap that the check sees")


def test_with_the_fence_deadline_they_do_not() -> None:
    with fabric_with({}) as fabric:
        submit_long(fabric)
        freeze_the_jobs_agent(fabric)
        wait_until(lambda: started(fabric) == 2, 90, "a second attempt")
        fabric.roles[NODES[0]].thaw()
        fabric.roles[NODES[1]].thaw()
        (fabric.root / "over").touch()
        wait_until(lambda: not look(fabric).left_over["allocations"], 30, "the end of the job")
        assert checks.no_overlap(look(fabric)) == []


def test_a_reaper_without_patience_makes_attempts_overlap() -> None:
    with fabric_with({"scheduler": "reaper_without_patience"}) as fabric:
        submit_long(fabric)
        wait_until(lambda: checks.no_overlap(look(fabric)), 90, "an overlap that the check sees")


def test_usage_that_is_not_given_back_is_seen() -> None:
    with fabric_with(dict.fromkeys(NODES, "usage_kept")) as fabric:
        submit_long(fabric)
        assert checks.never_overcommitted(look(fabric)) == []
        (fabric.root / "over").touch()
        wait_until(lambda: not look(fabric).left_over["allocations"], 30, "the end of the job")
        evidence = look(fabric)
        assert checks.never_overcommitted(evidence)
        assert checks.nothing_left_over(evidence)


def test_an_agent_that_is_alive_but_deaf_is_seen() -> None:
    with fabric_with({NODES[0]: "deaf"}) as fabric:
        _jobs, problems = fill_all_slots(fabric, Client(fabric.api_url, TOKEN), patience_s=8)
        assert problems
