"""One agent and its jobs: output arrives, restarts kill nothing, what is lost is killed or handed back."""

from __future__ import annotations

import os
import signal
import socket
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.domain.job import DEFAULT_TENANT
from app.domain.states import JobState, StopCause
from app.services import nodes, recover, samples
from app.services.claim import Claimer, claim
from app.services.inspect import job_detail
from app.services.stop import request_stop
from app.storage.faults import Fault, FaultPlan
from tests.factories import Fabric, job, raw, share, until
from tests.integration.agent.conftest import OutlivingRunner, Site
from workers.runners.base import Held


def fake(**does: Any) -> Any:
    """A job that the fake runner plays, such as FAKE_OUTPUT="hello"."""
    return job(environment={f"FAKE_{name.upper()}": str(value) for name, value in does.items()})


def running(fabric: Fabric, job_id: Any) -> bool:
    return fabric.state(job_id) == JobState.RUNNING


def test_a_job_runs_and_what_it_printed_arrives_with_its_end(site: Site) -> None:
    site.agent()
    (job_id,) = site.fabric.submit(fake(output="hello\n", stderr="oops\n", exit_code=3))
    site.until_ended(job_id)
    detail = job_detail(site.fabric.db, DEFAULT_TENANT, job_id)
    assert (detail.stdout, detail.stderr) == (b"hello\n", b"oops\n")
    assert (detail.job.state, detail.job.exit_code) == (JobState.FAILED, 3)
    assert not detail.attempts[0].log_gap
    site.fabric.assert_in_order()


def test_output_of_a_running_job_arrives_while_it_runs(site: Site) -> None:
    site.agent()
    (job_id,) = site.fabric.submit(fake(output="begun", duration_s="forever"))
    until(lambda: site.output(job_id) == b"begun")
    until(lambda: running(site.fabric, job_id))


def test_much_output_arrives_whole(site: Site) -> None:
    site.agent()
    (job_id,) = site.fabric.submit(fake(floods_bytes=3_000_000))
    site.until_ended(job_id)
    assert site.fabric.attempts(job_id)[0].output_bytes > 3_000_000
    stored = site.fabric.value("SELECT sum(length) FROM log_chunk")
    assert stored == site.fabric.attempts(job_id)[0].output_bytes


def test_many_jobs_run_and_each_ends_once(site: Site) -> None:
    site.agent()
    sent = site.fabric.submit(*[fake(exit_code=n % 3) for n in range(80)])
    site.until_ended(*sent)
    assert [site.fabric.state(j) for j in sent] == [
        JobState.COMPLETED if n % 3 == 0 else JobState.FAILED for n in range(80)
    ]
    assert site.fabric.value("SELECT count(*) FROM attempt") == 80
    site.fabric.assert_in_order()


def test_a_restarted_agent_finds_its_running_job_again(site: Site) -> None:
    first = site.agent()
    (job_id,) = site.fabric.submit(fake(output="still here", duration_s="forever"))
    until(lambda: site.output(job_id) != b"")
    first.stop()
    second = site.agent()
    assert len(second.registry) == 1
    assert running(site.fabric, job_id)
    request_stop(site.fabric.db, DEFAULT_TENANT, job_id, "ann")
    site.until_ended(job_id)
    assert [a.outcome for a in site.fabric.attempts(job_id)] == ["cancelled"]
    assert site.output(job_id) == b"still here"
    site.fabric.assert_in_order()


def test_what_ended_while_no_agent_was_there_is_told_by_the_next(site: Site) -> None:
    first = site.agent()
    (job_id,) = site.fabric.submit(fake(duration_s="forever"))
    until(lambda: running(site.fabric, job_id))
    first.stop()
    attempt = str(site.fabric.row(job_id).attempt_id)
    site.runners["n1"].stop(attempt, 0.0, "")
    assert running(site.fabric, job_id)
    site.agent()
    site.until_ended(job_id) if site.fabric.row(job_id).attempt > 1 else until(
        lambda: site.fabric.attempts(job_id)[0].outcome is not None
    )


