"""The tables of jobs that others run and only report here, and of lists that show these beside our own, in SQLAlchemy.

A test holds them together with the migrations.
"""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Column,
    DateTime,
    Double,
    ForeignKeyConstraint,
    Identity,
    Index,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)

from app.storage.tables import metadata

_TIME = DateTime(timezone=True)

tracked_job = Table(
    "tracked_job",
    metadata,
    Column("id", Uuid, nullable=False),
    Column("tenant_id", Uuid, nullable=False),
    Column("client_id", Text, nullable=False),
    Column("owner", Text, nullable=False),
    Column("nodes", ARRAY(Text), nullable=False),
    Column("state", SmallInteger, server_default=text("2"), nullable=False),
    Column("created_at", _TIME, server_default=text("now()"), nullable=False),
    Column("started_at", _TIME, server_default=text("now()"), nullable=False),
    Column("ended_at", _TIME),
    Column("heard_at", _TIME, server_default=text("now()"), nullable=False),
    Column("cpu_percent", Double, server_default=text("0"), nullable=False),
    Column("memory_mib", BigInteger, server_default=text("0"), nullable=False),
    Column("gpu_percent", Double),
    PrimaryKeyConstraint("id", name="pk_tracked_job"),
    ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_tracked_job_tenant"),
    UniqueConstraint("tenant_id", "client_id", name="uq_tracked_job_client"),
    Index("ix_tracked_job_tenant", "tenant_id", "id"),
    Index("ix_tracked_job_state", "tenant_id", "state", "id"),
    Index("ix_tracked_job_owner", "tenant_id", "owner", "id"),
    Index("ix_tracked_job_running", "id", postgresql_where=text("state = 2")),
    Index("ix_tracked_job_nodes", "nodes", postgresql_using="gin"),
)

tracked_sample = Table(
    "tracked_sample",
    metadata,
    Column("job_id", Uuid, nullable=False),
    Column("at", _TIME, nullable=False),
    Column("id", BigInteger, Identity(always=True), nullable=False),
    Column("cpu_percent", Double, nullable=False),
    Column("memory_mib", BigInteger, nullable=False),
    Column("gpu_percent", Double),
    PrimaryKeyConstraint("job_id", "at", "id", name="pk_tracked_sample"),
    ForeignKeyConstraint(["job_id"], ["tracked_job.id"], name="fk_tracked_sample_job", ondelete="CASCADE"),
    Index("ix_tracked_sample_at", "at", postgresql_using="brin"),
)

observed_hidden = Table(
    "observed_hidden",
    metadata,
    Column("job_id", Uuid, nullable=False),
    Column("tenant_id", Uuid, nullable=False),
    Column("state", SmallInteger, nullable=False),
    PrimaryKeyConstraint("job_id", name="pk_observed_hidden"),
    ForeignKeyConstraint(["job_id"], ["job.id"], name="fk_observed_hidden_job", ondelete="CASCADE"),
    Index("ix_observed_hidden_open", "tenant_id", "job_id", postgresql_where=text("state <= 3")),
)

observed_count = Table(
    "observed_count",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("kind", Text, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("owner", Text, nullable=False),
    Column("n", BigInteger, nullable=False),
    PrimaryKeyConstraint("tenant_id", "kind", "state", "owner", name="pk_observed_count"),
)

observed_count_delta = Table(
    "observed_count_delta",
    metadata,
    Column("id", BigInteger, Identity(always=True), nullable=False),
    Column("tenant_id", Uuid, nullable=False),
    Column("kind", Text, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("owner", Text, nullable=False),
    Column("n", BigInteger, nullable=False),
    PrimaryKeyConstraint("id", name="pk_observed_count_delta"),
)
