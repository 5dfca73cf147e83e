"""A gang through the contracts: one job, whose members show where nodes, GPUs, attempts and logs are listed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from flask import Flask

from app.domain.job import Assignment
from app.domain.policy import Ending
from app.services.logs import STDOUT, frame
from app.services.place import Spot
from app.services.report import Chunk
from app.services.samples import Measured, store
from config.settings import Settings
from tests.contract.conftest import TOKEN, Bells, Caller
from tests.factories import Fabric, gpu, make_fabric
from tests.gangs import gang_node, place_on


@pytest.fixture
def fabric(settings: Settings) -> Iterator[Fabric]:
    made = make_fabric(settings.database_url)
    yield made
    made.db.close()


@pytest.fixture
def ai(app: Flask) -> Caller:
    return Caller(app.test_client(), "/ai/api/v1", TOKEN)


@pytest.fixture
def gpus(app: Flask) -> Caller:
    return Caller(app.test_client(), "/gpu/api/v1", TOKEN)


@pytest.fixture
def hpc(app: Flask) -> Caller:
    return Caller(app.test_client(), "/v1", TOKEN)


def submit(api: Caller, **changes: Any) -> UUID:
    body = {"type": "train", "script": "true", "priority": "background", "gang": {"members": 2}, **changes}
    made = api.post("/jobs", json=body)
    assert made.status_code == 201, made.text
    return UUID(made.json["id"])


def running(fabric: Fabric, job_id: UUID, *spots: Spot) -> list[Assignment]:
    """The gang runs on these spots."""
    nodes = {spot.node_id: gang_node(fabric, spot.node_id, [gpu(n) for n in _numbers(spot)]) for spot in spots}
    assert place_on(fabric, job_id, *spots).nodes
    members = [one for node in nodes.values() for one in fabric.claim(node)]
    members.sort(key=lambda one: one.gang.member if one.gang else 0)
    fabric.start(*members)
    return members


def _numbers(spot: Spot) -> list[int]:
    return [int(uuid.removeprefix("GPU-")) for uuid in spot.gpu_uuids]


def printed(member: Assignment, text: bytes) -> Chunk:
    data = frame(STDOUT, 1.0, text)
    return Chunk(member.attempt_id, member.log_day, 0, len(data), 0, data)


class TestAsking:
    def test_of_jobs_for_members_is_echoed(self, api: Caller) -> None:
        job_id = submit(api, gang={"members": 3}, resources={"gpus": 2})
        shown = api.get(f"/jobs/{job_id}").json
        assert (shown["gang"], shown["status"], shown["attempts"]) == ({"members": 3}, "pending", [])
        assert api.get(f"/jobs/{submit(api, gang={'members': 1})}").json["gang"] is None

    @pytest.mark.parametrize("gang", [{"members": 0}, {"members": 1025}, {"members": "2"}, {}, {"size": 2}, 2])
    def test_for_nonsense_is_refused(self, api: Caller, gang: Any) -> None:
        answer = api.post("/jobs", json={"type": "x", "script": "true", "priority": "background", "gang": gang})
        assert answer.status_code == 400
        assert "gang" in answer.json["error"]

    def test_of_gpu_for_a_gang_takes_members_of_one_gpu(self, gpus: Caller, fabric: Fabric) -> None:
        body = {"name": "train", "script": "true", "gpu_count": 4, "gpu_memory_mb": 16000, "cpu_cores": 8,
            "memory_mb": 64000, "gang_scheduling": True}  # fmt: skip
        made = gpus.post("/jobs", json=body)
        job_id = UUID(made.json["job_id"].removeprefix("job-"))
        spec = fabric.one("SELECT * FROM job_spec WHERE job_id = %s", job_id)
        key = fabric.one("SELECT k.* FROM scheduling_key k JOIN job j ON j.key_id = k.id WHERE j.id = %s", job_id)
        assert (spec.members, key.members, key.gpus, spec.cpus_milli, key.runner) == (4, 4, 1, 2000, "gang-process")
        listed = gpus.get("/jobs").json
        assert (listed["jobs"] if isinstance(listed, dict) else listed)[0]["gpu_count"] == 4

    def test_of_ai_and_gpu_for_one_member_is_a_plain_job(self, ai: Caller, gpus: Caller, fabric: Fabric) -> None:
        ai.post("/jobs/", json={"job_type": "a", "script": "true", "gang": {"enabled": True, "min_members": 1}})
        ai.post("/jobs/", json={"job_type": "a", "script": "true", "gang": {"enabled": False, "min_members": 4}})
        gpus.post("/jobs", json={"name": "g", "script": "true", "gpu_count": 1, "gang_scheduling": True})
        assert [row.members for row in fabric.all("SELECT members FROM job_spec")] == [1, 1, 1]


class TestShowing:
    def test_is_of_one_job_with_one_entry_for_each_attempt(self, api: Caller, fabric: Fabric) -> None:
        job_id = submit(api, resources={"gpus": 1})
        first, second = running(fabric, job_id, Spot("a", ("GPU-1",)), Spot("b", ("GPU-2",)))
        fabric.finish(first, peak_memory_bytes=100, chunks=[printed(first, b"from 0\n")])
        shown = api.get(f"/jobs/{job_id}").json
        (attempt,) = shown["attempts"]
        assert (attempt["status"], attempt["outcome"], attempt["ended_at"]) == ("running", None, None)
        assert attempt["gpu_uuids"] == ["GPU-1", "GPU-2"]
        assert [(m["member"], m["executor_id"], m["status"]) for m in attempt["members"]] == [
            (0, "a", "completed"),
            (1, "b", "running"),
        ]
        fabric.finish(second, Ending(exit_code=3), peak_memory_bytes=50, message="exited with 3")
        shown = api.get(f"/jobs/{job_id}").json
        (attempt,) = shown["attempts"]
        assert (shown["status"], shown["exit_code"], shown["stdout"]) == ("failed", 3, "from 0\n")
        assert (attempt["status"], attempt["outcome"], attempt["exit_code"]) == ("failed", "failed", 3)
        assert attempt["reason"] == "member 1 on b: exited with 3"
        assert attempt["peak_memory_bytes"] == 150

    def test_of_a_plain_job_has_no_members(self, api: Caller, fabric: Fabric) -> None:
        job_id = submit(api, gang={"members": 1})
        fabric.finish(fabric.claim_one(fabric.add_node()))
        assert api.get(f"/jobs/{job_id}").json["attempts"][0]["members"] is None

    def test_of_logs_is_by_member(self, api: Caller, ai: Caller, fabric: Fabric) -> None:
        job_id = submit(api)
        members = running(fabric, job_id, Spot("a"), Spot("b"))
        for number, one in enumerate(members):
            fabric.finish(one, chunks=[printed(one, b"from %d\n" % number)], output_bytes=20)
        for member, text in ((None, "from 0\n"), (0, "from 0\n"), (1, "from 1\n")):
            query = {} if member is None else {"member": member}
            assert api.get(f"/jobs/{job_id}/logs", query_string=query).text == text
        assert "from 1" in ai.get(f"/jobs/job-{job_id.hex}/logs", query_string={"member": 1}).text
        assert api.get(f"/jobs/{job_id}/logs?member=2").status_code == 404
        assert api.get(f"/jobs/{job_id}/logs?member=-1").status_code == 400
        stream = api.get(f"/jobs/{job_id}/logs?member=1&follow=true").text
        assert "from 1" in stream and '"status":"completed"' in stream.replace(" ", "")

    def test_of_gpus_and_nodes_is_of_all_members(
        self, api: Caller, gpus: Caller, hpc: Caller, ai: Caller, fabric: Fabric
    ) -> None:
        job_id = submit(api, resources={"gpus": 1, "cpus": 1})
        members = running(fabric, job_id, Spot("a", ("GPU-1",)), Spot("b", ("GPU-2",)))
        store(fabric.db, [Measured(one.attempt_id, cpu_cores=0.5, memory_bytes=2**20) for one in members])
        assert gpus.get(f"/jobs/job-{job_id.hex}").json["allocated_gpus"] == ["GPU-1", "GPU-2"]
        seen = hpc.get(f"/jobs/{job_id}").json
        assert seen["nodes"] == ["a", "b"]
        assert (seen["cpu_usage"], seen["memory_usage_mb"]) == (50.0, 2)
        assert ai.get(f"/jobs/job-{job_id.hex}").json["gang"] == {"enabled": True, "min_members": 2}
        for node in ("a", "b"):
            assert [one["id"] for one in hpc.get(f"/jobs?node={node}").json["jobs"]] == [str(job_id)]
        text = hpc.client.get("/metrics", headers=hpc.headers).text
        series = [line for line in text.splitlines() if str(job_id) in line]
        assert any('node="a"' in line for line in series) and any('node="b"' in line for line in series)
        now = api.get(f"/jobs/{job_id}/samples").json
        assert {one["member"] for one in now["samples"]} == {0, 1}

    def test_of_why_it_waits_names_the_room_there_is(self, api: Caller, fabric: Fabric) -> None:
        job_id = submit(api, gang={"members": 3}, resources={"gpus": 1})
        gang_node(fabric, "a", [gpu(1)])
        (cause,) = api.get(f"/jobs/{job_id}/explain").json["causes"]
        assert (cause["code"], cause["numbers"]["room_ever"]) == ("gang_too_big", 1)
        gang_node(fabric, "b", [gpu(2), gpu(3)])
        (cause,) = api.get(f"/jobs/{job_id}/explain").json["causes"]
        assert cause["code"] == "starts_now"
        assert place_on(fabric, submit(api, resources={"gpus": 1}), Spot("a", ("GPU-1",)), Spot("b", ("GPU-2",))).nodes
        (cause,) = api.get(f"/jobs/{job_id}/explain").json["causes"]
        assert (cause["code"], cause["numbers"]["room"]) == ("gang_room", {"b": 1})

    def test_of_a_stop_wakes_every_node(self, api: Caller, fabric: Fabric, bells: Bells) -> None:
        job_id = submit(api)
        running(fabric, job_id, Spot("a"), Spot("b"))
        assert api.post(f"/jobs/{job_id}/stop", json={}).status_code == 200
        assert sorted(bells.woken) == ["a", "b"]
