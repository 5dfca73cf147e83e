"""${message}

Expand, then contract: a migration may add, but removes only what no released code still uses.

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}
"""

from __future__ import annotations

from alembic import op

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = None
depends_on = None


def upgrade() -> None:
    ${upgrades if upgrades else "raise RuntimeError('say what changes')"}


def downgrade() -> None:
    ${downgrades if downgrades else "raise RuntimeError('say how to go back')"}
