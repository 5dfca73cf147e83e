"""A tenant that an agent had to pass over, because its quota was being decided elsewhere, is not left to wait."""

from __future__ import annotations

import pytest

from app.domain.states import JobState
from tests.factories import job, raw, until
from tests.integration.agent.conftest import Site

FAR_S = 3600.0
QUOTA_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('quota:' || %s::uuid, 71))"


@pytest.mark.parametrize("busy", [False, True], ids=["idle node", "node with a job that ends meanwhile"])
def test_it_is_claimed_without_a_bell_or_a_poll(site: Site, database_url: str, busy: bool) -> None:
    """With polls an hour apart only the agent's own second try can find the job."""
    tenant = site.fabric.add_tenant(quota_jobs=5)
    agent = site.agent(poll_s=FAR_S)
    with raw(database_url) as other:
        other.cursor().execute(QUOTA_LOCK, (str(tenant),))
        (waiting,) = site.fabric.submit(job(), tenant=tenant)
        if busy:
            site.fabric.submit(job(environment={"FAKE_DURATION_S": "0.05"}))
        seen = agent._claims.claims_ended
        agent.bell()
        until(lambda: agent._claims.claims_ended > seen + 2)
        assert site.fabric.state(waiting) == JobState.PENDING
    site.until_ended(waiting)
    site.fabric.assert_in_order()
