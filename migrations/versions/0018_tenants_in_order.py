"""Claims look at tenants in a given order: how they stand in a class, and their keys one tenant after another.

Expand, then contract: a migration may add, but removes only what no released code still uses.

Revision ID: 0018
Revises: 0017
"""

from __future__ import annotations

import re
from pathlib import Path

from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

HERE = Path(__file__).parent


def upgrade() -> None:
    _run(HERE.joinpath("0018_tenants_in_order.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    _run("DROP FUNCTION claimable_keys, waiting_tenants")
    _run(_as_in("0016_retry_elsewhere.sql", "claimable_keys"))


def _run(sql: str) -> None:
    op.execute(sql.replace(":", r"\:"))


def _as_in(file: str, function: str) -> str:
    """The statement that makes a function again what an earlier migration made it."""
    text = HERE.joinpath(file).read_text(encoding="utf-8")
    found = re.search(rf"CREATE (OR REPLACE )?FUNCTION {function}\(.*?^END \$\$;", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[0]
