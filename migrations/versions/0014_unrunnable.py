"""Which waiting jobs no registered node could ever run.

Expand, then contract: a migration may add, but removes only what no released code still uses.

Revision ID: 0014
Revises: 0013
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

HERE = Path(__file__).parent


def upgrade() -> None:
    op.execute(HERE.joinpath("0014_unrunnable.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    op.execute("DROP TABLE unrunnable_key")
