"""The event feed of the jobs contract: pages by cursor, one job's history, whose events are seen."""

from __future__ import annotations

from uuid import uuid4

import pytest

from tests.contract.conftest import PREFIXES, Caller
from tests.contract.jobs_document import COMPLETE_EXAMPLE, TIME, is_error, raw

KEYS = {
    "id", "time", "timestamp", "tenant_id", "job_id", "type", "contract", "previous", "status", "state_detail", "ready",
    "reason", "stop_cause", "attempt", "executor_id",
}  # fmt: skip


def run_one(api: Caller) -> str:
    """A job that an external executor has completed."""
    api.submit()
    job_id = str(api.claim()["id"])
    assert api.put(f"/jobs/{job_id}/complete", **raw(COMPLETE_EXAMPLE)).status_code == 200
    return job_id


class TestEvents:
    @pytest.mark.parametrize("prefix", PREFIXES)
    @pytest.mark.parametrize("slash", ["", "/"])
    def test_a_page_tells_changes_in_order(self, api: Caller, prefix: str, slash: str) -> None:
        api.prefix = prefix
        job_id = run_one(api)
        page = api.get("/events" + slash).json
        assert set(page) == {"events", "next", "more", "gap", "held_seconds"}
        told = page["events"]
        assert all(set(one) == KEYS for one in told)
        assert (told[0]["previous"], told[0]["status"]) == (None, "pending")
        assert [one["state_detail"] for one in told][-1] == "completed"
        assert {one["job_id"] for one in told} == {job_id}
        assert {one["type"] for one in told} == {"data-processing"}
        assert {one["contract"] for one in told} == {"jobs"}
        assert all(TIME.fullmatch(one["time"]) for one in told)
        assert told[1]["executor_id"] == "worker-1-abc123"
        assert (page["next"], page["more"], page["gap"]) == (told[-1]["id"], False, False)

    def test_goes_on_from_a_cursor_and_from_now(self, api: Caller) -> None:
        first = api.submit()["id"]
        now = api.get("/events?after=now").json
        assert now["events"] == []
        second = api.submit()["id"]
        assert [one["job_id"] for one in api.get(f"/events?after={now['next']}").json["events"]] == [second]
        page = api.get("/events?limit=1").json
        assert ([one["job_id"] for one in page["events"]], page["more"]) == ([first], True)
        rest = api.get(f"/events?after={page['next']}").json
        assert ([one["job_id"] for one in rest["events"]], rest["more"]) == ([second], False)

    def test_filters(self, api: Caller) -> None:
        api.submit(type="one")
        job_id = api.submit(type="two")["id"]
        for query in ("type=two", f"job_id={job_id}", f"type=two&job_id={job_id}", f"job_id={job_id}&tenant=default"):
            assert [one["job_id"] for one in api.get(f"/events?{query}").json["events"]] == [job_id]
        assert api.get(f"/events?type=one&job_id={job_id}").json["events"] == []
        assert api.get(f"/events?job_id={uuid4()}").json["events"] == []

    def test_an_operator_sees_all_tenants_or_one(self, api: Caller) -> None:
        job_id = api.submit()["id"]
        for tenant in ("*", "default", "00000000-0000-0000-0000-000000000001"):
            assert [one["job_id"] for one in api.get(f"/events?tenant={tenant}").json["events"]] == [job_id]
        is_error(api.get("/events?tenant=nobody"), 404)

    @pytest.mark.parametrize(
        ("query", "named"),
        [("after=x", "after"), ("after=", "after"), ("limit=0", "limit"), ("limit=1001", "limit"),
         ("type=a%20b", "type"), ("after=%00", "after"), ("after=1.2.99999999", "after")],
    )  # fmt: skip
    def test_what_cannot_be_meant_is_refused(self, api: Caller, query: str, named: str) -> None:
        assert is_error(api.get(f"/events?{query}"), 400)["field"] == named

    def test_a_job_id_that_is_none_is_not_found(self, api: Caller) -> None:
        is_error(api.get("/events?job_id=nonsense"), 404)

    def test_needs_a_token(self, stranger: Caller) -> None:
        is_error(stranger.get("/events"), 401)
        is_error(stranger.get(f"/jobs/{uuid4()}/events"), 401)


class TestOneJob:
    def test_has_its_history(self, api: Caller) -> None:
        job_id = run_one(api)
        api.submit()
        page = api.get(f"/jobs/{job_id}/events").json
        assert [one["state_detail"] for one in page["events"]] == ["pending", "starting", "running", "completed"]
        first = api.get(f"/jobs/{job_id}/events?limit=3").json
        assert first["more"]
        rest = api.get(f"/jobs/{job_id}/events?after={first['next']}").json
        assert [one["state_detail"] for one in rest["events"]] == ["completed"]
        assert api.get(f"/jobs/{job_id}/events?after=now").json["next"] == rest["next"]

    def test_of_an_unknown_one_is_not_found(self, api: Caller) -> None:
        is_error(api.get(f"/jobs/{uuid4()}/events"), 404)
        is_error(api.get("/jobs/nonsense/events"), 404)
