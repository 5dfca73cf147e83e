"""The schema in SQLAlchemy, table by table; a test holds it together with the migrations.

CHECKs that repeat the state table, triggers and partitions are written in the migrations alone.
"""

from __future__ import annotations

from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Double,
    ForeignKeyConstraint,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Sequence,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.types import UserDefinedType

metadata = MetaData()
Sequence("job_queue_seq", metadata=metadata)


class Xid8(UserDefinedType[int]):
    """PostgreSQL's 64-bit transaction id."""

    cache_ok = True

    def get_col_spec(self, **_options: object) -> str:
        """The type's name in SQL."""
        return "xid8"


_TIME = DateTime(timezone=True)


tenant = Table(
    "tenant",
    metadata,
    Column("id", Uuid, nullable=False),
    Column("name", Text, nullable=False),
    Column("email", Text),
    Column("organization", Text),
    Column("tier", Text, server_default=text("'medium'::text"), nullable=False),
    Column("weight", Double, server_default=text("1"), nullable=False),
    Column("quota_jobs", BigInteger),
    Column("quota_cpus_milli", BigInteger),
    Column("quota_memory_bytes", BigInteger),
    Column("quota_gpus", BigInteger),
    Column("quota_gpu_memory_bytes", BigInteger),
    Column("allow_preemption", Boolean, server_default=text("true"), nullable=False),
    Column("can_preempt_others", Boolean, server_default=text("false"), nullable=False),
    Column("active", Boolean, server_default=text("true"), nullable=False),
    Column("created_at", _TIME, server_default=text("now()"), nullable=False),
    PrimaryKeyConstraint("id", name="pk_tenant"),
    UniqueConstraint("name", name="uq_tenant_name"),
)

image_trust = Table(
    "image_trust",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("policy", Text),
    Column("keys", JSONB, server_default=text("'[]'::jsonb"), nullable=False),
    Column("repositories", ARRAY(Text), server_default=text("'{}'::text[]"), nullable=False),
    Column("credentials", JSONB, server_default=text("'{}'::jsonb"), nullable=False),
    PrimaryKeyConstraint("tenant_id", name="pk_image_trust"),
    ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_image_trust_tenant"),
)

