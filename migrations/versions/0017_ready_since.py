"""Since when jobs could have started that had to wait for something of their own first.

Expand, then contract: a migration may add, but removes only what no released code still uses.

Revision ID: 0017
Revises: 0016
"""

from __future__ import annotations

import re
from pathlib import Path

from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

HERE = Path(__file__).parent


def upgrade() -> None:
    _run(HERE.joinpath("0017_ready_since.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    _run("DROP FUNCTION give_turns")
    _run(_as_in("0010_arrays.sql", "give_turns"))
    _run("ALTER TABLE job DROP COLUMN ready_since")


def _run(sql: str) -> None:
    op.execute(sql.replace(":", r"\:"))


def _as_in(file: str, function: str) -> str:
    """The statement that makes a function again what an earlier migration made it."""
    text = HERE.joinpath(file).read_text(encoding="utf-8")
    found = re.search(rf"CREATE (OR REPLACE )?FUNCTION {function}\(.*?^END \$\$;", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[0]
