"""Nodes are credited with attempts that completed, where every end was counted. What was counted before stays.

Expand, then contract: a migration may add, but removes only what no released code still uses.

Revision ID: 0021
Revises: 0020
"""

from __future__ import annotations

import re
from pathlib import Path

from alembic import op

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

HERE = Path(__file__).parent


def upgrade() -> None:
    _run(HERE.joinpath("0021_completed.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    _run(_as_in("0006_plans.sql", "end_attempts").replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION"))


def _run(sql: str) -> None:
    op.execute(sql.replace(":", r"\:"))


def _as_in(file: str, function: str) -> str:
    """The statement that makes a function again what an earlier migration made it."""
    text = HERE.joinpath(file).read_text(encoding="utf-8")
    found = re.search(rf"CREATE (OR REPLACE )?FUNCTION {function}\(.*?^END \$\$;", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[0]
