# ruff: noqa: F811 (fixtures are imported by name)
"""One job through all contracts: whatever it came by and wherever it stands, each of the five tells the same of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID

import pytest
from flask import Flask

from app.api.factory import CONTRACTS, create_app
from app.domain.job import Assignment
from app.domain.phase import Phase
from app.domain.policy import Ending
from app.domain.states import StopCause
from app.services import logs
from app.services.report import Chunk, append_output
from app.services.stop import request_stop
from app.storage.database import Database
from config.rates import parse_rules
from config.settings import Settings
from tests.contract.conftest import TOKEN, Bells, Caller
from tests.contract.hpc_lab import database_url, hpc_database_url  # noqa: F401
from tests.contract.spokes import COMPUTE, GPU, HPC, JOBS, SPOKES, SUBMITTING, Client, Spoke, clients
from tests.factories import Fabric, Node
from tests.issuer import AUDIENCE, ISSUER, Issuer, key_set

STRANGERS = Issuer("EdDSA", "ed25519")
LIMITS = [f"{contract.name}:*=off" for contract in CONTRACTS] + ["ai:submit=off", "ai:list=off"]

each_spoke = pytest.mark.parametrize("spoke", SUBMITTING, ids=lambda spoke: spoke.name)
every_stopper = pytest.mark.parametrize("stopper", SPOKES, ids=lambda spoke: f"by-{spoke.name}")


@pytest.fixture
def app(database_url: str, tmp_path: Path) -> Iterator[Flask]:
    keys = tmp_path / "keys.json"
    keys.write_bytes(key_set(STRANGERS.jwk()))
    settings = Settings(
        database_url=database_url, api_token=TOKEN, api_threads=8, auth_keys=str(keys), auth_issuer=ISSUER,
        auth_audience=(AUDIENCE,), auth_algorithms=("EdDSA",), rate_limits=parse_rules(",".join(LIMITS)),
    )  # fmt: skip
    db = Database(database_url, 4, "contract-test")
    yield create_app(settings, db, Bells())
    db.close()


@pytest.fixture
def fabric(app: Flask) -> Fabric:
    return Fabric(app.extensions["cfab"].db, app.extensions["cfab"].settings)


@pytest.fixture
def node(fabric: Fabric) -> Node:
    return fabric.add_node("node-a", runners=("process", "container"))


@pytest.fixture
def all_five(app: Flask) -> dict[Spoke, Client]:
    """The same caller through each contract."""
    return {one.spoke: one for one in clients(Caller(app.test_client()))}


@pytest.fixture
def foreign(app: Flask, fabric: Fabric) -> dict[Spoke, Client]:
    """A user of another tenant."""
    fabric.add_tenant("acme")
    return {one.spoke: one for one in clients(Caller(app.test_client(), token=STRANGERS.token()))}


# -- leading a job to a phase ------------------------------------------------------------------------------------


def starting(fabric: Fabric, node: Node) -> Assignment:
    return fabric.claim_one(node)


def running(fabric: Fabric, node: Node) -> Assignment:
    return fabric.run(node)


def stopped_for(cause: StopCause) -> Callable[[Fabric, Node], Assignment]:
    def lead(fabric: Fabric, node: Node) -> Assignment:
        taken = fabric.run(node)
        request_stop(fabric.db, fabric.tenant, taken.job_id, "test", None, cause)
        return taken

    return lead


def ended(ending: Ending, cause: StopCause | None = None) -> Callable[[Fabric, Node], None]:
    def lead(fabric: Fabric, node: Node) -> None:
        taken = fabric.run(node) if cause is None else stopped_for(cause)(fabric, node)
        fabric.finish(taken, ending)

    return lead


LEAD: dict[Phase, Callable[[Fabric, Node], object]] = {
    Phase.READY: lambda fabric, node: None,
    Phase.WAITING: ended(Ending(node_fault=True)),
    Phase.PREEMPTED: ended(Ending(signal=15, stopped=True), StopCause.PREEMPT),
    Phase.STARTING: starting,
    Phase.RUNNING: running,
    Phase.CANCELLING: stopped_for(StopCause.CANCEL),
    Phase.STOPPING: stopped_for(StopCause.DRAIN),
    Phase.COMPLETED: ended(Ending(exit_code=0)),
    Phase.FAILED: ended(Ending(exit_code=3)),
    Phase.CANCELLED: ended(Ending(signal=15, stopped=True), StopCause.CANCEL),
}
"""How a job that was just submitted comes into each phase."""


def words(phase: Phase) -> dict[Spoke, str]:
    """What each contract calls the phase."""
    return {spoke: spoke.words[phase] for spoke in SPOKES}


def agree(all_five: dict[Spoke, Client], job: UUID, phase: Phase, others: int = 0) -> None:
    """Every contract shows the job in the phase's word, and finds it by that word and by no other."""
    for reader, client in all_five.items():
        word = reader.words[phase]
        assert client.word(job) == word, (reader.name, phase.name)
        assert len(client.listed()) == 1 + others
        for asked in reader.every_word:
            found = client.listed(asked)
            assert set(found.values()) <= {asked}, (reader.name, asked)
            assert (job in found) == (asked == word), (reader.name, asked)


