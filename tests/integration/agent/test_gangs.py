"""Gangs on real agents: members meet over sockets; what ends one ends all; restarts and lost hosts double nothing."""

from __future__ import annotations

import json
import sys
from typing import Any
from uuid import UUID

import pytest

from app.domain.job import DEFAULT_TENANT
from app.domain.states import JobState, StopCause
from app.services import recover
from app.services.logs import read_log
from app.services.stop import request_stop
from tests.factories import Fabric, job, until
from tests.gangs import place_on
from tests.integration.agent.conftest import Site
from tests.rendezvous import PROGRAM
from workers.agent.agent import Agent
from workers.runners.process import ProcessRunner


def rendezvous(members: int, **changes: Any) -> Any:
    """A gang that meets and sums up."""
    environment = {"PROGRAM": PROGRAM, **changes.pop("environment", {})}
    return job(script=f'exec {sys.executable} -c "$PROGRAM"', members=members, environment=environment, **changes)


def fake(members: int = 2, **does: Any) -> Any:
    """A gang whose members the fake runner plays."""
    return job(members=members, environment={f"FAKE_{name.upper()}": str(value) for name, value in does.items()})


def said(fabric: Fabric, job_id: UUID, member: int) -> dict[str, Any]:
    """What a member printed."""
    frames = read_log(fabric.db, DEFAULT_TENANT, job_id, member=member).frames
    return dict(json.loads(b"".join(frame.data for frame in frames if frame.stream == 1)))


def outcomes(fabric: Fabric, job_id: UUID, number: int = 1) -> list[str | None]:
    return [row.outcome for row in rows(fabric, job_id, number)]


def rows(fabric: Fabric, job_id: UUID, number: int = 1) -> list[Any]:
    return fabric.all("SELECT * FROM attempt WHERE job_id = %s AND number = %s ORDER BY member", job_id, number)


def started(fabric: Fabric, job_id: UUID, number: int = 1) -> bool:
    found = rows(fabric, job_id, number)
    return bool(found) and all(row.started_at is not None for row in found)


@pytest.fixture
def hosts(site: Site) -> dict[str, ProcessRunner]:
    """Keepers of two hosts, with real processes."""
    return {name: site.host(name) for name in "ab"}


def two_agents(site: Site, hosts: dict[str, ProcessRunner], **settings: Any) -> list[Agent]:
    return [site.agent(name, runner=hosts[name], **settings) for name in hosts]


class TestARendezvous:
    def test_of_members_on_two_nodes_finds_all_of_them(self, site: Site, hosts: dict[str, ProcessRunner]) -> None:
        two_agents(site, hosts)
        (job_id,) = site.fabric.submit(rendezvous(3))
        assert place_on(site.fabric, job_id, "a", "b", "b").nodes == {"a", "b"}
        site.until_ended(job_id, within_s=60)
        assert site.fabric.state(job_id) == JobState.COMPLETED, site.fabric.row(job_id).message
        told = [said(site.fabric, job_id, member) for member in range(3)]
        assert [one["sum"] for one in told] == [111, 111, 111]
        assert [one["RANK"] for one in told] == ["0", "1", "2"]
        assert {one["CFAB_GANG_SIZE"] for one in told} == {"3"} and {one["LOCAL_RANK"] for one in told} == {"0"}
        assert len(told[0]["CFAB_GANG_ADDRESSES"].split(",")) == 3
        site.fabric.assert_in_order()

    def test_of_several_gangs_on_one_host_each_has_a_port_of_its_own(
        self, site: Site, hosts: dict[str, ProcessRunner]
    ) -> None:
        two_agents(site, hosts)
        gangs = site.fabric.submit(*[rendezvous(2) for _ in range(4)])
        for turn, job_id in enumerate(gangs):
            spots = ("a", "b") if turn % 2 else ("b", "a")
            assert place_on(site.fabric, job_id, *spots).nodes
        site.until_ended(*gangs, within_s=90)
        ports = {said(site.fabric, job_id, 0)["MASTER_PORT"] for job_id in gangs}
        assert [site.fabric.state(job_id) for job_id in gangs] == [JobState.COMPLETED] * 4
        assert len(ports) == 4

    def test_goes_on_while_an_agent_is_replaced(self, site: Site, hosts: dict[str, ProcessRunner]) -> None:
        first, _other = two_agents(site, hosts)
        (job_id,) = site.fabric.submit(rendezvous(2, environment={"THEN": "wait"}))
        place_on(site.fabric, job_id, "a", "b")
        until(lambda: started(site.fabric, job_id), 60)
        until(lambda: said_anything(site.fabric, job_id, 1), 60)
        first.stop()
        again = site.agent("a", runner=site.host("a"))
        assert len(again.registry) == 1
        request_stop(site.fabric.db, DEFAULT_TENANT, job_id, "user")
        site.until_ended(job_id)
        assert outcomes(site.fabric, job_id) == ["cancelled", "cancelled"]
        assert site.fabric.row(job_id).attempt == 1

    def test_broken_by_one_member_ends_for_all_with_its_code(self, site: Site, hosts: dict[str, ProcessRunner]) -> None:
        two_agents(site, hosts)
        (job_id,) = site.fabric.submit(rendezvous(2, environment={"THEN": "fail of rank 1"}))
        place_on(site.fabric, job_id, "a", "b")
        site.until_ended(job_id, within_s=60)
        row = site.fabric.row(job_id)
        assert (row.state, row.exit_code) == (JobState.FAILED, 7)
        assert row.message == "member 1 on b: exited with 7"
        site.fabric.assert_in_order()


