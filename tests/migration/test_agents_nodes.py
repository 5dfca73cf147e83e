"""What an agent does about drains and GPUs works under its restricted login."""

from __future__ import annotations

from dataclasses import replace

from app.domain.states import JobState
from app.services import operate
from app.services.nodes import Held, renew
from app.storage.database import Database
from tests.factories import gpu, make_fabric
from tests.servers import TestServers


def test_an_agent_tells_of_its_gpus_and_ends_its_drain(database_url: str, servers: TestServers) -> None:
    owner = make_fabric(database_url)
    agent = replace(owner, db=Database(servers.agent_url(database_url), pool_size=2))
    node = agent.add_node(gpus=[gpu(0)])
    owner.submit_one()
    taken = agent.run(node)
    operate.drain(owner.db, node.id, "", "ops", 60)
    owner.sql("UPDATE node SET drain_deadline = now()")
    held = [Held(taken.attempt_id, taken.token)]
    lost = {**vars(gpu(0)), "healthy": False, "reason": "lost"}
    told = renew(agent.db, node.id, node.incarnation, held, 60, [lost])
    assert told.drain is not None and told.drain.over
    assert operate.stop_overdue(agent.db, node.id)
    assert owner.state(taken.job_id) == JobState.STOPPING
    assert operate.get_node(owner.db, node.id).gpus[0].reason == "lost"
    agent.db.close()
    owner.db.close()
