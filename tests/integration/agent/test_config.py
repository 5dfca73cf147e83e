"""The configuration of a job: from the ai contract, over a real node and keeper, into the hands of the program."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from app.api.factory import create_app
from app.api.ids import parse_id
from app.domain.states import JobState
from app.services import recover
from app.services.inspect import job_detail
from app.services.stop import request_stop
from tests.factories import job, until
from tests.integration.agent.conftest import Site

TOKEN = "t0ken-of-the-test-stack"
SECRET = "do-not-tell-7f3a"
CONFIG: dict[str, Any] = {
    "model": "resnet50",
    "batch_size": 32,
    "rate": 1e-05,
    "whole": 1.0,
    "large": 12345678901234567890,
    "none": None,
    "flags": [True, False, [], {}],
    "text": "line\nnext\ttab \"quoted\" \\ back ☃ \U0001f600 '$HOME' `id`",
    "nested": {"é": {"": [1, 2.5, "x"]}},
    "secret": SECRET,
}


@pytest.fixture
def client(site: Site) -> Iterator[FlaskClient]:
    class Silent:
        def ring(self, _priority_class: object) -> None:
            """Agents poll in these tests."""

        def wake_node(self, _node: str) -> None:
            """As above."""

        def hint(self, _job_ids: object) -> None:
            """Nobody follows."""

    yield create_app(replace(site.fabric.settings, api_token=TOKEN), site.fabric.db, Silent()).test_client()


def submit(client: FlaskClient, **changes: Any) -> str:
    answer = client.post(
        "/ai/api/v1/jobs/",
        json={"job_type": "inference", **changes},
        headers={"Authorization": f"Bearer {TOKEN}"},
    )
    assert answer.status_code == 201, answer.text
    return str(answer.json["id"])


def test_a_job_of_the_ai_contract_reads_its_config(
    site: Site, client: FlaskClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    site.agent(runner=site.processes())
    script = 'cat "$CFAB_CONFIG"; echo "$CFAB_CONFIG" >&2; env >&2; tr "\\0" " " </proc/$$/cmdline >&2'
    shown = submit(client, script=script, config=CONFIG)
    job_id = parse_id("job-", shown)
    site.until_ended(job_id)
    detail = job_detail(site.fabric.db, site.fabric.tenant, job_id)
    assert site.fabric.state(job_id) == JobState.COMPLETED, detail
    assert json.loads(detail.stdout) == CONFIG
    # Where the file is, is told in the environment; what is in it is told nowhere else.
    told = detail.stderr.decode()
    assert SECRET not in told
    assert SECRET not in caplog.text
    path = Path(told.splitlines()[0])
    assert path.name == "config.json"
    assert not path.parent.exists()
    left = [one for one in (site.directory / "keeper").rglob("*") if one.is_file() and SECRET in one.read_text("utf-8")]
    assert left == []
    answer = client.get(f"/ai/api/v1/jobs/{shown}", headers={"Authorization": f"Bearer {TOKEN}"})
    assert answer.json["config"] == CONFIG


def test_a_job_without_config_has_no_file_and_an_empty_one_has(site: Site, client: FlaskClient) -> None:
    site.agent(runner=site.processes())
    script = 'echo "${CFAB_CONFIG-none}"; [ -z "$CFAB_CONFIG" ] || cat "$CFAB_CONFIG"'
    bare, empty = (parse_id("job-", submit(client, script=script, **more)) for more in ({}, {"config": {}}))
    site.until_ended(bare, empty)
    assert site.output(bare) == b"none\n"
    assert site.output(empty).splitlines()[-1] == b"{}"


def test_the_variable_cannot_be_overridden(site: Site) -> None:
    site.agent(runner=site.processes())
    (job_id,) = site.fabric.submit(
        job(script='cat "$CFAB_CONFIG"', config={"a": 1}, environment={"CFAB_CONFIG": "/etc/passwd"})
    )
    site.until_ended(job_id)
    assert site.output(job_id) == b'{"a":1}'


def test_each_attempt_gets_the_config(site: Site) -> None:
    site.agent(runner=site.processes())
    (job_id,) = site.fabric.submit(
        job(script='cat "$CFAB_CONFIG"; exit 1', config={"a": [1]}, max_retries=1, backoff_s=0.01)
    )

    def ended() -> bool:
        recover.promote(site.fabric.db)
        return site.fabric.state(job_id) == JobState.FAILED

    until(ended)
    assert [one.outcome for one in site.fabric.attempts(job_id)] == ["failed", "failed"]
    assert site.output(job_id) == b'{"a":[1]}'


def test_the_largest_config_arrives(site: Site, client: FlaskClient) -> None:
    site.agent(runner=site.processes())
    config = {"text": '"\\' * (2**18 - 10)}
    shown = submit(client, script='cksum <"$CFAB_CONFIG"', config=config)
    job_id = parse_id("job-", shown)
    site.until_ended(job_id)
    size = len(json.dumps(config, separators=(",", ":")))
    assert site.output(job_id).split()[1] == str(size).encode()


def test_other_runners_get_the_file_too(site: Site) -> None:
    agent = site.agent()
    (job_id,) = site.fabric.submit(job(config={"a": 1}, environment={"FAKE_DURATION_S": "forever"}))
    runner = site.runners["n1"]
    until(lambda: bool(runner.attach()))
    (held,) = runner.attach()
    assert Path(runner.files_dir(held.attempt_id), "config.json").read_text("utf-8") == '{"a":1}'
    request_stop(site.fabric.db, site.fabric.tenant, job_id, "ann")
    agent.wake()
    site.until_ended(job_id)
    assert not Path(runner.files_dir(held.attempt_id)).exists()
