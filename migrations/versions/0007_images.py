"""The digest of the image that an attempt ran.

Expand, then contract: a migration may add, but removes only what no released code still uses.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

from pathlib import Path

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

HERE = Path(__file__).parent


def upgrade() -> None:
    op.execute(HERE.joinpath("0007_images.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    op.execute("ALTER TABLE attempt DROP COLUMN image_digest")
