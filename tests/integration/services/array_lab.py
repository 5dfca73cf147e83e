"""What tests of arrays and dependencies arrange with."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any
from uuid import UUID

from app.domain.array import ArrayAsked
from app.domain.dependency import After, Terms
from app.domain.errors import FabricError
from app.services import arrays, dependencies
from app.services.arrays import ArrayView
from app.services.submit import submit_array
from app.storage.database import Tx
from tests.factories import Fabric, job

OK, ANY, NOT_OK = Terms.AFTEROK, Terms.AFTERANY, Terms.AFTERNOTOK


def after(*parents: UUID, on: Terms = OK) -> tuple[After, ...]:
    """Dependencies on all of these."""
    return tuple(After(parent, on) for parent in parents)


def submit_an_array(
    fabric: Fabric, count: int, max_parallel: int | None = None, tenant: UUID | None = None, **changes: Any
) -> UUID:
    """An array of plain jobs; its id."""
    asked = ArrayAsked(count, max_parallel)
    done = submit_array(fabric.db, fabric.settings, tenant or fabric.tenant, job(**changes), asked)
    assert done.array is not None
    return done.array.id


def with_window(fabric: Fabric, window: int) -> Fabric:
    """The fabric whose arrays are made this far ahead."""
    fabric.settings = replace(fabric.settings, array_window=window)
    return fabric


def tick(fabric: Fabric) -> None:
    """The scheduler has looked at everything there is to look at."""
    dependencies.release(fabric.db, fabric.settings)
    arrays.advance(fabric.db, fabric.settings)
    dependencies.release(fabric.db, fabric.settings)


def look(fabric: Fabric, array_id: UUID) -> ArrayView:
    """The array as its tenant sees it."""
    return arrays.get_array(fabric.db, fabric.tenant, array_id)


def counts(fabric: Fabric, array_id: UUID) -> Counter[str]:
    """The array's counts by word, without zeros."""
    seen = look(fabric, array_id).counts
    words = ("pending", "running", "completed", "failed", "cancelled")
    return +Counter({word: getattr(seen, word) for word in words})


def cancel(fabric: Fabric, array_id: UUID, *ranges: tuple[int, int], running: bool = True) -> arrays.Cancelled:
    """Cancels ranges of an array, or all of it."""

    def work(tx: Tx) -> arrays.Cancelled:
        return arrays.cancel(tx, fabric.settings, fabric.tenant, array_id, ranges or None, "ann", "enough", running)

    with fabric.db.transaction("stop") as tx:
        return work(tx)


def retry(fabric: Fabric, array_id: UUID, *ranges: tuple[int, int]) -> int:
    """Runs the failed indices again; how many."""
    with fabric.db.transaction("retry") as tx:
        return arrays.retry(tx, fabric.settings, fabric.tenant, array_id, ranges or None)[1]


def refusal(work: Any) -> FabricError:
    """What `work` is refused with."""
    try:
        work()
    except FabricError as exc:
        return exc
    raise AssertionError("it was not refused")


def job_at(fabric: Fabric, array_id: UUID, index: int) -> Any:
    """The latest job of an index."""
    return fabric.one(
        "SELECT * FROM job WHERE array_id = %s AND array_index = %s AND replaced_by IS NULL", array_id, index
    )


def open_jobs(fabric: Fabric, array_id: UUID) -> int:
    """How many of the array's jobs may start or run now, and hold its turns."""
    return int(fabric.value("SELECT count(*) FROM job WHERE array_id = %s AND state < 4 AND waits = 0", array_id))


def assert_sound(fabric: Fabric, array_id: UUID) -> None:
    """The array's counts equal its rows, no index is lost or doubled, and no more jobs are open than may be."""
    fabric.assert_in_order()
    row = fabric.one(
        """SELECT a.*, a.pending + d.p AS p, a.active + d.a AS act, a.completed + d.c AS c, a.failed + d.f AS f,
            a.cancelled + d.x AS x FROM job_array a, LATERAL (
            SELECT COALESCE(sum(pending), 0) AS p, COALESCE(sum(active), 0) AS a, COALESCE(sum(completed), 0) AS c,
                COALESCE(sum(failed), 0) AS f, COALESCE(sum(cancelled), 0) AS x FROM array_delta
            WHERE array_id = a.id) d WHERE a.id = %s""",
        array_id,
    )
    real = dict(
        fabric.all(
            """SELECT CASE WHEN state IN (1, 2, 3) THEN 1 ELSE state END, count(*) FROM job
            WHERE array_id = %s AND replaced_by IS NULL GROUP BY 1""",
            array_id,
        )
    )
    assert (row.p, row.act, row.c, row.f, row.x) == tuple(real.get(state, 0) for state in (0, 1, 4, 5, 6))
    assert row.unmade - row.again + row.skipped + sum(real.values()) == row.size
    unmade = fabric.value(
        "SELECT COALESCE(sum(upper(r) - lower(r)), 0) FROM job_array, unnest(todo) r WHERE id = %s", array_id
    )
    assert unmade == row.unmade
    if row.max_parallel is not None:
        assert open_jobs(fabric, array_id) <= row.max_parallel
