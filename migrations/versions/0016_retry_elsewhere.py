"""Retries go to other nodes first: which jobs are not for which nodes, and until when.

Expand, then contract: a migration may add, but removes only what no released code still uses.

Revision ID: 0016
Revises: 0015
"""

from __future__ import annotations

import re
from pathlib import Path

from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

HERE = Path(__file__).parent


def upgrade() -> None:
    _run(HERE.joinpath("0016_retry_elsewhere.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    _run("DROP FUNCTION claimable_keys, take_jobs")
    for file, function in (("0013_shared_gpus.sql", "claimable_keys"), ("0008_planning.sql", "take_jobs")):
        _run(_as_in(file, function))
    _run("DROP TABLE retry_elsewhere")


def _run(sql: str) -> None:
    op.execute(sql.replace(":", r"\:"))


def _as_in(file: str, function: str) -> str:
    """The statement that makes a function again what an earlier migration made it."""
    text = HERE.joinpath(file).read_text(encoding="utf-8")
    found = re.search(rf"CREATE (OR REPLACE )?FUNCTION {function}\(.*?^END \$\$;", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[0]
