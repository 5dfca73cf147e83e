"""Jobs that run elsewhere and are only observed: their states, samples and counts; jobs hidden from that view.

Expand, then contract: a migration may add, but removes only what no released code still uses.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

SQL = Path(__file__).with_name("0003_tracked.sql")


def upgrade() -> None:
    op.execute(SQL.read_text(encoding="utf-8").replace(":", r"\:"))


def downgrade() -> None:
    op.execute(
        """
        DROP TRIGGER job_gone ON job;
        DROP INDEX ix_attempt_node;
        DROP TABLE tracked_sample, tracked_job, observed_hidden, observed_count, observed_count_delta;
        DROP FUNCTION job_gone, tracked_counted, hidden_counted;
        """
    )
