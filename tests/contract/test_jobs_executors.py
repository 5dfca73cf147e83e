"""The jobs contract as executors outside the fabric see it, endpoint by endpoint, from its document."""

from __future__ import annotations

from uuid import uuid4

import pytest

from tests.contract.conftest import PREFIXES, Caller
from tests.contract.jobs_document import (
    ADDED,
    CLAIM_EXAMPLE,
    COMPLETE_EXAMPLE,
    FAIL_EXAMPLE,
    HEARTBEAT_EXAMPLE,
    SHOWN,
    TIME,
    is_error,
    raw,
)


class TestClaim:
    @pytest.mark.parametrize("prefix", PREFIXES)
    def test_the_documented_example(self, api: Caller, prefix: str) -> None:
        api.prefix = prefix
        job = api.submit()["id"]
        answer = api.post("/jobs/claim/", **raw(CLAIM_EXAMPLE))
        assert answer.status_code == 200
        assert set(answer.json) >= SHOWN | ADDED | {"lease_expires_at", "attempt"}
        assert answer.json["id"] == job
        assert answer.json["status"] == "running"
        assert answer.json["executor_id"] == "worker-1-abc123"
        assert answer.json["attempt"] == 1
        assert TIME.fullmatch(answer.json["lease_expires_at"])
        assert answer.json["attempts"][0]["executor_ip"] == "192.168.1.100"

    def test_no_jobs_is_204_without_a_body(self, api: Caller) -> None:
        answer = api.post("/jobs/claim", **raw(CLAIM_EXAMPLE))
        assert answer.status_code == 204
        assert answer.data == b""

    def test_higher_classes_first_then_the_oldest(self, api: Caller) -> None:
        ids = [api.submit(priority=p)["id"] for p in ("best_effort", "background", "foreground", "foreground")]
        claimed = [api.claim(f"w-{n}")["id"] for n in range(4)]
        assert claimed == [ids[2], ids[3], ids[1], ids[0]]

    def test_gpu_jobs_and_scripts_are_not_given(self, api: Caller) -> None:
        api.submit(resources={"gpus": 1})
        api.submit(script="echo", binary_url=None, binary_sha256=None)
        assert api.post("/jobs/claim", **raw(CLAIM_EXAMPLE)).status_code == 204

    def test_a_body_that_cannot_be(self, refusing: Caller) -> None:
        for body in ({}, [], "a", {"executor_id": ""}, {"executor_id": 5}, {"executor_id": "a\nb"},
                     {"executor_id": "x" * 256}, {"executor_id": "a", "executor_ip": 5},
                     {"executor_id": "a", "cpus": 1}):  # fmt: skip
            is_error(refusing.post("/jobs/claim", json=body), 400)

    def test_the_address_is_optional(self, api: Caller) -> None:
        api.submit()
        assert api.post("/jobs/claim", json={"executor_id": "a"}).status_code == 200


class TestHeartbeat:
    def test_the_documented_example(self, api: Caller) -> None:
        api.submit()
        job = api.claim()["id"]
        answer = api.put(f"/jobs/{job}/heartbeat", **raw(HEARTBEAT_EXAMPLE))
        assert answer.status_code == 200
        assert answer.json["stop"] is False
        assert answer.json["grace_seconds"] == 10.0
        assert TIME.fullmatch(answer.json["lease_expires_at"])

    def test_tells_of_a_stop(self, api: Caller) -> None:
        api.submit(grace_seconds=3)
        job = api.claim()["id"]
        api.post(f"/jobs/{job}/stop")
        answer = api.put(f"/jobs/{job}/heartbeat/", json={"executor_id": "worker-1-abc123", "attempt": 1})
        assert (answer.json["stop"], answer.json["grace_seconds"]) == (True, 3.0)

    def test_by_another_or_of_an_unknown_or_idle_job_is_404(self, api: Caller) -> None:
        api.submit()
        running, pending = api.claim()["id"], api.submit()["id"]
        is_error(api.put(f"/jobs/{running}/heartbeat", json={"executor_id": "other"}), 404)
        is_error(api.put(f"/jobs/{running}/heartbeat", json={"executor_id": "worker-1-abc123", "attempt": 2}), 404)
        for job in (pending, uuid4(), "x"):
            is_error(api.put(f"/jobs/{job}/heartbeat", **raw(HEARTBEAT_EXAMPLE)), 404)

    def test_a_finished_job_is_404(self, api: Caller) -> None:
        api.submit()
        job = api.claim()["id"]
        api.put(f"/jobs/{job}/complete", **raw(COMPLETE_EXAMPLE))
        is_error(api.put(f"/jobs/{job}/heartbeat", **raw(HEARTBEAT_EXAMPLE)), 404)