def test_what_ended_while_no_agent_was_there_takes_no_slot_from_what_begins(site: Site, database_url: str) -> None:
    """A keeper that died does not know the slots of what it ran, and says 0 for each."""

    class Forgetful(OutlivingRunner):
        def attach(self) -> list[Held]:
            return [held if held.running else replace(held, slot=0) for held in super().attach()]

    runner = Forgetful(site.directory / "forgetful")
    site.runners["n1"] = runner
    first = site.agent(slots=4)
    ended = site.fabric.submit(*[fake(duration_s="forever") for _ in range(3)])
    until(lambda: all(running(site.fabric, one) for one in ended))
    first.stop()
    for held in runner.attach():
        runner.stop(held.attempt_id, 0.0, "")
    with raw(database_url) as other:
        # Their ends cannot be told yet, so that all of them are still here.
        other.cursor().execute("SELECT 1 FROM job FOR UPDATE")
        second = site.agent(slots=4)
        assert [entry.slot for entry in second.registry.all()] == [None] * 3
        assert second.registry.free_slots == 4
        other.rollback()
    until(lambda: all(site.fabric.attempts(one)[0].outcome is not None for one in ended))
    site.fabric.submit(*[fake(duration_s="forever") for _ in range(4)])
    until(lambda: len(second.registry) == 4)
    assert sorted(entry.slot for entry in second.registry.all()) == [0, 1, 2, 3]


def test_what_a_restarted_agent_lost_is_handed_back_at_once(site: Site) -> None:
    """The host was wiped: the database gives the node an attempt that its runner has never seen."""
    node = site.fabric.add_node("n1")
    (job_id,) = site.fabric.submit(fake())
    site.fabric.run(node)
    site.agent()
    site.until_ended(job_id)
    assert [a.outcome for a in site.fabric.attempts(job_id)] == ["lost", "completed"]
    assert site.fabric.row(job_id).lost_nodes == []


def test_a_job_whose_start_was_told_to_a_broken_connection_shows_as_running(site: Site) -> None:
    runner = site.processes()
    client, lost = runner._client, threading.Event()
    tell = client._on_event

    def lose(message: dict[str, Any]) -> None:
        if message["event"] == "started" and not lost.is_set():
            lost.set()
        else:
            tell(message)

    client._on_event = lose
    site.agent(runner=runner)
    job_id = site.fabric.submit_one(script="echo here; exec sleep 600")
    assert lost.wait(30)
    assert client._sock is not None
    client._sock.shutdown(socket.SHUT_RDWR)
    until(lambda: running(site.fabric, job_id) and site.output(job_id) == b"here\n")
    assert [a.outcome for a in site.fabric.attempts(job_id)] == [None]


def test_the_peaks_of_a_job_whose_keeper_died_come_from_its_samples(site: Site) -> None:
    runner = site.processes()
    site.agent(runner=runner)
    job_id = site.fabric.submit_one(script="exec sleep 600")
    until(lambda: running(site.fabric, job_id))
    attempt = site.fabric.attempts(job_id)[0]
    samples.store(site.fabric.db, [samples.Measured(attempt.id, cpu_cores=1.5, memory_bytes=2**40)])
    os.kill(runner.hello["pid"], signal.SIGKILL)
    until(lambda: site.fabric.attempts(job_id)[0].peak_memory_bytes == 2**40)
    first = site.fabric.attempts(job_id)[0]
    assert (first.outcome, first.peak_cpu_cores) == ("lost", 1.5)


def test_what_a_former_host_of_the_name_held_is_left_to_its_lease(site: Site) -> None:
    """Nobody here can know that it has ended there: only the lease may pass it on."""
    fabric = site.fabric
    offer = nodes.NodeOffer("n1", 8, 8000, 10**10, host="another host")
    registered = nodes.register(fabric.db, offer, 60)
    (job_id,) = fabric.submit(fake())
    claim(fabric.db, Claimer("n1", registered.incarnation, lease_s=3600), 1)
    fabric.sql("UPDATE node SET last_seen_at = now() - interval '1 hour'")
    agent = site.agent()
    (other,) = fabric.submit(fake(duration_s=0.5))
    site.until_ended(other)
    agent.wake()
    (third,) = fabric.submit(fake(duration_s=0.5))
    site.until_ended(third)
    assert fabric.row(job_id).attempt == 1
    assert fabric.state(job_id) == JobState.STARTING


