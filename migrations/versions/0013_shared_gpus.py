"""Slices of GPUs: who holds how much of each, what operators say about sharing, and how long the oldest job waits.

Expand, then contract: a migration may add, but removes only what no released code still uses.

Revision ID: 0013
Revises: 0012
"""

from __future__ import annotations

import re
from pathlib import Path

from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

HERE = Path(__file__).parent


def upgrade() -> None:
    _run(HERE.joinpath("0013_shared_gpus.sql").read_text(encoding="utf-8"))


def downgrade() -> None:
    """Older code would take a slice for a whole GPU: no job that asks for one may wait or run."""
    _run(
        """
        DO $$ BEGIN
            IF EXISTS (SELECT 1 FROM job j JOIN scheduling_key k ON k.id = j.key_id WHERE j.state < 4 AND k.gpu_shared)
            THEN
                RAISE EXCEPTION 'jobs that share GPUs have not ended; cancel them before the downgrade';
            END IF;
        END $$;
        DROP TRIGGER gpu_hold_added ON gpu_hold;
        DROP FUNCTION lock_node, claimable_keys, gpu_hold_added;
        DROP INDEX uq_gpu_hold_exclusive;
        ALTER TABLE gpu_hold DROP CONSTRAINT ck_gpu_hold_slice, DROP COLUMN memory_bytes, DROP COLUMN gpu_bytes,
            DROP CONSTRAINT pk_gpu_hold, ADD CONSTRAINT pk_gpu_hold PRIMARY KEY (gpu_uuid);
        ALTER TABLE node DROP COLUMN gpu_sharing;
        UPDATE scheduling_key SET live = false, priority = -id WHERE gpu_shared;
        ALTER TABLE scheduling_key DROP CONSTRAINT uq_scheduling_key_shape, DROP CONSTRAINT ck_scheduling_key_slice,
            DROP COLUMN gpu_shared,
            ADD CONSTRAINT uq_scheduling_key_shape UNIQUE (tenant_id, class, priority, runner, external_ok, cpus_milli,
                memory_bytes, gpus, gpu_memory_bytes, gpu_model, members);
        """
    )
    for function in ("lock_node", "claimable_keys"):
        _run(_as_in("0008_planning.sql", function))


def _run(sql: str) -> None:
    op.execute(sql.replace(":", r"\:"))


def _as_in(file: str, function: str) -> str:
    """The statement that makes a function again what an earlier migration made it."""
    text = HERE.joinpath(file).read_text(encoding="utf-8")
    found = re.search(rf"CREATE (OR REPLACE )?FUNCTION {function}\(.*?^END \$\$;", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[0]
