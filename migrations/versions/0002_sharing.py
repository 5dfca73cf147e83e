"""What tenants share: a feed of events that misses none, totals that stay cheap to read.

Expand, then contract: a migration may add, but removes only what no released code still uses.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import re
from pathlib import Path

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

HERE = Path(__file__).parent


def upgrade() -> None:
    _run(HERE.joinpath("0002_sharing.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    # Parts in the reverse order of the upgrade.
    # == Samples ====================================================================================================
    _run("ALTER TABLE attempt DROP COLUMN peak_cpu_cores, DROP COLUMN peak_gpu_memory_bytes")
    # == End of samples =============================================================================================
    # == Events and counts ==========================================================================================
    _run(
        """
        DROP TRIGGER job_count_added ON job_count;
        DROP TRIGGER job_count_changed ON job_count;
        DROP TRIGGER job_count_removed ON job_count;
        DROP FUNCTION job_count_changed;
        DROP TABLE job_total, event_floor;
        DROP INDEX ix_event_place, ix_event_tenant;
        ALTER TABLE event DROP CONSTRAINT ck_event_fresh;
        ALTER TABLE event ALTER COLUMN xid SET DEFAULT pg_current_xact_id();
        """
    )
    _run(_as_in_0001("job_changed"))
    _run("ALTER TABLE event DROP COLUMN was")
    # == End of events and counts ===================================================================================


def _run(sql: str) -> None:
    op.execute(sql.replace(":", r"\:"))


def _as_in_0001(function: str) -> str:
    """The statement that makes a function again what 0001 made it."""
    text = HERE.joinpath("0001_core.sql").read_text(encoding="utf-8")
    found = re.search(rf"CREATE FUNCTION {function}\(.*?^END \$\$;", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[0].replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION", 1)
