"""Three hosts with a network between them that can be cut: jobs are placed, lost, run again, moved and kept.

The hosts are network namespaces; every role is the real one, and what jobs wrote down themselves is the judge.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.chaos import checks
from tests.chaos.evidence import Evidence
from tests.chaos.fabric import wait_until
from tests.chaos.witness import lives
from tests.e2e.hosts.fabric import BIG, GPUS, PATIENCE_S, SMALL, Hosts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

DROPPED = "had passed to another; its end was dropped"


@contextmanager
def three_hosts(**how: Any) -> Iterator[Hosts]:
    running = Hosts(**how)
    whole = False
    try:
        running.start()
        yield running
        whole = True
    finally:
        if not whole:
            print(running.tails())
        running.close()


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """The hosts of all tests of this file. Each leaves them whole, with nothing running."""
    with three_hosts() as running:
        yield running


def where(hosts: Hosts, job_id: str) -> list[tuple[str, str | None]]:
    """The host and the outcome of each attempt of a job."""
    return [(one.node_id, one.outcome) for one in hosts.evidence().attempts if one.job_id == job_id]


def ended(hosts: Hosts, job_id: str) -> str:
    """How a job ended, as soon as it has."""
    wait_until(lambda: hosts.job(job_id)["status"] in ("completed", "failed", "cancelled"), PATIENCE_S, "the end")
    return str(hosts.job(job_id)["status"])


def works(hosts: Hosts, host: str, name: str) -> None:
    """The host takes a job that needs all of its GPUs, and runs it to its end."""
    gpus, _, model = GPUS[host].split("-")[0].partition("x")
    job_id = hosts.submit(name, gpus=int(gpus), gpu_model=model)
    hosts.over(name, 1)
    assert (ended(hosts, job_id), where(hosts, job_id)) == ("completed", [(host, "completed")])


def alive_past(evidence: Evidence, lease_ends: dict[tuple[str, int], float]) -> list[str]:
    """First attempts that showed life when the lease they had had already ended."""
    first = [life for life in lives(evidence.witness) if life.attempt == 1]
    beyond_s = {life: life.ends - lease_ends.get((life.job_id, life.member), math.inf) for life in first}
    return [f"{life.member} of {life.job_id} lived {s:.2f} s beyond its lease" for life, s in beyond_s.items() if s > 0]


def test_hosts_are_known_by_the_addresses_at_which_others_reach_them(hosts: Hosts) -> None:
    told = {node["name"]: node["ip"] for node in json.loads(hosts.cfab("nodes", "ls", "--json").stdout)}
    assert told == {host: hosts.network.address(host) for host in GPUS}


def test_jobs_go_where_the_gpus_are_that_they_need(hosts: Hosts) -> None:
    works(hosts, SMALL, "small")
    works(hosts, BIG, "whole")


def test_jobs_of_a_host_that_is_cut_off_run_elsewhere_and_its_late_results_are_refused(hosts: Hosts) -> None:
    ids = hosts.submit_to(BIG, "lasting", "ending", gpus=1)
    hosts.network.cut(BIG)
    # One ends by itself on the host that can tell nobody; the other must be killed by its keeper.
    hosts.over("ending", 1)
    lease_ends = hosts.lease_ends()
    wait_until(lambda: all(hosts.begun(one, 2) for one in ids), PATIENCE_S, "both to run on the other host")
    assert [where(hosts, one) for one in ids] == [[(BIG, "lost"), (SMALL, None)]] * 2
    assert alive_past(hosts.evidence(), lease_ends) == []
    assert hosts.states() == {BIG: "offline", SMALL: "ready"}
    dropped = hosts.said(BIG, DROPPED)
    hosts.network.heal(BIG)
    wait_until(lambda: hosts.states()[BIG] == "ready", PATIENCE_S, "the host to come back")
    wait_until(lambda: hosts.said(BIG, DROPPED) == dropped + 2, PATIENCE_S, "the late results to be refused")
    # Both were refused while the second attempts still run: nothing of the first ones was taken.
    assert [where(hosts, one) for one in ids] == [[(BIG, "lost"), (SMALL, None)]] * 2
    works(hosts, BIG, "again")
    hosts.over("lasting", 2)
    hosts.over("ending", 2)
    assert [ended(hosts, one) for one in ids] == ["completed"] * 2
    assert [hosts.evidence().jobs[one].failures for one in ids] == [0, 0]
    assert checks.no_overlap(hosts.evidence()) == []


def test_a_worker_that_is_killed_while_nothing_reaches_its_host_takes_jobs_again_when_it_can(hosts: Hosts) -> None:
    (job_id,) = hosts.submit_to(BIG, "orphan", gpus=1)
    # What the host sends arrives, only the answers do not: its transactions are begun and never ended.
    hosts.network.deafen(BIG)
    lease_ends = hosts.lease_ends()
    hosts.roles[BIG].kill()
    hosts.roles[BIG].start()
    wait_until(lambda: hosts.begun(job_id, 2), PATIENCE_S, "the job to run on the other host")
    assert alive_past(hosts.evidence(), lease_ends) == []
    hosts.network.heal(BIG)
    wait_until(lambda: hosts.states()[BIG] == "ready", PATIENCE_S, "the host to come back")
    works(hosts, BIG, "anew")
    hosts.over("orphan", 2)
    assert (ended(hosts, job_id), where(hosts, job_id)) == ("completed", [(BIG, "lost"), (SMALL, "completed")])
    assert checks.no_overlap(hosts.evidence()) == []


def test_a_drained_host_hands_its_jobs_on_and_waits_for_resume(hosts: Hosts) -> None:
    (moved,) = hosts.submit_to(BIG, "moved", gpus=1)
    hosts.drain(BIG, "--reason", "new driver", "--deadline", "0")
    wait_until(lambda: hosts.begun(moved, 2), PATIENCE_S, "the job to run elsewhere")
    assert where(hosts, moved) == [(BIG, "drained"), (SMALL, None)]
    waits = hosts.submit("waits", gpus=4)
    told = json.loads(hosts.cfab("explain", waits, "--json").stdout)
    assert {node["id"]: node["fit"] for node in told["nodes"]}[BIG] == "draining"
    hosts.over("waits", 1)
    hosts.over("moved", 2)
    assert ended(hosts, moved) == "completed"
    assert hosts.job(waits)["status"] == "pending"
    hosts.resume(BIG)
    assert (ended(hosts, waits), where(hosts, waits)) == ("completed", [(BIG, "completed")])
    assert hosts.evidence().jobs[moved].failures == 0


@pytest.mark.parametrize("way", ["upgraded", "killed"])
def test_a_job_goes_on_while_its_worker_is_replaced(hosts: Hosts, way: str) -> None:
    worker, keeper = hosts.roles[BIG], hosts.keeper_pids(BIG)
    (job_id,) = hosts.submit_to(BIG, way, gpus=1)
    if way == "killed":
        worker.kill()
    else:
        worker.ask_to_end()
        wait_until(lambda: not worker.alive, PATIENCE_S, "the worker to detach")
    adopted = hosts.said(BIG, "adopted 1 attempts")
    worker.start()
    wait_until(lambda: hosts.said(BIG, "adopted 1 attempts") > adopted, PATIENCE_S, "the new worker to take over")
    hosts.over(way, 1)
    assert (ended(hosts, job_id), where(hosts, job_id)) == ("completed", [(BIG, "completed")])
    assert hosts.keeper_pids(BIG) == keeper
    # All that it printed arrived once and in order, whichever worker shipped it.
    numbers = hosts.log(job_id).split()
    assert numbers == [str(number) for number in range(len(numbers))] and numbers


def members(hosts: Hosts, job_id: str, attempt: int) -> dict[str, str | None]:
    """The outcome of each member of an attempt, by the host that it was on."""
    told = [one for one in hosts.evidence().attempts if (one.job_id, one.number) == (job_id, attempt)]
    assert [one.member for one in told] in ([], list(range(len(GPUS))))
    return {one.node_id: one.outcome for one in told}


def test_members_on_two_hosts_meet_and_their_gang_has_one_result(hosts: Hosts) -> None:
    hosts.over("meets", 1)
    job_id = hosts.submit_gang("meets")
    assert ended(hosts, job_id) == "completed", hosts.job(job_id)
    assert members(hosts, job_id, 1) == dict.fromkeys(GPUS, "completed")
    told = [json.loads(log) for log in hosts.member_logs(job_id, 1)]
    (attempt,) = hosts.job(job_id)["attempts"]
    nodes = [one["executor_id"] for one in attempt["members"]]
    addresses = [hosts.network.address(node) for node in nodes]
    assert [one["sum"] for one in told] == [11, 11]
    assert [one["peers"] for one in told] == [[addresses[1]], [addresses[0]]]
    assert {one["MASTER_ADDR"] for one in told} == {addresses[0]}
    assert [(one["RANK"], one["WORLD_SIZE"], one["LOCAL_RANK"]) for one in told] == [("0", "2", "0"), ("1", "2", "0")]
    gpus = {node["name"]: {gpu["uuid"] for gpu in node["gpus"]} for node in hosts.nodes()}
    assert all(one["CFAB_GPUS"] in gpus[node] for one, node in zip(told, nodes, strict=True))
    assert hosts.hpc_nodes(job_id) == sorted(GPUS)


def test_a_gang_of_which_one_host_is_cut_off_ends_whole_and_runs_again_whole(hosts: Hosts) -> None:
    job_id = hosts.submit_gang("halved", silence_s=10)
    wait_until(lambda: hosts.gang_begun(job_id, 1), PATIENCE_S, "the members to meet")
    kept, lost = [one["executor_id"] for one in hosts.job(job_id)["attempts"][0]["members"]]
    dropped = hosts.said(lost, DROPPED)
    hosts.network.cut(lost)
    lease_ends = hosts.lease_ends()
    wait_until(lambda: hosts.job(job_id)["status"] == "pending", PATIENCE_S, "the gang to wait again")
    # The one that was left failed of its peer's silence, long before: that is not what the gang is judged by.
    assert members(hosts, job_id, 1) == {kept: "failed", lost: "lost"}
    assert alive_past(hosts.evidence(), lease_ends) == []
    # There is room for one member; so neither starts, and nothing is held meanwhile.
    wait_until(lambda: saw(hosts) == (1, 1), PATIENCE_S, "a plan for the gang with one host")
    assert json.loads(hosts.cfab("explain", job_id, "--json").stdout)["code"] == "gang_too_big"
    assert (members(hosts, job_id, 2), set(hosts.evidence().left_over.values())) == ({}, {0})
    hosts.network.heal(lost)
    wait_until(lambda: hosts.gang_begun(job_id, 2), PATIENCE_S, "the members to meet again")
    wait_until(lambda: hosts.said(lost, DROPPED) == dropped + 1, PATIENCE_S, "the late end to be refused")
    hosts.over("halved", 2)
    assert ended(hosts, job_id) == "completed"
    assert members(hosts, job_id, 2) == dict.fromkeys(GPUS, "completed")
    assert hosts.evidence().jobs[job_id].failures == 0
    assert checks.no_overlap(hosts.evidence()) == []


def saw(hosts: Hosts) -> tuple[int, int]:
    """How many nodes and waiting jobs the last plan looked at."""
    cycle = hosts.last_plan()
    return cycle["nodes"], cycle["waiting"]


def test_a_gang_makes_room_on_both_hosts_and_runs_again_uncharged(hosts: Hosts) -> None:
    # The quota has no room for anything that the first attempt would leave behind.
    for words in (["low", "--tier", "low", "--quota-gpus", "2"], ["urgent", "--tier", "critical"]):
        made = hosts.cfab("tenant", "create", *words, *(["--can-preempt-others"] if words[0] == "urgent" else []))
        assert made.returncode == 0, made.stderr
    low = hosts.submit_gang("low", tenant="low")
    wait_until(lambda: hosts.gang_begun(low, 1), PATIENCE_S, "the members to meet")
    urgent = hosts.submit_gang("urgent", tenant="urgent")
    wait_until(lambda: hosts.gang_begun(urgent, 1), PATIENCE_S, "the other to take their place")
    assert members(hosts, low, 1) == dict.fromkeys(GPUS, "preempted")
    assert [log.splitlines()[1:] for log in hosts.member_logs(low, 1)] == [["saved"], ["saved"]]
    waits = hosts.job(low)
    assert (waits["status"], waits["reason"], hosts.evidence().jobs[low].failures) == ("pending", "preempted", 0)
    hosts.over("urgent", 1)
    assert (ended(hosts, urgent), members(hosts, urgent, 1)) == ("completed", dict.fromkeys(GPUS, "completed"))
    wait_until(lambda: hosts.gang_begun(low, 2), PATIENCE_S, "the first to run again")
    hosts.over("low", 2)
    assert (ended(hosts, low), members(hosts, low, 2)) == ("completed", dict.fromkeys(GPUS, "completed"))
    assert hosts.evidence().jobs[low].failures == 0


def test_after_all_of_that_every_invariant_holds_and_nobody_has_died(hosts: Hosts) -> None:
    wait_until(lambda: hosts.reservations() == 0, PATIENCE_S, "reservations without a job to go")
    told = hosts.evidence()
    right = (checks.one_result_each, checks.results_are_true, checks.gangs_whole, checks.no_overlap,
             checks.gpus_exclusive, checks.capacity_kept, checks.nothing_left_over, checks.counts_right)  # fmt: skip
    assert [problem for check in right for problem in check(told)] == []
    assert [name for name, role in hosts.roles.items() if not role.alive] == []


def test_a_keeper_without_its_deadline_would_be_seen() -> None:
    quick = {"CFAB_LEASE_S": "5", "CFAB_RENEW_S": "1", "CFAB_FENCE_MARGIN_S": "2"}
    with three_hosts(settings=quick, bug="no_fence_deadline") as hosts:
        (job_id,) = hosts.submit_to(BIG, "endless", gpus=1)
        hosts.network.cut(BIG)
        lease_ends = hosts.lease_ends()
        wait_until(lambda: hosts.begun(job_id, 2), PATIENCE_S, "a second attempt")
        wait_until(lambda: checks.no_overlap(hosts.evidence()), PATIENCE_S, "an overlap that the check sees")
        assert alive_past(hosts.evidence(), lease_ends)