def test_a_job_whose_lease_passed_to_another_is_killed_here(site: Site) -> None:
    site.agent()
    (job_id,) = site.fabric.submit(fake(duration_s="forever"))
    until(lambda: running(site.fabric, job_id))
    first = site.fabric.attempts(job_id)[0]
    nodes.set_draining(site.fabric.db, "n1", True)
    site.fabric.sql("UPDATE lease SET token = gen_random_uuid(), expires_at = now() - interval '1 s'")
    site.fabric.reap(lease_s=0.0)
    other = site.fabric.run(site.fabric.add_node("n2"))
    assert other.job_id == job_id
    until(lambda: not any(h.attempt_id == str(first.id) for h in site.runners["n1"].attach()))
    assert running(site.fabric, job_id)
    assert site.fabric.attempts(job_id)[0].outcome == "lost"
    site.fabric.assert_in_order()


def test_an_agent_that_a_newer_one_replaced_stops_and_touches_nothing(site: Site) -> None:
    old = site.agent()
    stale: list[bool] = []
    old._on_stale = lambda: stale.append(True)
    (job_id,) = site.fabric.submit(fake(duration_s="forever"))
    until(lambda: running(site.fabric, job_id))
    site.fabric.sql("UPDATE node SET incarnation = gen_random_uuid()")
    until(lambda: stale)
    assert running(site.fabric, job_id)
    assert site.runners["n1"].attach()[0].running


def test_an_agent_that_a_newer_one_replaced_stops_none_of_its_jobs_on_its_way_out(site: Site) -> None:
    old = site.agent()
    (job_id,) = site.fabric.submit(fake(duration_s="forever"))
    until(lambda: running(site.fabric, job_id))
    site.agent()
    until(lambda: old._replaced)
    assert old.drain(0.0) == 0
    assert running(site.fabric, job_id)


def test_a_drain_stops_no_later_attempt_of_a_job(site: Site) -> None:
    """The lease has passed to another node, and this one has not been told yet."""
    fabric = site.fabric
    agent = site.agent(renew_s=600.0)
    (job_id,) = fabric.submit(fake(duration_s="forever"))
    until(lambda: running(fabric, job_id))
    entry = agent.registry.all()[0]
    fabric.sql("UPDATE lease SET expires_at = now() - interval '1 s'")
    nodes.set_draining(fabric.db, "n1", True)
    fabric.reap(lease_s=0.0)
    assert fabric.run(fabric.add_node("n2")).job_id == job_id
    agent._request_stop(entry, StopCause.DRAIN)
    assert running(fabric, job_id)


@pytest.mark.parametrize("state", ["running", "ignores"])
def test_a_stop_reaches_a_running_job(site: Site, state: str) -> None:
    agent = site.agent()
    asked = fake(duration_s="forever", ignores_sigterm=int(state == "ignores"))
    (job_id,) = site.fabric.submit(asked)
    site.fabric.sql("UPDATE job_spec SET grace_s = 0.2")
    until(lambda: running(site.fabric, job_id))
    request_stop(site.fabric.db, DEFAULT_TENANT, job_id, "ann", "enough")
    agent.wake()
    site.until_ended(job_id)
    assert site.fabric.state(job_id) == JobState.CANCELLED
    assert site.fabric.attempts(job_id)[0].stopped_by == "ann"


def test_jobs_stopped_at_the_very_moment_of_their_start_all_end(site: Site) -> None:
    agent = site.agent(slots=16)
    for _ in range(6):
        sent = site.fabric.submit(*[fake(duration_s="forever")] * 10)
        agent.bell()
        for job_id in sent:
            request_stop(site.fabric.db, DEFAULT_TENANT, job_id, "ann")
            agent.wake()
        site.until_ended(*sent)
        assert {site.fabric.state(j) for j in sent} == {JobState.CANCELLED}
    site.fabric.assert_in_order()


def test_a_job_over_its_time_limit_fails(site: Site) -> None:
    site.agent()
    (job_id,) = site.fabric.submit(job(environment={"FAKE_DURATION_S": "forever"}, time_limit_s=0.2, grace_s=0.1))
    site.until_ended(job_id)
    assert site.fabric.attempts(job_id)[0].outcome == "timed_out"


