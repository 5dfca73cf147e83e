"""The planner's tables in SQLAlchemy; a test holds them together with the migrations."""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Column,
    DateTime,
    Double,
    ForeignKeyConstraint,
    Index,
    Integer,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from app.storage.tables import metadata

_TIME = DateTime(timezone=True)

reservation = Table(
    "reservation",
    metadata,
    Column("job_id", Uuid, nullable=False),
    Column("member", SmallInteger, server_default=text("0"), nullable=False),
    Column("node_id", Text, nullable=False),
    Column("class", SmallInteger, nullable=False),
    Column("slots", Integer, nullable=False),
    Column("cpus_milli", BigInteger, nullable=False),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("gpu_uuids", ARRAY(Text), server_default=text("'{}'::text[]"), nullable=False),
    Column("starts_at", _TIME),
    Column("made_at", _TIME, server_default=text("now()"), nullable=False),
    Column("expires_at", _TIME, nullable=False),
    Column("awaited", ARRAY(Uuid), server_default=text("'{}'::uuid[]"), nullable=False),
    Column("why", Text, server_default=text("''::text"), nullable=False),
    PrimaryKeyConstraint("job_id", "member", name="pk_reservation"),
    ForeignKeyConstraint(["job_id"], ["job.id"], name="fk_reservation_job", ondelete="CASCADE"),
    Index("ix_reservation_node", "node_id"),
)

plan_note = Table(
    "plan_note",
    metadata,
    Column("job_id", Uuid, nullable=False),
    Column("at", _TIME, server_default=text("now()"), nullable=False),
    Column("reason", Text, nullable=False),
    Column("message", Text, nullable=False),
    Column("numbers", JSONB, server_default=text("'{}'::jsonb"), nullable=False),
    PrimaryKeyConstraint("job_id", name="pk_plan_note"),
    ForeignKeyConstraint(["job_id"], ["job.id"], name="fk_plan_note_job", ondelete="CASCADE"),
)

tenant_share = Table(
    "tenant_share",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("average", Double, server_default=text("0"), nullable=False),
    Column("at", _TIME, server_default=text("now()"), nullable=False),
    PrimaryKeyConstraint("tenant_id", name="pk_tenant_share"),
    ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_tenant_share_tenant", ondelete="CASCADE"),
)

quota_hold = Table(
    "quota_hold",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("job_id", Uuid, nullable=False),
    Column("jobs", BigInteger, nullable=False),
    Column("cpus_milli", BigInteger, nullable=False),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("gpus", BigInteger, nullable=False),
    Column("gpu_memory_bytes", BigInteger, nullable=False),
    Column("made_at", _TIME, server_default=text("now()"), nullable=False),
    Column("expires_at", _TIME, nullable=False),
    PrimaryKeyConstraint("tenant_id", name="pk_quota_hold"),
    ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_quota_hold_tenant", ondelete="CASCADE"),
    ForeignKeyConstraint(["job_id"], ["job.id"], name="fk_quota_hold_job", ondelete="CASCADE"),
    Index("ix_quota_hold_job", "job_id"),
)

retry_elsewhere = Table(
    "retry_elsewhere",
    metadata,
    Column("job_id", Uuid, nullable=False),
    Column("node_id", Text, nullable=False),
    Column("until", _TIME, nullable=False),
    PrimaryKeyConstraint("job_id", "node_id", name="pk_retry_elsewhere"),
    Index("ix_retry_elsewhere_until", "until"),
)
