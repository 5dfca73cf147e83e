"""Submitting as a function that keeps its plan.

Expand, then contract: a migration may add, but removes only what no released code still uses.

Revision ID: 0015
Revises: 0014
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

HERE = Path(__file__).parent


def upgrade() -> None:
    op.execute(HERE.joinpath("0015_insert_jobs.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    op.execute("DROP FUNCTION insert_jobs")