def test_a_drain_waits_for_what_runs_and_hands_on_the_rest_uncharged(site: Site) -> None:
    agent = site.agent()
    quick, slow = site.fabric.submit(fake(duration_s=0.3), fake(duration_s="forever"))
    until(lambda: running(site.fabric, quick) and running(site.fabric, slow))
    assert agent.drain(1.0) == 1
    assert site.fabric.state(quick) == JobState.COMPLETED
    until(lambda: site.fabric.state(slow) == JobState.PENDING)
    row = site.fabric.row(slow)
    assert (row.reason, row.failures, row.ready) == ("drained", 0, True)
    assert site.fabric.attempts(slow)[0].outcome == "drained"
    site.fabric.assert_in_order()


def test_a_job_that_waits_for_cpus_starts_when_they_are_free_not_at_the_next_poll(site: Site) -> None:
    """The bell came while the node was full, and its claim found nothing that fitted."""
    agent = site.agent(cpus_milli=1000, poll_s=600.0, tick_s=600.0)
    first, second = site.fabric.submit(*[job(resources=share(1), environment={"FAKE_DURATION_S": "forever"})] * 2)
    agent.bell()
    until(lambda: running(site.fabric, first))
    begun = agent._claims.claims_ended
    agent.bell()
    until(lambda: agent._claims.claims_ended > begun)
    request_stop(site.fabric.db, DEFAULT_TENANT, first, "ann")
    agent.wake()
    until(lambda: running(site.fabric, second), within_s=10.0)


def test_many_shapes_of_one_job_each_are_all_taken_on_one_bell(site: Site) -> None:
    agent = site.agent(slots=64, cpus_milli=64_000, poll_s=600.0)
    sent = site.fabric.submit(*[job(priority=n, environment={"FAKE_DURATION_S": "forever"}) for n in range(40)])
    agent.bell()
    until(lambda: all(running(site.fabric, j) for j in sent), within_s=15.0)


def test_output_that_cannot_be_read_holds_up_neither_its_own_end_nor_others(site: Site) -> None:
    runner = OutlivingRunner(site.directory / "torn")
    site.runners["n1"] = runner
    site.agent()
    whole, torn = runner.spool_path, site.directory / "torn-spool"
    torn.write_bytes(b"\xff" * 4096)
    bad = site.fabric.submit(*[fake(output="x", duration_s=0.5)] * 2)

    def spool_path(attempt_id: str) -> str:
        mine = {a.job_id for a in site.fabric.all("SELECT job_id FROM attempt WHERE id = %s", attempt_id)}
        return str(torn) if mine & set(bad) else whole(attempt_id)

    runner.spool_path = spool_path  # type: ignore[method-assign]
    good = site.fabric.submit(*[fake(output="fine")] * 5)
    site.until_ended(*bad, *good)
    assert {site.output(j) for j in good} == {b"fine"}
    assert [site.fabric.attempts(j)[0].log_gap for j in (*bad, *good)] == [True] * 2 + [False] * 5
    site.fabric.assert_in_order()


def test_an_agent_recovers_others_when_nobody_else_does(site: Site) -> None:
    dead = site.fabric.add_node("dead")
    (job_id,) = site.fabric.submit(fake())
    site.fabric.run(dead)
    site.fabric.expire()
    until(lambda: float(site.fabric.value("SELECT extract(epoch FROM now() - pg_postmaster_start_time())")) > 1.5)
    site.agent(lease_s=1.5, fence_margin_s=0.2)
    site.until_ended(job_id)
    assert [a.node_id for a in site.fabric.attempts(job_id)] == ["dead", "n1"]


def test_an_agent_that_bells_keep_busy_recovers_others_too(site: Site) -> None:
    dead = site.fabric.add_node("dead")
    (job_id,) = site.fabric.submit(fake())
    site.fabric.run(dead)
    site.fabric.expire()
    until(lambda: float(site.fabric.value("SELECT extract(epoch FROM now() - pg_postmaster_start_time())")) > 1.5)
    over = threading.Event()

    def ring() -> None:
        while not over.wait(0.05):
            for agent in site.agents:
                agent.bell()

    thread = threading.Thread(target=ring)
    thread.start()
    try:
        site.agent(lease_s=1.5, fence_margin_s=0.2)
        until(lambda: site.fabric.attempts(job_id)[0].outcome == "lost", within_s=30)
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("name", ["read", "reap", "promote", "claim", "renew", "register"])
def test_an_agent_goes_on_after_the_database_was_away(site: Site, name: str) -> None:
    plan = FaultPlan([Fault(name, "before", times=3)])
    site.agent(faults=plan, poll_s=0.1)
    until(lambda: len(plan.fired) == 3)
    sent = site.fabric.submit(*[fake()] * 3)
    site.until_ended(*sent)