class TestComplete:
    @pytest.mark.parametrize("slash", ["", "/"])
    def test_the_documented_example_and_its_repeat(self, api: Caller, slash: str) -> None:
        api.submit()
        job = api.claim()["id"]
        for _ in range(2):
            answer = api.put(f"/jobs/{job}/complete{slash}", **raw(COMPLETE_EXAMPLE))
            assert answer.status_code == 200
            assert answer.json["id"] == job
            assert answer.json["status"] == "completed"

    def test_a_non_zero_exit_code_is_completed_as_sent(self, api: Caller) -> None:
        api.submit()
        job = api.claim()["id"]
        api.put(f"/jobs/{job}/complete", json={"executor_id": "worker-1-abc123", "exit_code": 7})
        shown = api.get(f"/jobs/{job}").json
        assert (shown["status"], shown["exit_code"]) == ("completed", 7)

    def test_wrong_holder_wrong_state_and_other_content_are_400(self, api: Caller) -> None:
        api.submit()
        job, pending = api.claim()["id"], api.submit()["id"]
        is_error(api.put(f"/jobs/{job}/complete", json={"executor_id": "other", "exit_code": 0}), 400)
        is_error(api.put(f"/jobs/{pending}/complete", **raw(COMPLETE_EXAMPLE)), 400)
        api.put(f"/jobs/{job}/complete", **raw(COMPLETE_EXAMPLE))
        context = is_error(api.put(f"/jobs/{job}/fail", **raw(FAIL_EXAMPLE)), 400)
        assert (context["job_id"], context["status"]) == (job, "completed")
        is_error(api.put(f"/jobs/{job}/complete", json={"executor_id": "worker-1-abc123", "exit_code": 1}), 400)

    def test_an_unknown_job_is_404(self, api: Caller) -> None:
        is_error(api.put(f"/jobs/{uuid4()}/complete", **raw(COMPLETE_EXAMPLE)), 404)

    def test_output_is_cut_at_1_mib_at_a_character(self, api: Caller) -> None:
        api.submit()
        job = api.claim()["id"]
        body = {
            "executor_id": "worker-1-abc123",
            "exit_code": 0,
            "stdout": "x" + "é" * 2**20,
            "stderr": "e" * 2**20,
        }
        assert api.put(f"/jobs/{job}/complete", json=body).status_code == 200
        shown = api.get(f"/jobs/{job}").json
        assert shown["stdout"] == "x" + "é" * (2**19 - 1)
        assert shown["stderr"] == "e" * 2**20
        assert shown["stdout_truncated"] is True

    def test_output_that_cannot_be_stored_is_mended(self, api: Caller) -> None:
        api.submit()
        job = api.claim()["id"]
        body = b'{"executor_id": "worker-1-abc123", "exit_code": 0, "stdout": "a\\u0000b\\ud800c\xff\x01\n"}'
        answer = api.put(f"/jobs/{job}/complete", data=body, content_type="application/json")
        assert answer.status_code == 200, answer.text
        assert api.get(f"/jobs/{job}").json["stdout"] == "a\ufffdb\ufffdc\ufffd\x01\n"

    def test_a_cancel_in_between_wins(self, api: Caller) -> None:
        api.submit()
        job = api.claim()["id"]
        api.post(f"/jobs/{job}/stop")
        assert api.put(f"/jobs/{job}/complete", **raw(COMPLETE_EXAMPLE)).json["status"] == "cancelled"


class TestFail:
    def test_the_documented_example_and_its_repeat(self, api: Caller) -> None:
        api.submit()
        job = api.claim()["id"]
        for _ in range(2):
            answer = api.put(f"/jobs/{job}/fail", **raw(FAIL_EXAMPLE))
            assert answer.status_code == 200
            assert answer.json["status"] == "failed"
        shown = api.get(f"/jobs/{job}").json
        assert (shown["status"], shown["exit_code"]) == ("failed", 1)
        assert (shown["stdout"], shown["stderr"]) == ("Partial output...", "Error messages...")
        assert shown["message"] == "Binary execution failed"
        assert shown["attempts"][0]["status"] == "failed"

    def test_a_job_with_retries_left_is_pending_again(self, api: Caller) -> None:
        api.submit(max_retries=1)
        job = api.claim()["id"]
        answer = api.put(f"/jobs/{job}/fail", **raw(FAIL_EXAMPLE))
        assert answer.json["status"] == "pending"
        assert answer.json["reason"] == "backoff"

    def test_wrong_holder_400_unknown_404(self, api: Caller) -> None:
        api.submit()
        job = api.claim()["id"]
        is_error(api.put(f"/jobs/{job}/fail", json={"executor_id": "other", "exit_code": 1}), 400)
        is_error(api.put(f"/jobs/{uuid4()}/fail", **raw(FAIL_EXAMPLE)), 404)
        is_error(api.put(f"/jobs/{job}/fail", json={"exit_code": 1}), 400)
