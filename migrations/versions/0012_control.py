"""Jobs that somebody holds back, and jobs that are made to run again.

Expand, then contract: a migration may add, but removes only what no released code still uses.

Revision ID: 0012
Revises: 0011
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

HERE = Path(__file__).parent


def upgrade() -> None:
    op.execute(HERE.joinpath("0012_control.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    """Held jobs are released, and what is being stopped to wait again is drained: older code knows neither."""
    op.execute(
        """
        UPDATE job SET stop_cause = 1 WHERE stop_cause = 0;
        UPDATE scheduling_key k SET live = true, low_water = LEAST(k.low_water, h.head)
            FROM (SELECT key_id, min(queue_seq) AS head FROM job WHERE state = 0 AND reason = 'hold' GROUP BY 1) h
            WHERE k.id = h.key_id;
        UPDATE job SET ready = waits = 0 AND (h.was_ready OR h.was_reason IN ('dependency', 'array')),
                reason = CASE WHEN waits = 1 THEN 'dependency' WHEN waits = 2 THEN 'array'
                    WHEN h.was_reason IN ('dependency', 'array') THEN 'new' ELSE h.was_reason END,
                message = h.was_message, not_before = h.was_not_before
            FROM job_hold h WHERE h.job_id = job.id AND job.state = 0 AND job.reason = 'hold';
        DROP TABLE job_hold;
        ALTER TABLE job DROP CONSTRAINT ck_job_stop_cause,
            ADD CONSTRAINT ck_job_stop_cause CHECK (stop_cause BETWEEN 1 AND 4);
        """
    )
