"""The statements of claims and reports as functions, which keep their plans.

Expand, then contract: a migration may add, but removes only what no released code still uses.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

HERE = Path(__file__).parent


def upgrade() -> None:
    _run(HERE.joinpath("0006_plans.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    _run(
        """
        DROP FUNCTION lock_node, claimable_keys, take_jobs, hold_jobs, start_attempts, lock_ends, end_attempts,
            renew_leases;
        ALTER FUNCTION job_changed() RESET enable_hashjoin;
        """
    )


def _run(sql: str) -> None:
    op.execute(sql.replace(":", r"\:"))
