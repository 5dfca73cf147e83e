"""Migrations run again, at once and back and forth; the agents' login can do its work under them and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import psycopg2
import pytest
from sqlalchemy import text
from sqlalchemy.exc import ProgrammingError

from app.domain.dependency import After
from app.domain.errors import Unavailable
from app.domain.policy import Ending
from app.domain.states import JobState
from app.services import recover
from app.services.image_trust import change_trust, trust_of
from app.storage.database import Database
from app.storage.migrate import downgrade, upgrade
from tests.factories import Fabric, at_once, gpu, job, make_fabric, share
from tests.integration.services.array_lab import submit_an_array, tick
from tests.servers import TestServers


def objects(url: str) -> set[tuple[str, str]]:
    """Everything of ours in the database: relations and functions."""
    connection = psycopg2.connect(url)
    with connection, connection.cursor() as cursor:
        cursor.execute(
            """SELECT 'relation', relname FROM pg_class WHERE relnamespace = 'public'::regnamespace
            UNION SELECT 'function', proname FROM pg_proc WHERE pronamespace = 'public'::regnamespace"""
        )
        found = set(cursor.fetchall())
    connection.close()
    return found


def test_going_back_leaves_nothing_and_forth_again_is_the_same(empty_database_url: str) -> None:
    upgrade(empty_database_url)
    made = objects(empty_database_url)
    downgrade(empty_database_url, "base")
    assert objects(empty_database_url) <= {("relation", "alembic_version"), ("relation", "alembic_version_pkc")}
    upgrade(empty_database_url)
    assert objects(empty_database_url) == made


def test_upgrading_again_is_harmless_and_keeps_the_jobs(database_url: str) -> None:
    fabric = make_fabric(database_url)
    job_id = fabric.submit_one()
    before = objects(database_url)
    assert upgrade(database_url) == upgrade(database_url)
    assert objects(database_url) == before
    assert fabric.state(job_id) == JobState.PENDING
    fabric.db.close()


def test_many_may_upgrade_an_empty_database_at_once(empty_database_url: str) -> None:
    assert len(set(at_once(3, lambda _: upgrade(empty_database_url)))) == 1


def test_a_database_that_is_not_there_is_said_so() -> None:
    with pytest.raises(Unavailable, match="cannot be reached"):
        upgrade("postgresql://nobody@127.0.0.1:9/none")


def test_no_statement_can_take_a_job_out_of_its_end(database_url: str) -> None:
    fabric = make_fabric(database_url)
    job_id = fabric.submit_one()
    fabric.finish(fabric.run(fabric.add_node()))
    with pytest.raises(Exception, match="may not go from state 4 to 0"):
        fabric.sql("UPDATE job SET state = 0, reason = 'new', finished_at = NULL, stop_cause = NULL")
    assert fabric.state(job_id) == JobState.COMPLETED
    fabric.db.close()


@pytest.fixture
def agent_fabric(database_url: str, servers: TestServers) -> Iterator[Fabric]:
    """The services under the agents' restricted login."""
    fabric = make_fabric(database_url)
    restricted = replace(fabric, db=Database(servers.agent_url(database_url), pool_size=2))
    yield restricted
    restricted.db.close()
    fabric.db.close()


def test_the_agents_login_can_do_all_that_an_agent_does(agent_fabric: Fabric, database_url: str) -> None:
    owner = make_fabric(database_url)
    owner.submit(job(max_retries=1, backoff_s=0.01, resources=share(gpus=2)), job(), job(), job())
    node = agent_fabric.add_node(gpus=[gpu(1), gpu(2)])
    first, second, third, fourth = agent_fabric.claim(node)
    agent_fabric.start(first, second, third)
    assert len(agent_fabric.renew(node, first, second, third).orphans) == 1
    recover.hand_back(agent_fabric.db, [recover.Orphan(fourth.attempt_id, fourth.token, False)], "not here")
    agent_fabric.finish(first, Ending(exit_code=1))
    agent_fabric.finish(second)
    owner.due()
    owner.expire(third)
    recover.promote(agent_fabric.db, elsewhere_s=5.0)
    recover.reap(agent_fabric.db, replace(agent_fabric.settings, lease_s=0.001))
    assert [owner.state(t.job_id) for t in (first, second, third, fourth)] == [0, 4, 0, 0]
    owner.assert_in_order()
    owner.db.close()


def test_ends_under_the_agents_login_pass_turns_on_and_tell_those_that_wait(
    agent_fabric: Fabric, database_url: str
) -> None:
    owner = make_fabric(database_url)
    submit_an_array(owner, 3, 1)
    node = agent_fabric.add_node()
    for index in ("0", "1"):
        one = agent_fabric.run(node)
        assert one.environment["CFAB_ARRAY_INDEX"] == index
        agent_fabric.finish(one)
    last = agent_fabric.run(node)
    waits = owner.submit_one(after=(After(last.job_id),))
    agent_fabric.finish(last)
    tick(owner)
    assert agent_fabric.claim_one(node).job_id == waits
    owner.assert_in_order()
    owner.db.close()


def test_a_downgrade_is_refused_while_jobs_wait_for_what_older_code_does_not_know(database_url: str) -> None:
    fabric = make_fabric(database_url)
    parent = fabric.submit_one()
    fabric.submit_one(after=(After(parent),))
    with pytest.raises(Exception, match="jobs wait for others"):
        downgrade(database_url, "0009")
    submit_an_array(fabric, 2)
    with pytest.raises(Exception, match="arrays have not ended"):
        downgrade(database_url, "0009")
    fabric.assert_in_order()
    fabric.db.close()


def test_the_agents_login_can_read_what_images_must_be(agent_fabric: Fabric, database_url: str) -> None:
    owner = make_fabric(database_url)
    change_trust(owner.db, owner.tenant, {"policy": "digest"})
    assert trust_of(agent_fabric.db, owner.tenant)[1].policy == "digest"
    owner.db.close()


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO job (id, tenant_id, key_id, class, contract, type, reason) "
        "VALUES (gen_random_uuid(), gen_random_uuid(), 1, 0, 'jobs', 'x', 'new')",
        "INSERT INTO job_spec (job_id, runner, cpus_milli, memory_bytes, grace_s) "
        "VALUES (gen_random_uuid(), 'process', 1, 1, 1)",
        "UPDATE job_spec SET script = 'evil'",
        "DELETE FROM job",
        "DELETE FROM attempt",
        "SELECT * FROM idempotency",
        "UPDATE tenant SET quota_jobs = NULL",
        "UPDATE image_trust SET policy = 'off'",
        "INSERT INTO image_trust (tenant_id) SELECT id FROM tenant",
        "INSERT INTO tenant (id, name) VALUES (gen_random_uuid(), 'mine')",
        "DELETE FROM log_chunk",
        "SELECT * FROM event",
        "UPDATE job_count SET n = 0",
        "UPDATE job_array SET max_parallel = NULL",
        "INSERT INTO job_dependency SELECT gen_random_uuid(), id, 1, false, false FROM job",
        "DELETE FROM ended_parent",
        "CREATE TABLE mine (x int)",
        "ALTER TABLE job DISABLE TRIGGER ALL",
    ],
)
def test_the_agents_login_can_do_nothing_else(agent_fabric: Fabric, statement: str) -> None:
    with agent_fabric.db.engine.connect() as connection:
        with pytest.raises(ProgrammingError, match=r"permission denied|must be owner"):
            connection.execute(text(statement))