node = Table(
    "node",
    metadata,
    Column("id", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("incarnation", Uuid, nullable=False),
    Column("host", Text, server_default=text("''::text"), nullable=False),
    Column("protocol", Integer, nullable=False),
    Column("state", Text, server_default=text("'ready'::text"), nullable=False),
    Column("capabilities", ARRAY(Text), server_default=text("'{}'::text[]"), nullable=False),
    Column("slots", Integer, nullable=False),
    Column("cpus_milli", BigInteger, nullable=False),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("gpus", JSONB, server_default=text("'[]'::jsonb"), nullable=False),
    Column("ip", Text),
    Column("cluster", Text, server_default=text("'default'::text"), nullable=False),
    Column("labels", JSONB, server_default=text("'{}'::jsonb"), nullable=False),
    Column("version", Text, server_default=text("''::text"), nullable=False),
    Column("registered_at", _TIME, server_default=text("now()"), nullable=False),
    Column("last_seen_at", _TIME, server_default=text("now()"), nullable=False),
    Column("drain_reason", Text),
    Column("drain_by", Text),
    Column("drain_at", _TIME),
    Column("drain_deadline", _TIME),
    Column("operator_labels", JSONB, server_default=text("'{}'::jsonb"), nullable=False),
    Column("gpus_out", JSONB, server_default=text("'{}'::jsonb"), nullable=False),
    Column("gpu_sharing", JSONB, server_default=text("'{}'::jsonb"), nullable=False),
    PrimaryKeyConstraint("id", name="pk_node"),
)

scheduling_key = Table(
    "scheduling_key",
    metadata,
    Column("id", BigInteger, Identity(always=True), nullable=False),
    Column("tenant_id", Uuid, nullable=False),
    Column("class", SmallInteger, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("runner", Text, nullable=False),
    Column("external_ok", Boolean, nullable=False),
    Column("cpus_milli", BigInteger, nullable=False),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("gpus", Integer, nullable=False),
    Column("gpu_memory_bytes", BigInteger, nullable=False),
    Column("gpu_model", Text, nullable=False),
    Column("live", Boolean, server_default=text("true"), nullable=False),
    Column("low_water", BigInteger, server_default=text("0"), nullable=False),
    Column("members", SmallInteger, server_default=text("1"), nullable=False),
    Column("gpu_shared", Boolean, server_default=text("false"), nullable=False),
    PrimaryKeyConstraint("id", name="pk_scheduling_key"),
    ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_scheduling_key_tenant"),
    UniqueConstraint(
        "tenant_id",
        "class",
        "priority",
        "runner",
        "external_ok",
        "cpus_milli",
        "memory_bytes",
        "gpus",
        "gpu_memory_bytes",
        "gpu_model",
        "members",
        "gpu_shared",
        name="uq_scheduling_key_shape",
    ),
    Index(
        "ix_scheduling_key_live",
        "class",
        "tenant_id",
        text("priority DESC"),
        "low_water",
        postgresql_where=text("live"),
    ),
)

job = Table(
    "job",
    metadata,
    Column("id", Uuid, nullable=False),
    Column("tenant_id", Uuid, nullable=False),
    Column("key_id", BigInteger, nullable=False),
    Column("class", SmallInteger, nullable=False),
    Column("contract", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("state", SmallInteger, server_default=text("0"), nullable=False),
    Column("ready", Boolean, server_default=text("true"), nullable=False),
    Column("reason", Text),
    Column("message", Text, server_default=text("''::text"), nullable=False),
    Column("queue_seq", BigInteger, server_default=text("nextval('job_queue_seq'::regclass)"), nullable=False),
    Column("attempt", Integer, server_default=text("0"), nullable=False),
    Column("attempt_id", Uuid),
    Column("node_id", Text),
    Column("stop_cause", SmallInteger),
    Column("stop_by", Text),
    Column("stop_reason", Text),
    Column("not_before", _TIME),
    Column("failures", Integer, server_default=text("0"), nullable=False),
    Column("lost_nodes", ARRAY(Text), server_default=text("'{}'::text[]"), nullable=False),
    Column("exit_code", Integer),
    Column("signal", Integer),
    Column("created_at", _TIME, server_default=text("now()"), nullable=False),
    Column("priority", Integer, server_default=text("500"), nullable=False),
    Column("started_at", _TIME),
    Column("finished_at", _TIME),
    Column("array_id", Uuid),
    Column("array_index", Integer),
    Column("replaced_by", Uuid),
    Column("waits", SmallInteger, server_default=text("0"), nullable=False),
    Column("awaited", Boolean, server_default=text("false"), nullable=False),
    Column("ready_since", _TIME),
    PrimaryKeyConstraint("id", name="pk_job"),
    ForeignKeyConstraint(["key_id"], ["scheduling_key.id"], name="fk_job_key"),
    ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_job_tenant"),
    Index("ix_job_active", "tenant_id", "state", "id", postgresql_where=text("(state = ANY (ARRAY[1, 2, 3]))")),
    Index(
        "ix_job_array",
        "array_id",
        "array_index",
        unique=True,
        postgresql_where=text("((array_id IS NOT NULL) AND (replaced_by IS NULL))"),
    ),
    Index(
        "ix_job_array_open",
        "array_id",
        postgresql_where=text("((array_id IS NOT NULL) AND (state < 4) AND (waits = 0))"),
    ),
    Index(
        "ix_job_array_state",
        "array_id",
        "state",
        "array_index",
        postgresql_where=text("((array_id IS NOT NULL) AND (replaced_by IS NULL))"),
    ),
    Index("ix_job_array_turn", "array_id", "array_index", postgresql_where=text("((state = 0) AND (waits = 2))")),
    Index("ix_job_claim", "key_id", "queue_seq", postgresql_where=text("((state = 0) AND ready)")),
    Index(
        "ix_job_due",
        "not_before",
        postgresql_where=text("((state = 0) AND (NOT ready) AND (not_before IS NOT NULL))"),
    ),
    Index("ix_job_ended", "tenant_id", "state", "id", postgresql_where=text("(state > 3)")),
    Index("ix_job_tenant", "tenant_id", "id"),
)

job_spec = Table(
    "job_spec",
    metadata,
    Column("job_id", Uuid, nullable=False),
    Column("runner", Text, nullable=False),
    Column("binary_url", Text),
    Column("binary_sha256", Text),
    Column("image", Text),
    Column("script", Text),
    Column("command", JSONB, server_default=text("'[]'::jsonb"), nullable=False),
    Column("arguments", JSONB, server_default=text("'[]'::jsonb"), nullable=False),
    Column("environment", JSONB, server_default=text("'{}'::jsonb"), nullable=False),
    Column("hard_limits", Boolean, server_default=text("false"), nullable=False),
    Column("cpus_milli", BigInteger, nullable=False),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("time_limit_s", Double),
    Column("grace_s", Double, nullable=False),
    Column("max_retries", Integer, server_default=text("0"), nullable=False),
    Column("backoff_s", Double, server_default=text("1"), nullable=False),
    Column("backoff_multiplier", Double, server_default=text("2"), nullable=False),
    Column("asked", JSONB, server_default=text("'{}'::jsonb"), nullable=False),
    Column("config", JSONB),
    Column("members", SmallInteger, server_default=text("1"), nullable=False),
    Column("preemptible", Boolean),
    PrimaryKeyConstraint("job_id", name="pk_job_spec"),
    ForeignKeyConstraint(["job_id"], ["job.id"], name="fk_job_spec_job", ondelete="CASCADE"),
)

job_hold = Table(
    "job_hold",
    metadata,
    Column("job_id", Uuid, nullable=False),
    Column("held_by", Text, nullable=False),
    Column("operator", Boolean, nullable=False),
    Column("reason", Text, server_default=text("''::text"), nullable=False),
    Column("since", _TIME, server_default=text("clock_timestamp()"), nullable=False),
    Column("was_reason", Text, server_default=text("'new'::text"), nullable=False),
    Column("was_message", Text, server_default=text("''::text"), nullable=False),
    Column("was_ready", Boolean, server_default=text("true"), nullable=False),
    Column("was_not_before", _TIME),
    PrimaryKeyConstraint("job_id", name="pk_job_hold"),
    ForeignKeyConstraint(["job_id"], ["job.id"], name="fk_job_hold_job", ondelete="CASCADE"),
)

attempt = Table(
    "attempt",
    metadata,
    Column("id", Uuid, nullable=False),
    Column("job_id", Uuid, nullable=False),
    Column("number", Integer, nullable=False),
    Column("node_id", Text, nullable=False),
    Column("node_ip", Text),
    Column("token", Uuid, nullable=False),
    Column("log_day", Date, nullable=False),
    Column("gpu_uuids", ARRAY(Text), server_default=text("'{}'::text[]"), nullable=False),
    Column("claimed_at", _TIME, server_default=text("now()"), nullable=False),
    Column("started_at", _TIME),
    Column("ended_at", _TIME),
    Column("outcome", Text),
    Column("exit_code", Integer),
    Column("signal", Integer),
    Column("oom", Boolean, server_default=text("false"), nullable=False),
    Column("limit_hit", Text),
    Column("reason", Text),
    Column("stopped_by", Text),
    Column("peak_memory_bytes", BigInteger),
    Column("cpu_seconds", Double),
    Column("output_bytes", BigInteger, server_default=text("0"), nullable=False),
    Column("truncated_bytes", BigInteger, server_default=text("0"), nullable=False),
    Column("log_gap", Boolean, server_default=text("false"), nullable=False),
    Column("peak_cpu_cores", Double),
    Column("peak_gpu_memory_bytes", BigInteger),
    Column("image_digest", Text),
    Column("member", SmallInteger, server_default=text("0"), nullable=False),
    Column("leader_id", Uuid),
    Column("prepared_at", _TIME),
    Column("address", Text),
    Column("port", Integer),
    Column("checkpoint_at", _TIME),
    Column("broken", Text),
    PrimaryKeyConstraint("id", name="pk_attempt"),
    ForeignKeyConstraint(["job_id"], ["job.id"], name="fk_attempt_job", ondelete="CASCADE"),
    UniqueConstraint("job_id", "number", "member", name="uq_attempt_number"),
    Index("ix_attempt_leader", "leader_id", postgresql_where=text("(leader_id IS NOT NULL)")),
    Index("ix_attempt_node", "node_id", "job_id"),
)

allocation = Table(
    "allocation",
    metadata,
    Column("attempt_id", Uuid, nullable=False),
    Column("member", SmallInteger, server_default=text("0"), nullable=False),
    Column("tenant_id", Uuid, nullable=False),
    Column("node_id", Text, nullable=False),
    Column("cpus_milli", BigInteger, nullable=False),
    Column("memory_bytes", BigInteger, nullable=False),
    Column("gpus", Integer, nullable=False),
    Column("gpu_memory_bytes", BigInteger, nullable=False),
    Column("gpu_uuids", ARRAY(Text), server_default=text("'{}'::text[]"), nullable=False),
    Column("token", Uuid, nullable=False),
    PrimaryKeyConstraint("attempt_id", "member", name="pk_allocation"),
    ForeignKeyConstraint(["attempt_id"], ["attempt.id"], name="fk_allocation_attempt", ondelete="CASCADE"),
    Index("ix_allocation_node", "node_id"),
)

gpu_hold = Table(
    "gpu_hold",
    metadata,
    Column("gpu_uuid", Text, nullable=False),
    Column("node_id", Text, nullable=False),
    Column("attempt_id", Uuid, nullable=False),
    Column("member", SmallInteger, server_default=text("0"), nullable=False),
    Column("memory_bytes", BigInteger),
    Column("gpu_bytes", BigInteger),
    PrimaryKeyConstraint("gpu_uuid", "attempt_id", "member", name="pk_gpu_hold"),
    ForeignKeyConstraint(
        ["attempt_id", "member"],
        ["allocation.attempt_id", "allocation.member"],
        name="fk_gpu_hold_allocation",
        ondelete="CASCADE",
    ),
    Index("ix_gpu_hold_allocation", "attempt_id", "member"),
    Index("ix_gpu_hold_node", "node_id"),
    Index("uq_gpu_hold_exclusive", "gpu_uuid", unique=True, postgresql_where=text("(memory_bytes IS NULL)")),
)

lease = Table(
    "lease",
    metadata,
    Column("attempt_id", Uuid, nullable=False),
    Column("member", SmallInteger, server_default=text("0"), nullable=False),
    Column("node_id", Text, nullable=False),
    Column("token", Uuid, nullable=False),
    Column("expires_at", _TIME, nullable=False),
    Column("delivered", Boolean, server_default=text("true"), nullable=False),
    PrimaryKeyConstraint("attempt_id", "member", name="pk_lease"),
    ForeignKeyConstraint(
        ["attempt_id", "member"],
        ["allocation.attempt_id", "allocation.member"],
        name="fk_lease_allocation",
        ondelete="CASCADE",
    ),
    Index("ix_lease_node", "node_id"),
    Index("ix_lease_undelivered", "node_id", postgresql_where=text("(NOT delivered)")),
)

usage = Table(
    "usage",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("node_id", Text, nullable=False),
    Column("jobs", BigInteger, server_default=text("0"), nullable=False),
    Column("cpus_milli", BigInteger, server_default=text("0"), nullable=False),
    Column("memory_bytes", BigInteger, server_default=text("0"), nullable=False),
    Column("gpus", BigInteger, server_default=text("0"), nullable=False),
    Column("gpu_memory_bytes", BigInteger, server_default=text("0"), nullable=False),
    Column("completed", BigInteger, server_default=text("0"), nullable=False),
    PrimaryKeyConstraint("tenant_id", "node_id", name="pk_usage"),
    Index("ix_usage_node", "node_id"),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("tenant_id", Uuid, nullable=False),
    Column("method", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("body_sha256", LargeBinary, nullable=False),
    Column("status", Integer, nullable=False),
    Column("answer", JSONB, nullable=False),
    Column("created_at", _TIME, server_default=text("now()"), nullable=False),
    PrimaryKeyConstraint("tenant_id", "method", "path", "key", name="pk_idempotency"),
    Index("ix_idempotency_created", "created_at"),
)

task_run = Table(
    "task_run",
    metadata,
    Column("name", Text, nullable=False),
    Column("last_run_at", _TIME, nullable=False),
    Column("duration_s", Double, nullable=False),
    Column("detail", JSONB, server_default=text("'{}'::jsonb"), nullable=False),
    PrimaryKeyConstraint("name", name="pk_task_run"),
)

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