def test_real_processes_print_end_and_are_stopped(site: Site) -> None:
    agent = site.agent(runner=site.processes())
    told, killed, stopped = site.fabric.submit(
        job(script='echo "out $1"; echo err >&2; exit 7', arguments=("one",)),
        job(script="kill -SEGV $$"),
        job(script="echo up; exec sleep 1000"),
    )
    until(lambda: site.output(stopped) == b"up\n")
    request_stop(site.fabric.db, DEFAULT_TENANT, stopped, "ann")
    agent.wake()
    site.until_ended(told, killed, stopped)
    detail = job_detail(site.fabric.db, DEFAULT_TENANT, told)
    assert (detail.stdout, detail.stderr, detail.job.exit_code) == (b"out one\n", b"err\n", 7)
    assert (site.fabric.row(killed).exit_code, site.fabric.row(killed).signal) == (None, 11)
    assert site.fabric.state(stopped) == JobState.CANCELLED
    site.fabric.assert_in_order()


def test_a_real_process_outlives_its_agent_and_the_next_one_tells_its_end(site: Site, directory: Path) -> None:
    gate = directory / "gate"
    first = site.agent(runner=site.processes())
    (job_id,) = site.fabric.submit(job(script=f"echo before; until [ -e {gate} ]; do sleep 0.05; done; echo after"))
    until(lambda: site.output(job_id) == b"before\n")
    first.stop()
    gate.touch()
    assert running(site.fabric, job_id)
    site.agent(runner=site.processes())
    site.until_ended(job_id)
    assert site.fabric.state(job_id) == JobState.COMPLETED
    assert site.output(job_id) == b"before\nafter\n"
    assert len(site.fabric.attempts(job_id)) == 1


def test_a_preempted_job_that_saves_its_work_and_exits_0_runs_again(site: Site) -> None:
    agent = site.agent(runner=site.processes())
    (job_id,) = site.fabric.submit(job(script="trap 'echo saved; exit 0' TERM; echo up; while :; do sleep 0.05; done"))
    until(lambda: site.output(job_id) == b"up\n")
    request_stop(site.fabric.db, DEFAULT_TENANT, job_id, "planner", None, StopCause.PREEMPT)
    agent.wake()
    until(lambda: site.fabric.attempts(job_id)[0].outcome is not None)
    assert site.fabric.attempts(job_id)[0].outcome == "preempted"
    until(lambda: site.fabric.row(job_id).attempt == 2)


def test_promotion_and_retry_bring_a_failed_job_to_its_end(site: Site) -> None:
    site.agent()
    (job_id,) = site.fabric.submit(job(environment={"FAKE_EXIT_CODE": "1"}, max_retries=2, backoff_s=0.01))

    def promoted() -> bool:
        recover.promote(site.fabric.db)
        return site.fabric.state(job_id) == JobState.FAILED

    until(promoted)
    assert [a.outcome for a in site.fabric.attempts(job_id)] == ["failed"] * 3


def test_a_retry_runs_on_another_node(site: Site) -> None:
    # The scheduler was here just now: no agent promotes by itself before the other node is there.
    recover.promote(site.fabric.db)
    site.agent("bad", poll_s=0.1)
    (job_id,) = site.fabric.submit(job(environment={"FAKE_EXIT_CODE": "1"}, max_retries=1, backoff_s=0.01))
    until(lambda: bool(site.fabric.attempts(job_id)) and site.fabric.attempts(job_id)[0].outcome == "failed")
    site.agent("good", poll_s=0.1)

    def promoted() -> bool:
        recover.promote(site.fabric.db, 60.0)
        return site.fabric.state(job_id) == JobState.FAILED

    until(promoted)
    assert [a.node_id for a in site.fabric.attempts(job_id)] == ["bad", "good"]
