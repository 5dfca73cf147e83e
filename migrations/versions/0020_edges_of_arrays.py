"""What arrays depended on that are forgotten is forgotten with them.

Expand, then contract: a migration may add, but removes only what no released code still uses.

Revision ID: 0020
Revises: 0019
"""

from __future__ import annotations

from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """DELETE FROM job_dependency d WHERE child_is_array
            AND NOT EXISTS (SELECT 1 FROM job_array a WHERE a.id = d.child_id)"""
    )


def downgrade() -> None:
    """Nothing that anybody looks for was removed."""
