"""Fifty clients at once post one request under one key to a real server: one job, and one answer for all of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import requests
from werkzeug.serving import make_server

from app.api.factory import create_app
from app.storage.database import Database
from app.storage.faults import Fault, FaultPlan
from config.settings import Settings
from tests.factories import Fabric, at_once

TOKEN = "t0ken-of-the-storm"
BODY = {"type": "storm", "script": "true", "priority": "background"}
CLIENTS = 50


class Ringer:
    """Nobody is to be woken."""

    def ring(self, priority_class: object) -> None:
        pass

    def wake_node(self, node: str) -> None:
        pass

    def hint(self, job_ids: object) -> None:
        pass


@pytest.fixture
def plan() -> FaultPlan:
    """Faults of the API's database; none unless a test adds some."""
    return FaultPlan()


@pytest.fixture
def url(fabric: Fabric, plan: FaultPlan) -> Iterator[str]:
    """Two API processes' worth of servers on one database would be the same to it: all meet in PostgreSQL."""
    settings = Settings(database_url=fabric.settings.database_url, api_token=TOKEN)
    db = Database(settings.database_url, pool_size=16, application_name="storm", faults=plan)
    server = make_server("127.0.0.1", 0, create_app(settings, db, Ringer()), threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/jobs/api/v1"
    server.shutdown()
    thread.join()
    server.server_close()
    db.close()


def post(url: str, key: str, path: str = "/jobs", body: object = BODY) -> requests.Response:
    headers = {"Authorization": f"Bearer {TOKEN}", "Idempotency-Key": key}
    return requests.post(url + path, json=body, headers=headers, timeout=60)


def test_fifty_posts_with_one_key_make_one_job(url: str, fabric: Fabric) -> None:
    answers = at_once(CLIENTS, lambda _: post(url, "storm"))
    fresh = [a for a in answers if a.status_code == 201 and "Idempotent-Replayed" not in a.headers]
    replays = [a for a in answers if a.status_code == 201 and "Idempotent-Replayed" in a.headers]
    waiting = [a for a in answers if a.status_code == 409]
    assert (len(fresh), len(fresh + replays + waiting)) == (1, CLIENTS)
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in waiting)
    assert all(answer.json() == fresh[0].json() for answer in replays)
    assert fabric.value("SELECT count(*) FROM job") == 1
    again = post(url, "storm")
    assert (again.status_code, again.json(), again.headers["Idempotent-Replayed"]) == (201, fresh[0].json(), "true")
    assert fabric.value("SELECT count(*) FROM job") == 1


def test_a_storm_of_patient_clients_ends_with_one_answer_for_all(url: str, fabric: Fabric) -> None:
    def persist(_number: int) -> object:
        while True:
            answer = post(url, "patient")
            if answer.status_code != 409:
                assert answer.status_code == 201
                return answer.json()

    answers = at_once(CLIENTS, persist)
    assert all(answer == answers[0] for answer in answers)
    assert fabric.value("SELECT count(*) FROM job") == 1


@pytest.mark.parametrize("point", ["before", "after"])
def test_a_server_that_fails_before_it_answers_gives_the_first_answer_to_the_repeat(
    url: str, fabric: Fabric, plan: FaultPlan, point: str
) -> None:
    plan.faults.append(Fault("submit", point, times=1))
    assert post(url, "crash").status_code == 503
    first, second = post(url, "crash"), post(url, "crash")
    assert (first.status_code, second.status_code) == (201, 201)
    assert ("Idempotent-Replayed" in first.headers) == (point == "after")
    assert first.json() == second.json()
    assert fabric.value("SELECT count(*) FROM job") == 1


def test_fifty_stops_with_one_key_stop_once(url: str, fabric: Fabric) -> None:
    job_id = post(url, "one").json()["id"]
    answers = at_once(CLIENTS, lambda _: post(url, "stop", f"/jobs/{job_id}/stop", {"reason": "enough"}))
    done = [answer for answer in answers if answer.status_code == 200]
    assert {answer.status_code for answer in answers} <= {200, 409}
    assert len([answer for answer in done if "Idempotent-Replayed" not in answer.headers]) == 1
    assert all(answer.json() == done[0].json() for answer in done)
