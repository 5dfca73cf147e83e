"""Tables of arrays and dependencies in SQLAlchemy; a test holds them together with the migrations."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import INT4MULTIRANGE, JSONB

from app.storage.tables import metadata

_TIME = DateTime(timezone=True)


def _count(name: str) -> Column[int]:
    return Column(name, Integer, server_default=text("0"), nullable=False)


job_array = Table(
    "job_array",
    metadata,
    Column("id", Uuid, nullable=False),
    Column("tenant_id", Uuid, nullable=False),
    Column("key_id", BigInteger, nullable=False),
    Column("contract", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("class", SmallInteger, nullable=False),
    Column("size", Integer, nullable=False),
    Column("max_parallel", Integer),
    Column("template", JSONB, nullable=False),
    Column("todo", INT4MULTIRANGE, nullable=False),
    Column("unmade", Integer, nullable=False),
    _count("again"),
    _count("skipped"),
    _count("pending"),
    _count("active"),
    _count("completed"),
    _count("failed"),
    _count("cancelled"),
    Column("waits", Boolean, server_default=text("false"), nullable=False),
    Column("message", Text, server_default=text("''::text"), nullable=False),
    Column("stop_by", Text),
    Column("stop_reason", Text),
    Column("created_at", _TIME, server_default=text("now()"), nullable=False),
    Column("finished_at", _TIME),
    PrimaryKeyConstraint("id", name="pk_job_array"),
    ForeignKeyConstraint(["key_id"], ["scheduling_key.id"], name="fk_job_array_key"),
    ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_job_array_tenant"),
    Index("ix_job_array_finished", "finished_at", postgresql_where=text("(finished_at IS NOT NULL)")),
    Index("ix_job_array_tenant", "tenant_id", "id"),
)

array_delta = Table(
    "array_delta",
    metadata,
    Column("id", BigInteger, Identity(always=True), nullable=False),
    Column("array_id", Uuid, nullable=False),
    _count("pending"),
    _count("active"),
    _count("completed"),
    _count("failed"),
    _count("cancelled"),
    PrimaryKeyConstraint("id", name="pk_array_delta"),
    Index("ix_array_delta_array", "array_id"),
)

job_dependency = Table(
    "job_dependency",
    metadata,
    Column("child_id", Uuid, nullable=False),
    Column("parent_id", Uuid, nullable=False),
    Column("terms", SmallInteger, nullable=False),
    Column("child_is_array", Boolean, nullable=False),
    Column("parent_is_array", Boolean, nullable=False),
    Column("settled", Boolean),
    PrimaryKeyConstraint("child_id", "parent_id", name="pk_job_dependency"),
    Index("ix_job_dependency_open", "parent_id", "child_id", postgresql_where=text("(settled IS NULL)")),
)

ended_parent = Table(
    "ended_parent",
    metadata,
    Column("id", BigInteger, Identity(always=True), nullable=False),
    Column("parent_id", Uuid, nullable=False),
    Column("is_array", Boolean, nullable=False),
    Column("completed", Boolean, nullable=False),
    Column("at", _TIME, server_default=text("clock_timestamp()"), nullable=False),
    PrimaryKeyConstraint("id", name="pk_ended_parent"),
)
