"""What forgotten arrays had left behind goes with the upgrade, and nothing else."""

from __future__ import annotations

from app.storage.migrate import downgrade, upgrade
from tests.factories import job, make_fabric
from tests.integration.services.array_lab import after, submit_an_array


def test_dependencies_of_forgotten_arrays_go_with_the_upgrade(database_url: str) -> None:
    fabric = make_fabric(database_url)
    parent = fabric.submit_one()
    (child,) = fabric.submit(job(after=after(parent)))
    kept, old = [submit_an_array(fabric, 1, after=after(parent)) for _ in range(2)]
    downgrade(database_url, "0019")
    fabric.sql("DELETE FROM job_array WHERE id = %s", old)
    assert fabric.value("SELECT count(*) FROM job_dependency") == 3
    upgrade(database_url)
    assert {row.child_id for row in fabric.all("SELECT child_id FROM job_dependency")} == {child, kept}
    fabric.db.close()
