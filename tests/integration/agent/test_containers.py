"""Jobs with an image, from their row to their end, on a real Docker Engine; processes go on beside them."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from app.domain.job import JobRequest
from app.domain.priority import PriorityClass
from app.domain.resources import Resources
from app.domain.states import JobState
from app.services.inspect import job_detail
from app.services.stop import request_stop
from tests.engine import TEST_IMAGE, TestEngine
from tests.factories import Fabric, until
from tests.integration.agent.conftest import Site
from tests.integration.live.server import TOKEN, ApiProcess
from workers.agent.agent import Agent
from workers.runners.composite import Runners
from workers.runners.container import ContainerOptions, ContainerRunner

ROOT = Path(__file__).parents[3]


@pytest.fixture
def host(site: Site, docker_engine: TestEngine, directory: Path) -> Iterator[Callable[..., Agent]]:
    """Makes the agent of a node with both runners; another call is its restart."""
    opened: list[ContainerRunner] = []

    def agent(**settings: Any) -> Agent:
        opened.append(ContainerRunner(ContainerOptions(directory / "containers", engine=docker_engine.socket)))
        both = Runners(site.processes(), opened[-1])
        return site.agent("n1", runner=both, runners=("process", "container"), container_network="none", **settings)

    yield agent
    for one in site.agents:
        one.stop()
    last = ContainerRunner(ContainerOptions(directory / "containers", engine=docker_engine.socket))
    last.shutdown_keeper(kill=True)
    last.close()


def submitted(fabric: Fabric, image: str, *command: str, **more: Any) -> UUID:
    """A job that runs a command in an image."""
    request = JobRequest(
        type="container", priority_class=PriorityClass.FOREGROUND, contract="compute", runner="container",
        image=image, command=command, **more,
    )  # fmt: skip
    return fabric.submit(request)[0]


def test_image_runs_with_command_environment_and_configuration(
    host: Callable[..., Agent], site: Site, fabric: Fabric
) -> None:
    host(container_pull="never")
    program = 'echo "$WHO $CFAB_ATTEMPT"; cat "$CFAB_CONFIG"; echo oops >&2; exit 3'
    job = submitted(fabric, TEST_IMAGE, "sh", "-c", program, environment={"WHO": "me"}, config={"a": 1})
    (process,) = fabric.submit(
        JobRequest(type="process", priority_class=PriorityClass.FOREGROUND, script="echo beside")
    )
    site.until_ended(job, process)
    detail = job_detail(fabric.db, fabric.tenant, job)
    assert (detail.job.state, detail.job.exit_code) == (JobState.FAILED, 3)
    assert (detail.stdout, detail.stderr) == (b'me 1\n{"a":1}', b"oops\n")
    assert site.output(process) == b"beside\n"


def test_pulled_image_is_told_in_the_log_and_a_missing_one_is_never_tried_again(
    host: Callable[..., Agent], site: Site, fabric: Fabric, docker_engine: TestEngine
) -> None:
    docker_engine.start_registry()
    try:
        digest = docker_engine.push("team/agent:1")
        host()
        there = submitted(fabric, f"{docker_engine.registry}/team/agent:1", "true", max_retries=3)
        absent = submitted(fabric, f"{docker_engine.registry}/team/agent:2", "true", max_retries=3)
        site.until_ended(there, absent)
    finally:
        docker_engine.stop_registry()
    found = job_detail(fabric.db, fabric.tenant, there)
    assert found.job.state == JobState.COMPLETED and digest.encode() in found.stderr
    assert found.attempts[0].image_digest == digest
    refused = job_detail(fabric.db, fabric.tenant, absent)
    assert refused.job.state == JobState.FAILED and len(refused.attempts) == 1
    assert "team/agent:2" in (refused.attempts[0].reason or "")


@pytest.fixture
def typed(fabric: Fabric, directory: Path) -> Iterator[Callable[[str], subprocess.CompletedProcess[str]]]:
    """Runs a line of a shell, where `.venv/bin/cfab` speaks to an API of this fabric."""
    server = ApiProcess({"CFAB_DATABASE_URL": fabric.settings.database_url}, directory / "api.log")
    command = directory / ".venv" / "bin" / "cfab"
    command.parent.mkdir(parents=True)
    command.write_text(f"#!{sys.executable}\nfrom app.cli.main import main\nmain()\n")
    command.chmod(0o755)
    plain = {name: text for name, text in os.environ.items() if not name.startswith("CFAB_")}
    ours = {"CFAB_SERVER_URL": server.url, "CFAB_API_TOKEN": TOKEN, "PYTHONPATH": str(ROOT)}

    def run(line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", line], cwd=directory, env=plain | ours,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    try:
        server.start()
        yield run
    finally:
        server.kill()


def test_image_is_submitted_followed_and_shown_as_the_readme_has_it(
    host: Callable[..., Agent],
    typed: Callable[[str], subprocess.CompletedProcess[str]],
    docker_engine: TestEngine,
) -> None:
    (line,) = re.findall(r"^\.venv/bin/cfab submit --image .*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert "busybox:1.36" in line
    docker_engine.start_registry()
    try:
        digest = docker_engine.push("team/typed:1")
        image = f"{docker_engine.registry}/team/typed:1"
        host()
        done = typed(line.replace("busybox:1.36", image))
        assert (done.returncode, done.stdout) == (0, "42 in a container\n"), done.stderr
        job = done.stderr.split()[0]
        failed = typed(f"""NAME=me; .venv/bin/cfab submit --image {image} --env WHO=$NAME --arg -c --wait \\
            -- sh 'echo $WHO $0 $1 >&2; exit 3' zero one""")
        assert failed.returncode == 1 and "exit code 3" in failed.stderr + failed.stdout
        again = typed(f".venv/bin/cfab logs {failed.stderr.split()[0]} 2>&1").stdout
    finally:
        docker_engine.stop_registry()
    assert "me zero one\n" in again
    shown = typed(f".venv/bin/cfab show {job}").stdout
    assert f"image         {image}\nimage digest  {digest}\ncommand       sh\n" in shown
    assert "type          typed\n" in shown and "completed" in shown


def test_registry_that_is_away_costs_no_retry_and_the_job_waits(
    host: Callable[..., Agent], site: Site, fabric: Fabric, docker_engine: TestEngine
) -> None:
    host()
    job = submitted(fabric, f"{docker_engine.registry}/team/tool:1", "true")
    until(lambda: any(a.outcome for a in job_detail(fabric.db, fabric.tenant, job).attempts))
    detail = job_detail(fabric.db, fabric.tenant, job)
    assert "connection refused" in (detail.attempts[0].reason or "")
    assert fabric.state(job) in (JobState.PENDING, JobState.STARTING)


def test_container_goes_on_while_agent_and_keeper_are_replaced(
    host: Callable[..., Agent], site: Site, fabric: Fabric, directory: Path
) -> None:
    first = host(container_pull="never")
    program = "echo one; while [ ! -e /work/go ]; do sleep 0.05; done; echo two"
    job = submitted(fabric, TEST_IMAGE, "sh", "-c", program)
    until(lambda: fabric.state(job) == JobState.RUNNING)
    first.stop()
    keeper = first._runner._containers.hello["pid"]  # type: ignore[attr-defined]
    os.kill(keeper, signal.SIGKILL)
    host(container_pull="never")
    (attempt,) = job_detail(fabric.db, fabric.tenant, job).attempts
    (directory / "containers" / "attempts" / str(attempt.id) / "work" / "go").touch()
    site.until_ended(job)
    detail = job_detail(fabric.db, fabric.tenant, job)
    assert (detail.job.state, len(detail.attempts), detail.stdout) == (JobState.COMPLETED, 1, b"one\ntwo\n")


def test_stop_and_limits_reach_the_container(host: Callable[..., Agent], site: Site, fabric: Fabric) -> None:
    host(container_pull="never")
    stopped = submitted(fabric, TEST_IMAGE, "sleep", "1000")
    late = submitted(fabric, TEST_IMAGE, "sleep", "1000", time_limit_s=0.5, grace_s=0.5)
    hungry = submitted(
        fabric, TEST_IMAGE, "dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1",
        resources=Resources(cpus_milli=100, memory_bytes=32 << 20),
    )  # fmt: skip
    until(lambda: fabric.state(stopped) == JobState.RUNNING)
    request_stop(fabric.db, fabric.tenant, stopped, "user", "enough")
    site.until_ended(stopped, late, hungry)
    assert fabric.state(stopped) == JobState.CANCELLED
    (attempt,) = job_detail(fabric.db, fabric.tenant, late).attempts
    assert attempt.limit_hit == "time"
    (attempt,) = job_detail(fabric.db, fabric.tenant, hungry).attempts
    assert attempt.oom


def test_private_image_needs_the_node_s_credentials(
    host: Callable[..., Agent], site: Site, fabric: Fabric, docker_engine: TestEngine, directory: Path
) -> None:
    docker_engine.start_registry()
    docker_engine.push("private/tool:1")
    docker_engine.stop_registry()
    # The password is only-for-tests.
    docker_engine.start_registry("me:$2b$04$8qAlK5RQuzWuFHdsMsiqM.rbNi4B23kYwqvAuF.Ko5BQCZy4505yS\n")
    try:
        auth = directory / "config.json"
        auth.write_text('{"auths": {}}')
        host(registry_auth=str(auth))
        refused = submitted(fabric, f"{docker_engine.registry}/private/tool:1", "true")
        site.until_ended(refused)
        coded = base64.b64encode(b"me:only-for-tests").decode()
        auth.write_text(json.dumps({"auths": {docker_engine.registry: {"auth": coded}}}))
        allowed = submitted(fabric, f"{docker_engine.registry}/private/tool:1", "env")
        site.until_ended(allowed)
    finally:
        docker_engine.stop_registry()
    assert (fabric.state(refused), fabric.state(allowed)) == (JobState.FAILED, JobState.COMPLETED)
    assert "no basic auth" in (job_detail(fabric.db, fabric.tenant, refused).attempts[0].reason or "")
    detail = job_detail(fabric.db, fabric.tenant, allowed)
    assert b"only-for-tests" not in detail.stdout + detail.stderr
