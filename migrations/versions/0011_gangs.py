"""Gangs: members start and end by themselves; jobs that waited for that can be placed.

Expand, then contract: a migration may add, but removes only what no released code still uses.

Revision ID: 0011
Revises: 0010
"""

from __future__ import annotations

import re
from pathlib import Path

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

HERE = Path(__file__).parent


def upgrade() -> None:
    _run(HERE.joinpath("0011_gangs.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    """Jobs that wait as gangs wait under the runner that no node has, as they did before."""
    _run(
        """
        DROP FUNCTION start_attempts, lock_ends;
        UPDATE job_spec SET runner = 'gang', members = 1 WHERE members > 1 AND asked ? 'gang' AND EXISTS (
            SELECT 1 FROM job WHERE job.id = job_id AND state = 0);
        UPDATE scheduling_key SET runner = 'gang' WHERE members > 1;
        """
    )
    for function in ("start_attempts", "lock_ends"):
        _run(_as_in("0006_plans.sql", function))


def _run(sql: str) -> None:
    op.execute(sql.replace(":", r"\:"))


def _as_in(file: str, function: str) -> str:
    """The statement that makes a function again what an earlier migration made it."""
    text = HERE.joinpath(file).read_text(encoding="utf-8")
    found = re.search(rf"CREATE (OR REPLACE )?FUNCTION {function}\(.*?^END \$\$;", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[0]
