"""Quotas are kept for jobs that waited too long: what claims of the same tenant leave alone.

Expand, then contract: a migration may add, but removes only what no released code still uses.

Revision ID: 0019
Revises: 0018
"""

from __future__ import annotations

import re
from pathlib import Path

from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

HERE = Path(__file__).parent


def upgrade() -> None:
    _run(HERE.joinpath("0019_quota_holds.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    _run("DROP FUNCTION claimable_keys")
    _run(_as_in("0018_tenants_in_order.sql", "claimable_keys"))
    _run("DROP TABLE quota_hold")


def _run(sql: str) -> None:
    op.execute(sql.replace(":", r"\:"))


def _as_in(file: str, function: str) -> str:
    """The statement that makes a function again what an earlier migration made it."""
    text = HERE.joinpath(file).read_text(encoding="utf-8")
    found = re.search(rf"CREATE (OR REPLACE )?FUNCTION {function}\(.*?^END \$\$;", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[0]
