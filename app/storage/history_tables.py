"""The tables of what has happened, in SQLAlchemy: counts, output, samples, events, statistics.

A test holds them together with the migrations, which alone write the partitions, and the triggers that fill them.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Double,
    Identity,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    Uuid,
    text,
)
from sqlalchemy.types import UserDefinedType

from app.storage.tables import metadata


class Xid8(UserDefinedType[int]):
    """PostgreSQL's 64-bit transaction id."""

    cache_ok = True

    def get_col_spec(self, **_options: object) -> str:
        """The type's name in SQL."""
        return "xid8"


_TIME = DateTime(timezone=True)

job_count = Table(
    "job_count",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("class", SmallInteger, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("type", Text, nullable=False),
    Column("n", BigInteger, nullable=False),
    Column("phase", SmallInteger, nullable=False),
    Column("percent", SmallInteger, nullable=False),
    PrimaryKeyConstraint("tenant_id", "class", "state", "type", "phase", "percent", name="pk_job_count"),
)

job_total = Table(
    "job_total",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("class", SmallInteger, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("n", BigInteger, nullable=False),
    Column("phase", SmallInteger, nullable=False),
    Column("percent", SmallInteger, nullable=False),
    PrimaryKeyConstraint("tenant_id", "class", "state", "phase", "percent", name="pk_job_total"),
)

job_count_delta = Table(
    "job_count_delta",
    metadata,
    Column("id", BigInteger, Identity(always=True), nullable=False),
    Column("tenant_id", Uuid, nullable=False),
    Column("class", SmallInteger, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("type", Text, nullable=False),
    Column("n", BigInteger, nullable=False),
    Column("phase", SmallInteger, nullable=False),
    Column("percent", SmallInteger, nullable=False),
    PrimaryKeyConstraint("id", name="pk_job_count_delta"),
)

log_chunk = Table(
    "log_chunk",
    metadata,
    Column("log_day", Date, nullable=False),
    Column("attempt_id", Uuid, nullable=False),
    Column("member", SmallInteger, server_default=text("0"), nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("length", Integer, nullable=False),
    Column("codec", SmallInteger, nullable=False),
    Column("at", _TIME, server_default=text("now()"), nullable=False),
    Column("data", LargeBinary, nullable=False),
    PrimaryKeyConstraint("log_day", "attempt_id", "member", "position", name="pk_log_chunk"),
    postgresql_partition_by="RANGE (log_day)",
)

sample = Table(
    "sample",
    metadata,
    Column("day", Date, nullable=False),
    Column("attempt_id", Uuid, nullable=False),
    Column("member", SmallInteger, server_default=text("0"), nullable=False),
    Column("at", _TIME, nullable=False),
    Column("cpu_cores", Double),
    Column("memory_bytes", BigInteger),
    Column("gpu_percent", Double),
    Column("gpu_memory_bytes", BigInteger),
    PrimaryKeyConstraint("day", "attempt_id", "member", "at", name="pk_sample"),
    postgresql_partition_by="RANGE (day)",
)

event = Table(
    "event",
    metadata,
    Column("id", BigInteger, Identity(always=True), nullable=False),
    Column("day", Date, server_default=text("CURRENT_DATE"), nullable=False),
    # The default is an expression that the migration explains.
    Column("xid", Xid8, nullable=False),
    Column("at", _TIME, server_default=text("clock_timestamp()"), nullable=False),
    Column("tenant_id", Uuid, nullable=False),
    Column("job_id", Uuid, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("state", SmallInteger, nullable=False),
    Column("ready", Boolean, nullable=False),
    Column("reason", Text),
    Column("stop_cause", SmallInteger),
    Column("node_id", Text),
    Column("was", SmallInteger),
    PrimaryKeyConstraint("day", "id", name="pk_event"),
    Index("ix_event_job", "job_id", "id"),
    Index("ix_event_place", "xid", "id"),
    Index("ix_event_tenant", "tenant_id", "xid", "id"),
    postgresql_partition_by="RANGE (day)",
)

event_floor = Table(
    "event_floor",
    metadata,
    Column("id", SmallInteger, server_default=text("1"), nullable=False),
    Column("xid", Xid8, nullable=False),
    Column("event_id", BigInteger, nullable=False),
    PrimaryKeyConstraint("id", name="pk_event_floor"),
)

job_statistic = Table(
    "job_statistic",
    metadata,
    Column("minute", _TIME, nullable=False),
    Column("class", SmallInteger, nullable=False),
    Column("kind", SmallInteger, nullable=False),
    Column("bucket", SmallInteger, nullable=False),
    Column("n", BigInteger, nullable=False),
    Column("total_s", Double, nullable=False),
    PrimaryKeyConstraint("minute", "class", "kind", "bucket", name="pk_job_statistic"),
)

job_rate = Table(
    "job_rate",
    metadata,
    Column("second", _TIME, nullable=False),
    Column("n", BigInteger, nullable=False),
    PrimaryKeyConstraint("second", name="pk_job_rate"),
)
