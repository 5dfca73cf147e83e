"""Arrays of jobs, and jobs that depend on others.

Expand, then contract: a migration may add, but removes only what no released code still uses.

Revision ID: 0010
Revises: 0009
"""

from __future__ import annotations

import re
from pathlib import Path

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

HERE = Path(__file__).parent


def upgrade() -> None:
    _run(HERE.joinpath("0010_arrays.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    """Older code starts nothing that waits for a turn or for another job: nothing of the kind may be left."""
    _run(
        """
        DO $$ BEGIN
            IF EXISTS (SELECT 1 FROM job_array WHERE finished_at IS NULL) THEN
                RAISE EXCEPTION 'arrays have not ended; cancel them before the downgrade';
            END IF;
            IF EXISTS (SELECT 1 FROM job WHERE state = 0 AND waits > 0) THEN
                RAISE EXCEPTION 'jobs wait for others; cancel them before the downgrade';
            END IF;
        END $$;
        """
    )
    _run(_as_in("0004_views.sql", "job_changed"))
    _run("ALTER FUNCTION job_changed() SET enable_hashjoin = on")
    _run(_as_in("0004_views.sql", "job_removed"))
    _run(
        """
        DROP FUNCTION give_turns;
        DROP TABLE ended_parent, job_dependency, array_delta, job_array;
        ALTER TABLE job DROP COLUMN array_id, DROP COLUMN array_index, DROP COLUMN replaced_by, DROP COLUMN waits,
            DROP COLUMN awaited;
        """
    )


def _run(sql: str) -> None:
    op.execute(sql.replace(":", r"\:"))


def _as_in(file: str, function: str) -> str:
    """The statement that makes a function again what an earlier migration made it."""
    text = HERE.joinpath(file).read_text(encoding="utf-8")
    found = re.search(rf"CREATE (OR REPLACE )?FUNCTION {function}\(.*?^END \$\$;", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[0]