@each_spoke
@pytest.mark.parametrize("phase", Phase, ids=lambda phase: phase.name.lower())
def test_every_contract_has_its_word_for_every_phase(
    all_five: dict[Spoke, Client], fabric: Fabric, node: Node, spoke: Spoke, phase: Phase
) -> None:
    job = all_five[spoke].submit()
    LEAD[phase](fabric, node)
    agree(all_five, job, phase)
    fabric.assert_in_order()


def test_filters_and_totals_stay_exact_when_jobs_stand_everywhere(
    all_five: dict[Spoke, Client], fabric: Fabric, node: Node
) -> None:
    stands: dict[UUID, Phase] = {}
    # What can be claimed comes last, so that nothing is led on by what is arranged after it.
    claimable = (Phase.PREEMPTED, Phase.READY)
    for phase in sorted(Phase, key=lambda phase: (phase in claimable, -phase)):
        for spoke in (GPU,) if phase == Phase.PREEMPTED else SUBMITTING:
            job = all_five[spoke].submit()
            LEAD[phase](fabric, node)
            stands[job] = phase
    for reader, client in all_five.items():
        expected = {job: reader.words[phase] for job, phase in stands.items()}
        assert client.listed() == expected
        for word in reader.every_word:
            assert client.listed(word) == {job: one for job, one in expected.items() if one == word}
            page, total = client.page({reader.filtered_by: word, "limit": 1, "offset": 1})
            assert total == list(expected.values()).count(word)
            assert len(page) == min(1, max(0, total - 1))


# -- a whole life ------------------------------------------------------------------------------------------------


def say(fabric: Fabric, taken: Assignment, position: int, text: bytes) -> int:
    """Ships output as an agent does; the position behind it."""
    framed = logs.frame(logs.STDOUT, 1_700_000_000.25, text)
    log_day = fabric.value("SELECT log_day FROM attempt WHERE id = %s", taken.attempt_id)
    append_output(fabric.db, [Chunk(taken.attempt_id, log_day, position, len(framed), logs.PLAIN, framed)])
    return position + len(framed)


def reads(all_five: dict[Spoke, Client], job: UUID, lines: list[str]) -> None:
    """The contracts that have logs show these lines."""
    for reader, client in all_five.items():
        if reader.logs_query is not None:
            assert client.log(job) == lines, reader.name
    shown = all_five[JOBS].show(job)
    assert shown["stdout"].splitlines() == lines


@each_spoke
@pytest.mark.parametrize("exit_code", [0, 7])
def test_a_life_from_submit_to_its_end(
    all_five: dict[Spoke, Client], fabric: Fabric, node: Node, spoke: Spoke, exit_code: int
) -> None:
    job = all_five[spoke].submit()
    agree(all_five, job, Phase.READY)
    reads(all_five, job, [])
    taken = fabric.claim_one(node)
    assert taken.job_id == job
    agree(all_five, job, Phase.STARTING)
    fabric.start(taken)
    agree(all_five, job, Phase.RUNNING)
    behind = say(fabric, taken, 0, b"loading\n")
    reads(all_five, job, ["loading"])
    say(fabric, taken, behind, b"done\n")
    fabric.finish(taken, Ending(exit_code=exit_code))
    agree(all_five, job, Phase.FAILED if exit_code else Phase.COMPLETED)
    reads(all_five, job, ["loading", "done"])
    for reader, client in all_five.items():
        shown = client.show(job)
        assert "exit_code" not in shown or shown["exit_code"] == exit_code, reader.name
        assert "node-a" in repr(shown), f"{reader.name} does not say where it ran"
        assert client.stop(job).status_code in {400, 409}
    agree(all_five, job, Phase.FAILED if exit_code else Phase.COMPLETED)


def test_a_life_on_an_external_executor(all_five: dict[Spoke, Client]) -> None:
    native = all_five[JOBS]
    job = native.submit()
    assert native.call.claim()["id"] == str(job)
    agree(all_five, job, Phase.RUNNING)
    done = {"executor_id": "worker-1-abc123", "stdout": "one\ntwo\n", "stderr": "", "exit_code": 0}
    assert native.call.put(f"/jobs/{job}/complete", json=done).status_code == 200
    agree(all_five, job, Phase.COMPLETED)
    reads(all_five, job, ["one", "two"])


