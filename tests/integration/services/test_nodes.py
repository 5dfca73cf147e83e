"""A renewal extends what is really held, and names every difference between node and database."""

from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

import pytest

from app.domain.errors import NotFound, Refused, StaleIncarnation, StateConflict
from app.domain.job import DEFAULT_TENANT
from app.domain.states import JobState, StopCause
from app.services import nodes, operate, recover
from app.services.nodes import NodeOffer, Orphan, register
from app.services.stop import request_stop
from tests.factories import Fabric, Node, gpu, job, raw


def test_a_renewal_moves_the_leases_of_what_is_held(fabric: Fabric, node: Node) -> None:
    fabric.submit(*[job()] * 2)
    one, two = fabric.claim(node)
    fabric.expire()
    answer = fabric.renew(node, one, two)
    assert (answer.renewed, answer.lost, answer.orphans) == ({one.attempt_id, two.attempt_id}, frozenset(), [])
    assert (answer.stops, answer.draining) == ({}, False)
    left = fabric.value("SELECT min(extract(epoch FROM expires_at - now()))::float FROM lease")
    assert fabric.settings.lease_s - 5 < left <= fabric.settings.lease_s


def test_what_is_no_longer_held_in_the_database_is_lost(fabric: Fabric, node: Node) -> None:
    fabric.submit(*[job()] * 3)
    ended, reaped, forged = fabric.claim(node)
    fabric.finish(ended)
    fabric.expire(reaped)
    fabric.reap()
    answer = fabric.renew(node, ended, reaped, replace(forged, token=uuid4()))
    assert answer.lost == {ended.attempt_id, reaped.attempt_id, forged.attempt_id}
    assert answer.renewed == frozenset()


def test_an_allocation_that_the_node_does_not_list_is_an_orphan(fabric: Fabric, node: Node) -> None:
    fabric.submit(*[job()] * 2)
    fabric.run(node)
    held = fabric.claim_one(node)
    answer = fabric.renew(node, held)
    (orphan,) = answer.orphans
    assert (orphan.started, answer.renewed) == (True, {held.attempt_id})


def test_a_lease_that_nobody_lists_is_not_extended(fabric: Fabric, node: Node) -> None:
    fabric.submit_one()
    taken = fabric.claim_one(node)
    fabric.expire()
    fabric.renew(node)
    fabric.reap()
    assert fabric.state(taken.job_id) == JobState.PENDING


def test_another_nodes_lease_cannot_be_extended(fabric: Fabric, node: Node) -> None:
    fabric.submit_one()
    taken = fabric.claim_one(node)
    assert fabric.renew(fabric.add_node(), taken).lost == {taken.attempt_id}


def test_stops_come_with_their_cause_and_grace(fabric: Fabric, node: Node) -> None:
    fabric.submit(job(grace_s=3.0), job())
    one, two = fabric.claim(node)
    request_stop(fabric.db, DEFAULT_TENANT, one.job_id, "ann", None, StopCause.PREEMPT)
    assert fabric.renew(node, one, two).stops == {one.attempt_id: (StopCause.PREEMPT, 3.0)}


def test_an_agent_that_another_has_replaced_is_told_to_stop(fabric: Fabric) -> None:
    old = fabric.add_node("host")
    fabric.submit_one()
    taken = fabric.claim_one(old)
    fabric.expire()
    new = fabric.add_node("host")
    with pytest.raises(StaleIncarnation):
        fabric.renew(old, taken)
    assert fabric.value("SELECT expires_at < now() FROM lease")
    assert fabric.renew(new, taken).renewed == {taken.attempt_id}


def test_a_renewal_touches_no_indexed_column(new_fabric: Fabric) -> None:
    fabric = new_fabric

    def updates() -> tuple[int, int]:
        # Told by sessions that end; the database itself may have served other tests before.
        fabric.db.close()
        fabric.sql("SELECT pg_stat_force_next_flush()")
        stats = fabric.one("SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'lease'")
        return stats.n_tup_upd, stats.n_tup_hot_upd

    node = fabric.add_node()
    fabric.submit_one()
    taken = fabric.claim_one(node)
    before = updates()
    for _ in range(20):
        fabric.renew(node, taken)
    after = updates()
    assert after[0] - before[0] >= 20
    assert after[1] - before[1] == after[0] - before[0]


def test_a_draining_node_is_told_so_and_stays_so_through_a_restart_and_a_silence(fabric: Fabric) -> None:
    node = fabric.add_node("host")
    nodes.set_draining(fabric.db, node.id, True)
    assert fabric.renew(node).draining
    fabric.sql("UPDATE node SET last_seen_at = now() - interval '1 hour'")
    recover.reap(fabric.db, fabric.settings)
    assert fabric.renew(node).draining
    again = fabric.add_node("host")
    assert fabric.renew(again).draining
    nodes.set_draining(fabric.db, node.id, False)
    assert not fabric.renew(again).draining


