"""Brings a database to the schema of this code, and gives the agents' restricted login what it needs, no more."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

from app.domain.errors import FabricError, Unavailable

AGENT_ROLE = "cfab_agent"
LOCK = 7_201_415

_GRANTS = f"""
GRANT USAGE ON SCHEMA public TO {AGENT_ROLE};
GRANT SELECT ON tenant, scheduling_key, job, job_spec, attempt, allocation, lease, usage, node, gpu_hold, task_run,
    log_chunk, sample, alembic_version TO {AGENT_ROLE};
GRANT SELECT ON image_trust TO {AGENT_ROLE};
GRANT UPDATE ON job, attempt, lease, usage, node, scheduling_key, task_run TO {AGENT_ROLE};
GRANT SELECT, UPDATE ON job_hold TO {AGENT_ROLE};
GRANT UPDATE (gpu_uuids) ON allocation TO {AGENT_ROLE};
GRANT INSERT ON attempt, allocation, lease, usage, node, gpu_hold, log_chunk, sample, task_run TO {AGENT_ROLE};
GRANT DELETE ON allocation, lease, gpu_hold TO {AGENT_ROLE};
GRANT SELECT ON reservation, tenant_share, quota_hold TO {AGENT_ROLE};
GRANT SELECT, INSERT, UPDATE ON retry_elsewhere TO {AGENT_ROLE};
"""


class SchemaTooNew(FabricError):
    """The database was made by a newer version of this program; install that version."""


def upgrade(database_url: str, revision: str = "head") -> str:
    """Migrates to `revision` under an advisory lock (many may call at once); the revision that then holds.

    Raises SchemaTooNew when the database's revision is unknown here, Unavailable when it cannot be reached.
    """
    with _connection(database_url) as connection:
        config = _config(connection)
        _refuse_newer(connection, config)
        command.upgrade(config, revision)
        if revision == "head":
            _grant(connection)
        return current(connection) or ""


def downgrade(database_url: str, revision: str) -> None:
    """Migrates back to `revision` (`base` drops everything)."""
    with _connection(database_url) as connection:
        command.downgrade(_config(connection), revision)


def current(connection: Connection) -> str | None:
    """The revision of the database, None when it is empty."""
    return MigrationContext.configure(connection).get_current_revision()


def _connection(database_url: str) -> _Locked:
    return _Locked(database_url)


class _Locked:
    """One transaction that holds the migration lock."""

    def __init__(self, database_url: str) -> None:
        self._engine = create_engine(make_url(database_url).set(drivername="postgresql+psycopg2"))

    def __enter__(self) -> Connection:
        try:
            self._begun = self._engine.begin()
            connection = self._begun.__enter__()
        except OperationalError as exc:
            raise Unavailable(f"The database cannot be reached: {exc.orig}") from exc
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        return connection

    def __exit__(self, *error: object) -> None:
        self._begun.__exit__(*error)  # type: ignore[arg-type]
        self._engine.dispose()


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).resolve().parents[2] / "migrations"))
    config.attributes["connection"] = connection
    return config


def _refuse_newer(connection: Connection, config: Config) -> None:
    revision = current(connection)
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if revision is not None and revision not in known:
        raise SchemaTooNew(revision=revision)


def _grant(connection: Connection) -> None:
    if connection.scalar(text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": AGENT_ROLE}):
        connection.execute(text(_GRANTS))
