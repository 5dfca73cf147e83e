"""The core: tenants, keys, jobs, attempts, allocations, leases, usage, logs, samples, events.

Expand, then contract: a migration may add, but removes only what no released code still uses.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SQL = Path(__file__).with_name("0001_core.sql")


def upgrade() -> None:
    op.execute(SQL.read_text(encoding="utf-8").replace(":", r"\:"))


def downgrade() -> None:
    op.execute(
        """
        DROP TABLE IF EXISTS event, sample, log_chunk, idempotency, job_count_delta, job_count, task_run, gpu_hold,
            lease, allocation, usage, attempt, job_spec, job, scheduling_key, node, tenant CASCADE;
        DROP SEQUENCE IF EXISTS job_queue_seq;
        DROP FUNCTION IF EXISTS job_added, job_changed, job_removed, job_may_follow, make_day_partitions CASCADE;
        """
    )
