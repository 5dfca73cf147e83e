"""Jobs that name an image, in the jobs contract: what is taken, shown and refused, and who is never given one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from flask import Flask

from app.services import images
from config.settings import Settings
from tests.contract.conftest import SHA, Bells, Caller, job_body
from tests.contract.jobs_document import CLAIM_EXAMPLE, is_error, raw
from tests.factories import Fabric, gpu

COMPUTE = "/api/v1/runtime/compute/jobs"
IMAGE = "ghcr.io/acme/tool:1"
DIGEST = f"ghcr.io/acme/tool@sha256:{'a' * 64}"
ONE = "give an image, or a script, or binary_url with binary_sha256"


@pytest.fixture
def fabric(app: Flask, settings: Settings) -> Fabric:
    return Fabric(app.extensions["cfab"].db, settings)


def body(**changes: Any) -> dict[str, Any]:
    """A job with an image; a change to None removes a field."""
    none = {"binary_url": None, "binary_sha256": None, "arguments": None, "env_variables": None}
    return job_body(**{**none, "image": IMAGE, **changes})


def container(api: Caller, job: str) -> dict[str, Any]:
    """What a job says of its program."""
    shown: Any = api.get(f"/jobs/{job}").json
    return {name: shown[name] for name in ("image", "command", "arguments", "env_variables", "script", "binary_url")}


ASKED = {"command": ["python", "-c"], "arguments": ["print(6 * 7)"], "env_variables": {"A": "b"}}
SHOWN = {"image": IMAGE, **ASKED, "script": None, "binary_url": None}


def test_it_is_shown_as_it_was_asked_and_runs_in_a_container(api: Caller, fabric: Fabric) -> None:
    job = api.post("/jobs", json=body(**ASKED)).json["id"]
    assert container(api, job) == SHOWN
    assert fabric.value("SELECT runner FROM job_spec") == "container"
    told: Any = Caller(api.client, COMPUTE).get(f"/job_{job.replace('-', '')}").json
    assert (told["image"], told["cmd"]) == (IMAGE, ["python", "-c", "print(6 * 7)"])
    alone = api.post("/jobs", json=body()).json["id"]
    assert container(api, alone) == {**SHOWN, "command": [], "arguments": [], "env_variables": {}}


def test_it_goes_to_a_node_with_containers_only(api: Caller, fabric: Fabric) -> None:
    processes = fabric.add_node("processes")
    job = api.post("/jobs", json=body(**ASKED)).json["id"]
    assert fabric.claim(processes) == []
    (given,) = fabric.claim(fabric.add_node("containers", runners=("process", "container")))
    assert (str(given.job_id), given.runner, given.image) == (job, "container", IMAGE)
    assert (given.command, given.arguments) == (("python", "-c"), ("print(6 * 7)",))


def test_it_takes_a_slice_of_a_gpu(api: Caller, fabric: Fabric) -> None:
    node = fabric.add_node("shared", runners=("container",), gpus=[replace(gpu(1), sharing=True)])
    slice_ = {"gpu_shared": True, "gpu_memory_mib": 4096}
    assert api.post("/jobs", json=body(resources=slice_)).status_code == 201
    (given,) = fabric.claim(node)
    assert (given.image, given.resources.gpu_shared, given.gpu_memory_bytes) == (IMAGE, True, 4096 << 20)


def test_executors_outside_are_never_given_one(api: Caller) -> None:
    api.post("/jobs", json=body())
    api.post("/jobs", json=body(array={"count": 2}))
    assert api.post("/jobs/claim", **raw(CLAIM_EXAMPLE)).status_code == 204
    api.submit()
    claimed = api.claim()
    assert (claimed["image"], claimed["command"]) == (None, [])


def test_bulk_array_dry_run_and_resubmit_take_it_too(api: Caller, fabric: Fabric) -> None:
    node = fabric.add_node("containers", runners=("process", "container"))
    told: Any = api.post("/jobs?dry_run=true", json=body(**ASKED)).json
    assert (told["admitted"], told["runs_ever"]["names"]) == (True, ["containers"])
    many: Any = api.post("/jobs/bulk", json=[job_body(), body(**ASKED)]).json
    assert container(api, many[1]["id"]) == SHOWN
    again: Any = api.post(f"/jobs/{many[1]['id']}/resubmit").json
    assert container(api, again["id"]) == SHOWN
    assert api.post("/jobs", json=body(array={"count": 2}, gang={"members": 2}, **ASKED)).status_code == 201
    array: Any = api.post("/jobs", json=body(array={"count": 2}, **ASKED)).json["id"]
    jobs: Any = api.get(f"/arrays/{array}/jobs").json
    for index, one in enumerate(jobs):
        shown = container(api, one["id"])
        assert shown["env_variables"]["CFAB_ARRAY_INDEX"] == str(index)
        assert {**shown, "env_variables": ASKED["env_variables"]} == SHOWN
    assert sorted(one.runner for one in fabric.claim(node, 10)) == ["container"] * 4 + ["process"]


def test_without_a_node_for_containers_it_waits_and_says_so(api: Caller, fabric: Fabric) -> None:
    fabric.add_node("processes")
    assert api.post("/jobs?dry_run=true", json=body()).json["code"] == "no_runner"


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"image": ""}, "image", "must have 1 to 512 characters, not 0"),
        ({"image": "a" * 513}, "image", "must have 1 to 512 characters, not 513"),
        ({"image": "to\nol"}, "image", "control characters"),
        ({"image": 5}, "image", "must be a string"),
        ({"image": "https://ghcr.io/acme/tool"}, "image", "must be an image reference such as repo/name:tag"),
        ({"image": "acme/Tool"}, "image", "must be an image reference"),
        ({"image": "tool:1:2"}, "image", "must be an image reference"),
        ({"image": "tool@sha256:abc"}, "image", "must be an image reference"),
        ({"image": "tool; rm"}, "image", "must be an image reference"),
        ({"image": "--privileged"}, "image", "must be an image reference"),
        ({"command": "python"}, "command", "must be an array of strings"),
        ({"command": [1]}, "command[0]", "must be a string"),
        ({"command": ["a"] * 1001}, "command", "at most 1000"),
        ({"command": ["a" * 131_072]}, "command[0]", "at most 131071"),
        ({"command": ["a" * 131_000] * 4, "arguments": ["a" * 131_000] * 5}, "arguments", "together with command"),
        ({"script": "true"}, "script", f"must not be given beside image: {ONE}"),
        ({"binary_url": "https://example.com/x", "binary_sha256": SHA}, "binary_url", f"beside image: {ONE}"),
        ({"binary_sha256": SHA}, "binary_sha256", f"beside image: {ONE}"),
        ({"image": None}, "binary_url", "is required, unless there is an image or a script"),
        ({"image": None, "binary_url": "https://x.org/x"}, "binary_sha256", "is required beside binary_url"),
        ({"image": None, "script": "true", "command": ["sh"]}, "command", "is for an image alone"),
        ({"image": None, "script": "true", "binary_sha256": SHA}, "binary_sha256", f"beside script: {ONE}"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_field(
    api: Caller, bells: Bells, changes: dict[str, Any], field: str, says: str
) -> None:
    asked = body(**changes)
    for path, sent in {"/jobs": asked, "/jobs?dry_run=true": asked, "/jobs/bulk": [body(), asked]}.items():
        answer = api.post(path, json=sent)
        problem = is_error(answer, 400)["errors"][0]
        assert problem["field"] == field and says in problem["message"], answer.text
        assert problem.get("index") == (1 if path == "/jobs/bulk" else None)
    assert api.get("/jobs").json == [] and bells.rung == []


@pytest.mark.parametrize("place", ["image", "command", "null"])
def test_a_nul_and_a_null_are_refused(refusing: Caller, place: str) -> None:
    spoilt = {"image": {"image": "to\0ol"}, "command": {"command": ["a\0b"]}}.get(place)
    sent = body(**spoilt) if spoilt else {**body(), "image": None}
    is_error(refusing.post("/jobs", json=sent), 400)


@pytest.mark.parametrize(("policy", "says"), [("signed", "it must be signed"), ("digest", "by its digest")])
def test_a_policy_refuses_it_in_the_words_of_the_other_contracts(api: Caller, policy: str, says: str) -> None:
    before: Any = api.post("/jobs", json=body(), headers={"Idempotency-Key": "k"}).json
    api("PATCH", "/tenants/default/images", json={"policy": policy})
    words = Caller(api.client, COMPUTE).post("", json={"image": IMAGE}).json["message"]
    assert says in words
    refused = {
        "/jobs": body(), "/jobs/bulk": [job_body(), body()], f"/jobs/{before['id']}/resubmit": {},
    }  # fmt: skip
    for path, sent in {**refused, "/jobs/": body(array={"count": 2})}.items():
        answer = api.post(path, json=sent)
        assert is_error(answer, 403) == {"image": IMAGE, "policy": policy}
        assert answer.json["error"] == words
    told: Any = api.post("/jobs?dry_run=true", json=body()).json
    assert (told["admitted"], told["message"], told["refusal"]["status"]) == (False, words, 403)
    again = api.post("/jobs", json=body(), headers={"Idempotency-Key": "k"})
    assert (again.status_code, again.json) == (201, before)
    assert len(api.get("/jobs").json) == 1


def test_a_digest_passes_where_one_must_be_given(api: Caller) -> None:
    api("PATCH", "/tenants/default/images", json={"policy": "digest"})
    assert api.post("/jobs", json=body(image=DIGEST)).status_code == 201


def test_a_bulk_of_images_that_take_registries_too_long_is_503_and_nothing_is_made(
    api: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "TOGETHER_S", -1.0)
    assert api.post("/jobs/bulk", json=[body(), body()]).status_code == 201
    answer = api.post("/jobs/bulk", json=[body(image="acme/a"), body(image="acme/b")])
    is_error(answer, 503)
    assert "Only 1 of 2 images" in answer.json["error"] and int(answer.headers["Retry-After"]) > 0
    assert len(api.get("/jobs").json) == 2