def test_a_silent_node_is_offline_until_it_is_heard_again(fabric: Fabric, node: Node) -> None:
    fabric.sql("UPDATE node SET last_seen_at = now() - interval '1 hour'")
    assert recover.reap(fabric.db, fabric.settings).detail["offline"] == [node.id]
    fabric.submit_one()
    assert fabric.claim(node) == []
    fabric.renew(node)
    assert len(fabric.claim(node)) == 1


def test_there_is_no_such_node_to_drain(fabric: Fabric) -> None:
    with pytest.raises(NotFound, match="nobody"):
        nodes.set_draining(fabric.db, "nobody", True)


def test_a_name_is_one_hosts_while_that_host_lives(fabric: Fabric) -> None:
    offer = NodeOffer("gpu-1", 1, 1000, 10**9, host="a:/work")
    assert register(fabric.db, offer, 60).same_host
    assert register(fabric.db, offer, 60).same_host
    with pytest.raises(Refused, match="CFAB_NODE_NAME"):
        register(fabric.db, replace(offer, host="b:/work"), 60)
    fabric.sql("UPDATE node SET last_seen_at = now() - interval '61 s'")
    assert not register(fabric.db, replace(offer, host="b:/work"), 60).same_host


def test_what_a_node_does_not_run_is_handed_back_at_once_and_costs_nothing(fabric: Fabric, node: Node) -> None:
    fabric.submit_one()
    taken = fabric.run(node)
    orphan = Orphan(taken.attempt_id, taken.token, True)
    for _ in range(2):
        recover.hand_back(fabric.db, [orphan], "its node never ran it")
    row = fabric.row(taken.job_id)
    assert (row.state, row.ready, row.reason, row.failures, row.lost_nodes) == (0, True, "lost", 0, [])
    assert fabric.attempts(taken.job_id)[0].outcome == "lost"
    fabric.assert_in_order()


def test_nothing_is_handed_back_under_a_wrong_token(fabric: Fabric, node: Node) -> None:
    fabric.submit_one()
    taken = fabric.run(node)
    recover.hand_back(fabric.db, [Orphan(taken.attempt_id, uuid4(), True)], "forged")
    assert fabric.state(taken.job_id) == JobState.RUNNING


def test_a_renewal_while_the_reaper_looks_at_the_same_lease_wins(fabric: Fabric, node: Node, database_url: str) -> None:
    fabric.submit_one()
    taken = fabric.claim_one(node)
    fabric.expire()
    with raw(database_url) as renewal:
        renewal.cursor().execute("UPDATE lease SET expires_at = now() + interval '60 s'")
        assert fabric.reap().detail["reaped"] == 0
        renewal.commit()
    assert fabric.reap().detail["reaped"] == 0
    assert fabric.state(taken.job_id) == JobState.STARTING


def test_a_gpu_belongs_to_one_live_node_only(fabric: Fabric) -> None:
    fabric.add_node("first", gpus=[gpu(1), gpu(2)])
    with pytest.raises(Refused, match=r"GPU-2 belongs to node 'first'.* CFAB_GPUS"):
        fabric.add_node("second", gpus=[gpu(2), gpu(3)])
    assert fabric.value("SELECT count(*) FROM node") == 1
    fabric.add_node("second", gpus=[gpu(3)])
    fabric.add_node("first", gpus=[gpu(1), gpu(2)])
    fabric.sql("UPDATE node SET last_seen_at = now() - interval '1 hour' WHERE id = 'first'")
    fabric.add_node("third", gpus=[gpu(2)])


class TestForgetting:
    def test_a_node_that_lives_or_holds_jobs_stays(self, fabric: Fabric, node: Node) -> None:
        with pytest.raises(StateConflict, match="was heard"):
            operate.forget(fabric.db, node.id, 60.0)
        fabric.submit_one()
        taken = fabric.run(node)
        fabric.sql("UPDATE node SET last_seen_at = now() - interval '31 days'")
        with pytest.raises(StateConflict, match="still holds"):
            operate.forget(fabric.db, node.id, 60.0)
        assert recover.forget_nodes(fabric.db, fabric.settings).detail["forgotten"] == []
        fabric.finish(taken)
        operate.forget(fabric.db, node.id, 60.0)
        with pytest.raises(NotFound):
            operate.forget(fabric.db, node.id, 60.0)
        assert fabric.value("SELECT count(*) FROM usage") == 0
        fabric.assert_in_order()

    def test_those_that_were_silent_for_long_go_by_themselves(self, fabric: Fabric, node: Node) -> None:
        old = fabric.add_node("old")
        fabric.sql("UPDATE node SET last_seen_at = now() - interval '31 days', state = 'offline' WHERE id = 'old'")
        assert recover.forget_nodes(fabric.db, fabric.settings).detail["forgotten"] == ["old"]
        assert [one.name for one in operate.list_nodes(fabric.db)] == [node.id]
        with pytest.raises(StaleIncarnation):
            fabric.renew(old)
        assert fabric.add_node("old").id == "old"
