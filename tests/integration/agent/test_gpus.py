"""An agent with simulated GPUs: one that errs is given to nobody while the host works on, and comes back when well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from app.domain.explain import Code
from app.domain.states import JobState
from app.services import operate
from app.services.explain import explain
from tests.factories import gpu, job, share, until
from tests.integration.agent.conftest import Site

ENDLESS = {"FAKE_DURATION_S": "forever"}


def gpu_agent(site: Site, gpus: str = "2xA100-80GB", **settings: Any) -> Path:
    """An agent that looks at its GPUs all the time; the file that makes them err."""
    faults = site.directory / "faults"
    site.agent(simulate_gpus=gpus, simulate_gpu_faults=str(faults), gpu_poll_s=0.05, **settings)
    return faults


def states(site: Site) -> list[str]:
    return [one.state for one in operate.get_node(site.fabric.db, "n1").gpus]


def test_a_gpu_that_errs_is_given_to_nobody_while_another_works_and_comes_back(site: Site) -> None:
    fabric = site.fabric
    faults = gpu_agent(site)
    first = fabric.submit_one(resources=share(gpus=1), environment=ENDLESS)
    until(lambda: fabric.state(first) == JobState.RUNNING)
    faults.write_text("1 lost")
    until(lambda: states(site) == ["held", "out"])
    second = fabric.submit_one(resources=share(gpus=1), environment=ENDLESS)
    plain = fabric.submit_one()
    site.until_ended(plain)
    assert fabric.state(second) == JobState.PENDING
    assert fabric.state(first) == JobState.RUNNING
    told = explain(fabric.db, fabric.settings, fabric.tenant, second)
    assert "GPU 1 of n1 is out: GPU is lost" in told.causes[0].message
    faults.unlink()
    until(lambda: fabric.state(second) == JobState.RUNNING)
    assert states(site) == ["held", "held"]
    assert operate.get_node(fabric.db, "n1").state == "ready"


def test_a_job_for_a_gpu_that_is_out_is_told_so_and_starts_when_an_operator_puts_it_in(site: Site) -> None:
    fabric = site.fabric
    gpu_agent(site, "A100-80GB")
    operate.take_gpu_out(fabric.db, "n1", "0", "fan", "ops")
    waiting = fabric.submit_one(resources=share(gpus=1))
    (cause,) = explain(fabric.db, fabric.settings, fabric.tenant, waiting).causes
    assert cause.code == Code.GPU_OUT
    assert "GPU 0 of n1 is out: fan" in cause.message
    operate.put_gpu_in(fabric.db, "n1", "0")
    site.until_ended(waiting)


def test_a_strangers_memory_takes_an_idle_gpu_out_but_not_one_of_ours(site: Site) -> None:
    fabric = site.fabric
    faults = gpu_agent(site)
    first = fabric.submit_one(resources=share(gpus=1), environment=ENDLESS)
    until(lambda: fabric.state(first) == JobState.RUNNING)
    faults.write_text("0 memory 9000\n1 memory 9000")
    until(lambda: states(site) == ["held", "out"])
    assert "somebody else uses about 9 GiB" in operate.get_node(fabric.db, "n1").gpus[1].reason


def test_a_restarted_agent_knows_which_gpus_its_jobs_have(site: Site) -> None:
    fabric = site.fabric
    faults = gpu_agent(site)
    first = fabric.submit_one(resources=share(gpus=1), environment=ENDLESS)
    until(lambda: fabric.state(first) == JobState.RUNNING)
    site.agents[0].stop()
    faults.write_text("0 memory 9000\n1 memory 9000")
    gpu_agent(site)
    until(lambda: states(site) == ["held", "out"])


def test_what_a_gpu_does_is_shown(site: Site, monkeypatch: Any) -> None:
    monkeypatch.setattr("workers.gpus.watch.TELL_S", 0.0)
    faults = gpu_agent(site, "A100-80GB")
    faults.write_text("0 busy 80\n0 hot 70")

    def reads() -> tuple[Any, Any]:
        (one,) = operate.get_node(site.fabric.db, "n1").gpus
        return one.readings.get("utilization_percent"), one.readings.get("temperature_celsius")

    until(lambda: reads() == (80, 70))


def test_a_job_that_has_a_gpu_is_sampled_with_it(site: Site) -> None:
    fabric = site.fabric
    faults = gpu_agent(site, "A100-80GB", sample_s=0.1)
    faults.write_text("0 busy 80")
    one = fabric.submit_one(resources=share(gpus=1), environment=ENDLESS)
    until(lambda: bool(fabric.all("SELECT 1 FROM sample WHERE gpu_percent = 80")))
    assert fabric.state(one) == JobState.RUNNING


def test_labels_and_cluster_of_the_settings_are_registered(site: Site) -> None:
    gpu_agent(site, cluster="lab", node_labels="zone=a, disk=nvme")
    shown = operate.get_node(site.fabric.db, "n1")
    assert (shown.cluster, shown.labels) == ("lab", {"zone": "a", "disk": "nvme"})


def test_an_operators_drain_reaches_the_agent_and_its_deadline_stops_jobs_uncharged(site: Site) -> None:
    fabric = site.fabric
    agent = site.agent()
    running = fabric.submit_one(environment=ENDLESS)
    until(lambda: fabric.state(running) == JobState.RUNNING)
    operate.drain(fabric.db, "n1", "new driver", "ops", 3600)
    until(lambda: agent.full)
    waiting = fabric.submit(job())[0]
    assert fabric.state(running) == JobState.RUNNING
    fabric.sql("UPDATE node SET drain_deadline = now()")
    until(lambda: fabric.state(running) == JobState.PENDING)
    row = fabric.row(running)
    assert (row.reason, row.failures, row.ready) == ("drained", 0, True)
    agent.stop()
    again = site.agent()
    until(lambda: again.full)
    assert fabric.state(waiting) == JobState.PENDING
    operate.resume(fabric.db, "n1", 60)
    site.until_ended(waiting)
    until(lambda: not again.full)


def test_a_job_that_was_left_to_another_node_in_vain_is_taken_when_the_delay_is_over(site: Site) -> None:
    fabric = site.fabric
    fabric.add_node("deaf", gpus=[gpu(1)])
    site.agent(simulate_gpus="4xA100-80GB", pack_delay_s=0.5, poll_s=600.0)
    one = fabric.submit_one(resources=share(gpus=1))
    site.agents[0].bell()
    site.until_ended(one)
    (attempt,) = fabric.attempts(one)
    assert attempt.node_id == "n1"
    assert (attempt.claimed_at - fabric.row(one).created_at).total_seconds() >= 0.5
