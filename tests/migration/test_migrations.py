"""Migrations on a real PostgreSQL: up equals the models, down leaves nothing, twice is harmless, newer is refused."""

from __future__ import annotations

from uuid import uuid4

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from click.testing import CliRunner
from sqlalchemy import create_engine, text
from sqlalchemy.exc import ProgrammingError

from app.cli.failure import ExitCode
from app.cli.main import main
from app.domain.job import DEFAULT_TENANT, JobRequest
from app.domain.policy import Ending
from app.domain.priority import PriorityClass
from app.domain.states import TRANSITIONS, JobState, may_follow
from app.services.claim import Claimer, claim
from app.services.nodes import Held, NodeOffer, register, renew
from app.services.report import Answer, Finished, finish
from app.services.submit import submit
from app.storage.database import Database
from app.storage.migrate import SchemaTooNew, downgrade, upgrade
from app.storage.schema import metadata
from config.settings import Settings
from tests.servers import TestServers

GIB = 2**30


def test_upgrading_an_empty_database_gives_the_models(empty_database_url: str) -> None:
    upgrade(empty_database_url)
    engine = create_engine(empty_database_url.replace("postgresql:", "postgresql+psycopg2:"))
    with engine.connect() as connection:

        def ours(_thing: object, name: str | None, kind: str, reflected: bool, _other: object) -> bool:
            partition = (name or "").startswith(("log_chunk_", "sample_", "event_")) or name == "alembic_version"
            return not (kind == "table" and reflected and partition)

        options = {"compare_type": True, "include_object": ours}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, metadata) == []
    engine.dispose()


def test_downgrading_leaves_nothing(empty_database_url: str) -> None:
    upgrade(empty_database_url)
    downgrade(empty_database_url, "base")
    engine = create_engine(empty_database_url.replace("postgresql:", "postgresql+psycopg2:"))
    with engine.connect() as connection:
        left = connection.execute(
            text(
                """SELECT relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                WHERE nspname = 'public' AND relname NOT LIKE 'alembic_version%'
                UNION ALL SELECT proname FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
                WHERE nspname = 'public'"""
            )
        ).fetchall()
    engine.dispose()
    assert left == []
    assert upgrade(empty_database_url)


def test_upgrading_twice_changes_nothing(database_url: str) -> None:
    assert upgrade(database_url) == upgrade(database_url)


def test_a_newer_schema_is_refused(database_url: str) -> None:
    engine = create_engine(database_url.replace("postgresql:", "postgresql+psycopg2:"))
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    engine.dispose()
    told = CliRunner().invoke(main, ["migrate"], env={"CFAB_DATABASE_URL": database_url})
    assert (told.exit_code, "newer version" in told.stderr) == (ExitCode.USAGE, True)
    with pytest.raises(SchemaTooNew, match="newer version"):
        upgrade(database_url)


def test_the_trigger_repeats_the_state_table(db: Database) -> None:
    with db.transaction() as tx:
        rows = tx.rows(
            """SELECT b, a, job_may_follow(b::smallint, a::smallint)
            FROM generate_series(0, 6) b, generate_series(0, 6) a"""
        )
    assert {(b, a): allowed for b, a, allowed in rows} == {
        (int(b), int(a)): may_follow(b, a) for b in JobState for a in JobState
    }
    assert set(TRANSITIONS) == set(JobState)


def test_an_illegal_transition_is_refused_by_the_database(db: Database, settings: Settings) -> None:
    job = submit(db, settings, DEFAULT_TENANT, [_request()]).jobs[0]
    with db.transaction() as tx:
        tx.run(
            "UPDATE job SET state = 6, ready = false, stop_cause = 4, finished_at = now() WHERE id = %(id)s",
            {"id": job.id},
        )
    with pytest.raises(Exception, match="may not go from state 6 to 0"), db.transaction() as tx:
        tx.run(
            """UPDATE job SET state = 0, reason = 'new', stop_cause = NULL, finished_at = NULL WHERE id = %(id)s""",
            {"id": job.id},
        )


def test_the_agents_login_can_do_its_work_and_no_more(
    servers: TestServers, db: Database, database_url: str, settings: Settings
) -> None:
    upgrade(database_url)
    submit(db, settings, DEFAULT_TENANT, [_request()])
    with db.transaction() as tx:
        # Of a finite quota a claim reads what is kept as well.
        tx.run("UPDATE tenant SET quota_jobs = 2")
    agent = Database(servers.agent_url(database_url), pool_size=2)
    try:
        incarnation = register(agent, NodeOffer("n1", 4, 4000, GIB), 60).incarnation
        one = claim(agent, Claimer("n1", incarnation), 4)[0]
        held = [Held(one.attempt_id, one.token)]
        assert renew(agent, "n1", incarnation, held, 60).renewed == {one.attempt_id}
        done = finish(agent, [Finished(one.attempt_id, one.token, Ending(exit_code=0))])
        assert done.answers == {one.attempt_id: Answer.ACCEPTED}
        for statement in (
            "SELECT * FROM idempotency",
            "UPDATE tenant SET tier = 'critical'",
            f"DELETE FROM job WHERE id = '{one.job_id}'",
            f"INSERT INTO tenant (id, name) VALUES ('{uuid4()}', 'mine')",
            "INSERT INTO job_spec (job_id, runner, cpus_milli, memory_bytes, grace_s)"
            f" VALUES ('{uuid4()}', 'process', 1, 1, 1)",
            "TRUNCATE log_chunk",
            "DELETE FROM quota_hold",
            "UPDATE event SET state = 4",
        ):
            with pytest.raises(ProgrammingError, match="permission denied"), agent.transaction() as tx:
                tx.run(statement)
    finally:
        agent.close()


def _request() -> JobRequest:
    return JobRequest("t", PriorityClass.BACKGROUND, binary_url="http://127.0.0.1/x", binary_sha256="0" * 64)
