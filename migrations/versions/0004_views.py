"""Phases, priorities and configurations of jobs, exact totals of both; statistics by minute, the rate by second.

Expand, then contract: a migration may add, but removes only what no released code still uses.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import re
from pathlib import Path

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

HERE = Path(__file__).parent


def upgrade() -> None:
    _run(HERE.joinpath("0004_views.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    _run(
        """
        DROP TABLE job_rate, job_statistic;
        LOCK TABLE job IN SHARE ROW EXCLUSIVE MODE;
        TRUNCATE job_count_delta, job_count, job_total;
        ALTER TABLE job_count_delta DROP COLUMN phase, DROP COLUMN percent;
        ALTER TABLE job_count DROP CONSTRAINT pk_job_count, DROP COLUMN phase, DROP COLUMN percent,
            ADD CONSTRAINT pk_job_count PRIMARY KEY (tenant_id, class, state, type);
        ALTER TABLE job_total DROP CONSTRAINT pk_job_total, DROP COLUMN phase, DROP COLUMN percent,
            ADD CONSTRAINT pk_job_total PRIMARY KEY (tenant_id, class, state);
        """
    )
    for function in ("job_changed", "job_count_changed"):
        _run(_as_in("0002_sharing.sql", function))
    for function in ("job_added", "job_removed"):
        _run(_as_in("0001_core.sql", function))
    _run(
        """
        INSERT INTO job_count (tenant_id, class, state, type, n)
            SELECT tenant_id, class, state, type, count(*) FROM job GROUP BY 1, 2, 3, 4;
        ALTER TABLE job_spec DROP COLUMN config;
        ALTER TABLE job DROP COLUMN priority;
        DROP FUNCTION job_phase, job_percent;
        """
    )


def _run(sql: str) -> None:
    op.execute(sql.replace(":", r"\:"))


def _as_in(file: str, function: str) -> str:
    """The statement that makes a function again what an earlier migration made it."""
    text = HERE.joinpath(file).read_text(encoding="utf-8")
    found = re.search(rf"CREATE (OR REPLACE )?FUNCTION {function}\(.*?^END \$\$;", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    return re.sub("^CREATE (OR REPLACE )?FUNCTION", "CREATE OR REPLACE FUNCTION", found[0])
