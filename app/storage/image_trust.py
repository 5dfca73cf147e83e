"""What each tenant's images must be: one row a tenant, none where nothing was ever set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from app.storage.database import Row, Tx


def of_tenant(tx: Tx, tenant_id: UUID) -> Row | None:
    """The tenant's name with its row (policy, keys, repositories, credentials); None for an unknown tenant."""
    return tx.row(
        """SELECT t.name, i.policy, i.keys, i.repositories, i.credentials
        FROM tenant t LEFT JOIN image_trust i ON i.tenant_id = t.id WHERE t.id = %(tenant_id)s""",
        {"tenant_id": tenant_id},
    )


def lock(tx: Tx, tenant_id: UUID) -> bool:
    """Makes sure that the tenant has a row and holds it until this transaction ends; False for an unknown tenant."""
    made = tx.row(
        """INSERT INTO image_trust (tenant_id) SELECT id FROM tenant WHERE id = %(tenant_id)s
        ON CONFLICT (tenant_id) DO UPDATE SET tenant_id = EXCLUDED.tenant_id RETURNING tenant_id""",
        {"tenant_id": tenant_id},
    )
    return made is not None


def write(
    tx: Tx,
    tenant_id: UUID,
    policy: str | None,
    keys: Sequence[Mapping[str, Any]],
    repositories: Sequence[str],
    credentials: Mapping[str, str],
) -> None:
    """Writes all of a row that `lock` holds."""
    tx.run(
        """UPDATE image_trust SET policy = %(policy)s, keys = %(keys)s::jsonb,
            repositories = %(repositories)s::text[], credentials = %(credentials)s::jsonb
        WHERE tenant_id = %(tenant_id)s""",
        {
            "tenant_id": tenant_id,
            "policy": policy,
            "keys": json.dumps(list(keys)),
            "repositories": list(repositories),
            "credentials": json.dumps(dict(credentials)),
        },
    )