def said_anything(fabric: Fabric, job_id: UUID, member: int) -> bool:
    return bool(read_log(fabric.db, DEFAULT_TENANT, job_id, member=member).frames)


class TestTheBarrier:
    def test_holds_members_back_until_the_last_one_is_there(self, site: Site) -> None:
        site.agent("a")
        (job_id,) = site.fabric.submit(fake(output="hello"))
        site.fabric.add_node("b", runners=("process", "gang-process"))
        place_on(site.fabric, job_id, "a", "b")
        until(lambda: rows(site.fabric, job_id)[0].prepared_at is not None)
        assert rows(site.fabric, job_id)[0].port is not None
        assert site.runners["a"].attach() == []
        site.agent("b")
        site.until_ended(job_id)
        assert site.fabric.state(job_id) == JobState.COMPLETED

    def test_is_given_up_when_a_member_does_not_come(self, site: Site) -> None:
        agent = site.agent("a", gang_barrier_s=0.3)
        (job_id,) = site.fabric.submit(fake())
        gone = site.fabric.add_node("b", runners=("process", "gang-process"))
        place_on(site.fabric, job_id, "a", "b")
        until(lambda: outcomes(site.fabric, job_id)[0] is not None)
        assert outcomes(site.fabric, job_id) == ["cancelled", None]
        assert len(agent.registry) == 0
        (orphan,) = site.fabric.renew(gone).orphans
        recover.hand_back(site.fabric.db, [orphan], "never came")
        row = site.fabric.row(job_id)
        assert (row.state, row.failures) == (JobState.PENDING, 0)
        site.fabric.assert_in_order()

    def test_is_left_by_an_agent_that_restarts_and_the_gang_waits_again_uncharged(self, site: Site) -> None:
        first = site.agent("a")
        (job_id,) = site.fabric.submit(fake())
        other = site.fabric.add_node("b", runners=("process", "gang-process"))
        place_on(site.fabric, job_id, "a", "b")
        until(lambda: rows(site.fabric, job_id)[0].prepared_at is not None)
        first.stop()
        assert outcomes(site.fabric, job_id) == [None, None]
        site.agent("a")
        until(lambda: outcomes(site.fabric, job_id)[0] == "lost")
        recover.hand_back(site.fabric.db, site.fabric.renew(other).orphans, "told")
        row = site.fabric.row(job_id)
        assert (row.state, row.reason, row.failures, row.lost_nodes) == (JobState.PENDING, "lost", 0, [])

    def test_is_left_at_once_when_the_job_is_cancelled(self, site: Site) -> None:
        agent = site.agent("a")
        (job_id,) = site.fabric.submit(fake())
        other = site.fabric.add_node("b", runners=("process", "gang-process"))
        place_on(site.fabric, job_id, "a", "b")
        until(lambda: rows(site.fabric, job_id)[0].prepared_at is not None)
        request_stop(site.fabric.db, DEFAULT_TENANT, job_id, "user")
        until(lambda: len(agent.registry) == 0)
        recover.hand_back(site.fabric.db, site.fabric.renew(other).orphans, "told")
        assert site.fabric.state(job_id) == JobState.CANCELLED


class TestEnds:
    def test_of_one_member_by_its_node_stop_the_other_and_free_both_nodes(self, site: Site) -> None:
        agents = [site.agent("a"), site.agent("b")]
        (job_id,) = site.fabric.submit(fake(duration_s="forever"))
        place_on(site.fabric, job_id, "a", "b")
        until(lambda: started(site.fabric, job_id))
        site.runners["b"].kill(str(rows(site.fabric, job_id)[1].id), "keeper_shutdown")
        until(lambda: site.fabric.state(job_id) == JobState.PENDING)
        assert outcomes(site.fabric, job_id) == ["cancelled", "lost"]
        until(lambda: all(len(agent.registry) == 0 for agent in agents))
        site.fabric.assert_in_order()

    def test_by_a_preemption_put_the_whole_gang_back(self, site: Site) -> None:
        site.agent("a")
        site.agent("b")
        (job_id,) = site.fabric.submit(fake(duration_s="forever"))
        place_on(site.fabric, job_id, "a", "b")
        until(lambda: started(site.fabric, job_id))
        request_stop(site.fabric.db, DEFAULT_TENANT, job_id, "planner", cause=StopCause.PREEMPT)
        until(lambda: site.fabric.state(job_id) == JobState.PENDING)
        assert outcomes(site.fabric, job_id) == ["preempted", "preempted"]
        assert place_on(site.fabric, job_id, "b", "a").nodes
        until(lambda: started(site.fabric, job_id, 2))
        site.fabric.assert_in_order()
