"""The planner's lock is held for as long as a cycle takes, and no longer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import event

from app.storage.database import Database
from scheduler import plan as planner
from tests.factories import Fabric, make_fabric, until

IDLE = """SELECT COALESCE(max(extract(epoch FROM clock_timestamp() - state_change)), 'infinity')::float
FROM pg_stat_activity WHERE application_name = 'planner' AND state = 'idle in transaction'"""


def _impatient(url: str) -> Database:
    """A database that ends whoever waits in a transaction for half a second."""
    db = Database(url, pool_size=1, application_name="planner")

    def connected(connection: Any, _record: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET idle_in_transaction_session_timeout = 500")
        connection.commit()

    event.listen(db.engine, "connect", connected)
    return db


@pytest.fixture
def fabric(database_url: str) -> Iterator[Fabric]:
    """The services on the database."""
    fabric = make_fabric(database_url)
    yield fabric
    fabric.db.close()


def test_a_cycle_may_take_longer_than_transactions_may_wait(
    database_url: str, fabric: Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    cycle = planner.cycle

    def slow(_db: Database, *rest: Any) -> None:
        cycle(fabric.db, *rest)
        # Until the transaction with the lock has waited for longer, or is no more.
        until(lambda: fabric.value(IDLE) > 1.0, 30)

    monkeypatch.setattr(planner, "cycle", slow)
    db = _impatient(database_url)
    try:
        assert planner.run_plan(db, fabric.settings).ran
        with db.transaction() as tx:
            assert tx.value("SHOW idle_in_transaction_session_timeout") == "500ms"
    finally:
        db.close()
    detail = fabric.value("SELECT detail FROM task_run WHERE name = 'plan'")
    assert "took_s" in detail and detail["totals"]["cycles"] == 1