@each_spoke
@every_stopper
def test_a_stop_through_one_shows_in_all(
    all_five: dict[Spoke, Client], fabric: Fabric, node: Node, spoke: Spoke, stopper: Spoke
) -> None:
    waits = all_five[spoke].submit()
    assert all_five[stopper].stop(waits).status_code == 200
    assert {reader: client.word(waits) for reader, client in all_five.items()} == words(Phase.CANCELLED)
    runs = all_five[spoke].submit()
    taken = fabric.run(node)
    assert all_five[stopper].stop(runs).status_code == 200
    agree(all_five, runs, Phase.CANCELLING, others=1)
    fabric.finish(taken, Ending(signal=15, stopped=True))
    assert {reader: client.word(runs) for reader, client in all_five.items()} == words(Phase.CANCELLED)
    assert {client.stop(runs).status_code for reader, client in all_five.items() if reader is not HPC} <= {400, 409}


# -- tenants and ids ---------------------------------------------------------------------------------------------


@each_spoke
def test_to_another_tenant_there_is_no_such_job(
    all_five: dict[Spoke, Client], foreign: dict[Spoke, Client], fabric: Fabric, node: Node, spoke: Spoke
) -> None:
    job = all_five[spoke].submit()
    fabric.run(node)
    for reader, client in foreign.items():
        assert client.ask(job).status_code == 404, reader.name
        assert client.stop(job).status_code == 404, reader.name
        assert client.listed() == {}
        if reader.logs_query is not None:
            path = f"/jobs/{reader.shown(job)}/logs"
            assert client.call.get(path).status_code == 404
            assert client.call.get(path, headers={"Accept": "text/event-stream"}).status_code == 404
    agree(all_five, job, Phase.RUNNING)


@each_spoke
def test_an_id_in_anothers_form_names_nothing(all_five: dict[Spoke, Client], spoke: Spoke) -> None:
    job = all_five[spoke].submit()
    forms = {one.shown(job) for one in SPOKES} | {job.hex, str(job).replace("-", "_"), f"job-{job}", f"JOB-{job.hex}"}
    for reader, client in all_five.items():
        for form in forms - {reader.shown(job)}:
            assert client.call.get(f"/jobs/{form}").status_code == 404, (reader.name, form)


# -- jobs that run elsewhere -------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", HPC.every_word)
def test_a_tracked_job_can_be_looked_at_through_all_but_is_in_no_list_of_theirs(
    all_five: dict[Spoke, Client], foreign: dict[Spoke, Client], word: str
) -> None:
    hpc = all_five[HPC].call
    made = hpc.post("/jobs", json={"id": "job-001", "user": "alice", "nodes": ["node-01"]}).json
    hpc("PATCH", "/jobs/job-001", json={"state": word})
    job = UUID(made["fabric_id"])
    assert hpc.get(f"/jobs/{job}").json["state"] == word
    phase = Phase.WAITING if word == "pending" else Phase[word.upper()]
    for reader, client in all_five.items():
        if reader is not HPC:
            shown = client.show(job)
            assert client.word(job) == reader.words[phase]
            assert shown["external_id"] == "job-001"
            assert client.listed() == {}
            assert client.stop(job).status_code == 404
            if reader.logs_query is not None:
                assert client.call.get(f"/jobs/{reader.shown(job)}/logs").status_code == 404
        assert foreign[reader].ask(job).status_code == 404
    assert all_five[HPC].page({})[1] == 1
    assert hpc.get("/jobs/job-001").json["state"] == word


def test_what_was_asked_in_one_reads_in_the_units_of_all(all_five: dict[Spoke, Client]) -> None:
    answer = all_five[COMPUTE].call.post("/jobs", json={"image": "repo/transform:24", "cpu": 1.5, "mem_gib": 4})
    job = COMPUTE.parsed(answer.json["job_id"])
    assert all_five[COMPUTE].show(job)["mem_gib"] == 4
    assert all_five[JOBS].show(job)["resources"]["memory_mib"] == 4096
    ai = next(client for reader, client in all_five.items() if reader.name == "ai")
    assert ai.show(job)["resources"] == {"cpu": "1500m", "memory": "4096Mi", "gpu": 0}
    assert ai.show(job)["image"] == "repo/transform:24"
    gpu = all_five[GPU].page({})[0][0]
    assert (gpu["name"], gpu["gpu_count"]) == ("container", 0)
