"""Drains that operators order, their labels of nodes, and the GPUs they took out.

Expand, then contract: a migration may add, but removes only what no released code still uses.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(Path(__file__).with_name("0005_nodes.sql").read_text(encoding="utf-8").replace(":", r"\:"))


def downgrade() -> None:
    op.execute(
        """ALTER TABLE node DROP COLUMN drain_reason, DROP COLUMN drain_by, DROP COLUMN drain_at,
        DROP COLUMN drain_deadline, DROP COLUMN operator_labels, DROP COLUMN gpus_out"""
    )
