"""What the planner needs: members, placed and reserved capacity, notes, tenants' use of before.

Expand, then contract: a migration may add, but removes only what no released code still uses.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

import re
from pathlib import Path

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

HERE = Path(__file__).parent


def upgrade() -> None:
    _run(HERE.joinpath("0008_planning.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    """Jobs of several members mean nothing to older code: there must be none that has not ended."""
    _run(
        """
        DO $$ BEGIN
            IF EXISTS (SELECT 1 FROM job j JOIN job_spec s ON s.job_id = j.id WHERE j.state < 4 AND s.members > 1) THEN
                RAISE EXCEPTION 'jobs of several members have not ended; cancel them before the downgrade';
            END IF;
        END $$;
        DROP FUNCTION lock_node, reservations_on, claimable_keys, take_jobs;
        DROP TABLE tenant_share, plan_note, reservation;
        UPDATE lease SET expires_at = now() WHERE NOT delivered;
        ALTER TABLE lease DROP COLUMN delivered;
        UPDATE scheduling_key SET live = false, priority = -id WHERE members > 1;
        ALTER TABLE scheduling_key DROP CONSTRAINT uq_scheduling_key_shape, DROP COLUMN members,
            ADD CONSTRAINT uq_scheduling_key_shape UNIQUE (tenant_id, class, priority, runner, external_ok, cpus_milli,
                memory_bytes, gpus, gpu_memory_bytes, gpu_model);
        ALTER TABLE job_spec DROP COLUMN members, DROP COLUMN preemptible;
        DELETE FROM attempt WHERE member > 0;
        ALTER TABLE attempt DROP CONSTRAINT ck_attempt_member, DROP CONSTRAINT uq_attempt_number,
            DROP COLUMN member, DROP COLUMN leader_id, DROP COLUMN prepared_at, DROP COLUMN address, DROP COLUMN port,
            DROP COLUMN checkpoint_at, DROP COLUMN broken,
            ADD CONSTRAINT uq_attempt_number UNIQUE (job_id, number);
        """
    )
    for function in ("lock_node", "claimable_keys", "take_jobs"):
        _run(_as_in("0006_plans.sql", function))


def _run(sql: str) -> None:
    op.execute(sql.replace(":", r"\:"))


def _as_in(file: str, function: str) -> str:
    """The statement that makes a function again what an earlier migration made it."""
    text = HERE.joinpath(file).read_text(encoding="utf-8")
    found = re.search(rf"CREATE (OR REPLACE )?FUNCTION {function}\(.*?^END \$\$;", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[0]
