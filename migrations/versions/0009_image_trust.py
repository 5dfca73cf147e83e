"""What each tenant's images must be: policy, trusted keys, places, names of registry credentials.

Expand, then contract: a migration may add, but removes only what no released code still uses.

Revision ID: 0009
Revises: 0008
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

HERE = Path(__file__).parent


def upgrade() -> None:
    op.execute(HERE.joinpath("0009_image_trust.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    op.execute("DROP TABLE image_trust")
