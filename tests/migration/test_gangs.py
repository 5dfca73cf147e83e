"""Jobs that waited as gangs before there were any, and gangs under the agents' restricted login."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID, uuid4

from sqlalchemy import create_engine, text

from app.domain.job import DEFAULT_TENANT, Assignment
from app.domain.policy import Ending
from app.domain.states import JobState
from app.services import recover
from app.services.gangs import gates, miss_barrier
from app.storage.database import Database
from app.storage.migrate import downgrade, upgrade
from tests.factories import Fabric, Node, make_fabric
from tests.gangs import gang_node, leader_of, place_on, prepare
from tests.servers import TestServers


def old_job(url: str, state: int, image: str | None, members: int) -> UUID:
    """A job as the ai contract made it then, under a runner that no node has."""
    job_id = uuid4()
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg2:"))
    with engine.begin() as connection:
        key = connection.scalar(
            text(
                """INSERT INTO scheduling_key AS k (tenant_id, class, priority, runner, external_ok, cpus_milli,
                    memory_bytes, gpus, gpu_memory_bytes, gpu_model)
                VALUES (:tenant, 1, 500, 'gang', false, 100, 67108864, 0, 0, '')
                ON CONFLICT ON CONSTRAINT uq_scheduling_key_shape DO UPDATE SET live = true RETURNING id"""
            ),
            {"tenant": DEFAULT_TENANT},
        )
        connection.execute(
            text(
                """INSERT INTO job (id, tenant_id, key_id, class, contract, type, reason, state, ready, finished_at)
                VALUES (:id, :tenant, :key, 1, 'ai', 'x', 'new', :state, :state = 0,
                    CASE WHEN :state > 3 THEN now() END)"""
            ),
            {"id": job_id, "tenant": DEFAULT_TENANT, "key": key, "state": state},
        )
        connection.execute(
            text(
                """INSERT INTO job_spec (job_id, runner, image, script, cpus_milli, memory_bytes, grace_s, asked)
                VALUES (:id, 'gang', CAST(:image AS text), CASE WHEN CAST(:image AS text) IS NULL THEN 'true' END, 100,
                    67108864, 1, jsonb_build_object('gang', jsonb_build_object('enabled', true, 'min_members',
                    CAST(:members AS integer))))"""
            ),
            {"id": job_id, "image": image, "members": members},
        )
    engine.dispose()
    return job_id


def test_jobs_that_waited_as_gangs_are_placed_after_the_upgrade(empty_database_url: str) -> None:
    upgrade(empty_database_url, "0010")
    script = old_job(empty_database_url, 0, None, 2)
    image = old_job(empty_database_url, 0, "team/tool:1", 3)
    cancelled = old_job(empty_database_url, 6, None, 4)
    upgrade(empty_database_url)
    fabric = make_fabric(empty_database_url)
    keys = {
        row.id: (row.runner, row.members)
        for row in fabric.all("SELECT j.id, k.runner, k.members FROM job j JOIN scheduling_key k ON k.id = j.key_id")
    }
    assert keys[script] == ("gang-process", 2) and keys[image] == ("gang-container", 3)
    specs = {row.job_id: (row.runner, row.members) for row in fabric.all("SELECT * FROM job_spec")}
    assert specs == {script: ("process", 2), image: ("container", 3), cancelled: ("process", 4)}
    a, b = gang_node(fabric, "a"), gang_node(fabric, "b")
    assert place_on(fabric, script, "a", "b").nodes
    for node in (a, b):
        (mine,) = fabric.claim(node)
        fabric.finish(mine)
    assert fabric.state(script) == JobState.COMPLETED
    fabric.assert_in_order()
    fabric.db.close()


def test_going_back_they_wait_as_before(empty_database_url: str) -> None:
    upgrade(empty_database_url, "0010")
    job_id = old_job(empty_database_url, 0, None, 2)
    upgrade(empty_database_url)
    downgrade(empty_database_url, "0010")
    engine = create_engine(empty_database_url.replace("postgresql:", "postgresql+psycopg2:"))
    with engine.connect() as connection:
        row = connection.execute(
            text(
                """SELECT s.runner, s.members, k.runner FROM job j JOIN job_spec s ON s.job_id = j.id
                JOIN scheduling_key k ON k.id = j.key_id WHERE j.id = :id"""
            ),
            {"id": job_id},
        ).one()
    engine.dispose()
    assert tuple(row) == ("gang", 1, "gang")
    upgrade(empty_database_url)


def test_the_agents_login_can_do_all_that_members_need(database_url: str, servers: TestServers) -> None:
    owner = make_fabric(database_url)
    agent = replace(owner, db=Database(servers.agent_url(database_url), pool_size=2))
    a, b = gang_node(agent, "a"), gang_node(agent, "b")
    members = assemble_as(owner, agent, a, b)
    prepare(agent, members[0])
    assert miss_barrier(agent.db, [leader_of(members)], 0.0)
    for one in members:
        agent.finish(one, Ending(started=False, stopped=True))
    again = assemble_as(owner, agent, a, b)
    prepare(agent, *again)
    assert gates(agent.db, [leader_of(again)])[leader_of(again)].is_open
    agent.start(*again)
    owner.expire(again[1])
    recover.reap(agent.db, replace(agent.settings, lease_s=0.001))
    assert agent.renew(a, again[0]).broken
    agent.finish(again[0], Ending(signal=15, stopped=True))
    assert owner.row(again[0].job_id).lost_nodes == ["b"]
    owner.assert_in_order()
    agent.db.close()
    owner.db.close()


def assemble_as(owner: Fabric, agent: Fabric, *nodes: Node) -> list[Assignment]:
    """Placed by the scheduler's login, claimed by the agents'."""
    job_id = owner.submit_one(members=len(nodes))
    assert place_on(owner, job_id, *(node.id for node in nodes)).nodes
    taken = [one for node in nodes for one in agent.claim(node)]
    return sorted(taken, key=lambda one: one.gang.member if one.gang else 0)
