"""Images by a tenant's policy and with a tenant's own credentials, from a job's row to its end, on a real engine and a
real registry: what was refused at submit is refused again on the node, and a secret is seen by nobody.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from app.domain.image_trust import TrustedKey
from app.domain.job import JobRequest
from app.domain.priority import PriorityClass
from app.domain.states import JobState
from app.services.image_trust import change_trust
from app.services.images import ImageGate
from app.services.inspect import job_detail
from app.services.turns import Turns
from app.services.views import JobDetail
from tests.engine import TEST_IMAGE, TestEngine
from tests.factories import Fabric, until
from tests.integration.agent.conftest import Site
from tests.signing import Shelf, Signer
from workers.agent.agent import Agent
from workers.runners.composite import Runners
from workers.runners.container import ContainerOptions, ContainerRunner

PASSWORD = "only-for-tests"
HTPASSWD = "me:$2b$04$8qAlK5RQuzWuFHdsMsiqM.rbNi4B23kYwqvAuF.Ko5BQCZy4505yS\n"
PATIENCE_S = 60.0


@pytest.fixture
def registry(docker_engine: TestEngine) -> Iterator[TestEngine]:
    docker_engine.start_registry()
    yield docker_engine
    docker_engine.stop_registry()


@pytest.fixture
def shelf(registry: TestEngine) -> Shelf:
    return Shelf(registry.registry, registry.root / "registry")


@pytest.fixture
def signer(fabric: Fabric) -> Signer:
    """Whose signature the default tenant's images must have."""
    made = Signer()
    change_trust(fabric.db, fabric.tenant, {"policy": "signed", "keys": [TrustedKey("ci", made.pem)]})
    return made


@pytest.fixture
def settings_here(docker_engine: TestEngine, directory: Path) -> dict[str, Any]:
    return {
        "registry_hosts": (f"http://{docker_engine.registry}",),
        "registry_credentials_dir": str(directory / "credentials"),
        "container_network": "none",
    }


@pytest.fixture
def host(
    site: Site, docker_engine: TestEngine, directory: Path, settings_here: dict[str, Any]
) -> Iterator[Callable[..., Agent]]:
    """Makes the agent of a node with both runners."""
    options = ContainerOptions(directory / "containers", engine=docker_engine.socket)

    def agent(**settings: Any) -> Agent:
        both = Runners(site.processes(), ContainerRunner(options))
        return site.agent("n1", runner=both, runners=("process", "container"), **{**settings_here, **settings})

    yield agent
    for one in site.agents:
        one.stop()
    last = ContainerRunner(options)
    last.shutdown_keeper(kill=True)
    last.close()


def submitted(fabric: Fabric, image: str, *command: str, tenant: UUID | None = None, **more: Any) -> UUID:
    request = JobRequest(
        type="container", priority_class=PriorityClass.FOREGROUND, contract="compute", runner="container",
        image=image, command=command or ("true",), **more,
    )  # fmt: skip
    return fabric.submit(request, tenant=tenant)[0]


def detail_of(fabric: Fabric, job: UUID, tenant: UUID | None = None) -> JobDetail:
    return job_detail(fabric.db, tenant or fabric.tenant, job)


def refused_once(fabric: Fabric, job: UUID, why: str, tenant: UUID | None = None) -> None:
    """The job failed without another try, and says why in its record and in its log."""
    detail = detail_of(fabric, job, tenant)
    assert (detail.job.state, len(detail.attempts)) == (JobState.FAILED, 1)
    assert why in (detail.attempts[0].reason or "")
    assert why in detail.stderr.decode()


class TestSignatures:
    def test_signed_image_runs_by_the_digest_that_was_checked(
        self, host: Callable[..., Agent], site: Site, fabric: Fabric, registry: TestEngine, shelf: Shelf, signer: Signer
    ) -> None:
        digest = registry.push("signed/tool:1")
        signer.sign(shelf, "signed/tool", digest)
        host()
        job = submitted(fabric, f"{registry.registry}/signed/tool:1", "echo", "ran")
        site.until_ended(job, within_s=PATIENCE_S)
        detail = detail_of(fabric, job)
        assert (detail.job.state, detail.stdout) == (JobState.COMPLETED, b"ran\n")
        assert detail.attempts[0].image_digest == digest
        said = f"image {registry.registry}/signed/tool@{digest} is signed by key ci"
        assert said in detail.stderr.decode()

    def test_tag_that_moved_after_the_submit_is_refused_on_the_node(
        self,
        host: Callable[..., Agent],
        site: Site,
        fabric: Fabric,
        registry: TestEngine,
        shelf: Shelf,
        signer: Signer,
        settings_here: dict[str, Any],
    ) -> None:
        image = f"{registry.registry}/moved/tool:1"
        signer.sign(shelf, "moved/tool", registry.push("moved/tool:1"))
        gate = ImageGate(replace(fabric.settings, **settings_here), 10.0, Turns(1, 1), 1.0)
        assert gate.admit(fabric.db, fabric.tenant, image).signer == "ci"
        job = submitted(fabric, image, max_retries=3)
        registry.import_image("cfab-moved:1", evil="x")
        registry.push("moved/tool:1", "cfab-moved:1")
        host()
        site.until_ended(job, within_s=PATIENCE_S)
        refused_once(fabric, job, "has no signature")

    def test_image_of_a_foreign_key_is_refused_on_the_node(
        self, host: Callable[..., Agent], site: Site, fabric: Fabric, registry: TestEngine, shelf: Shelf, signer: Signer
    ) -> None:
        Signer().sign(shelf, "foreign/tool", registry.push("foreign/tool:1"))
        host()
        job = submitted(fabric, f"{registry.registry}/foreign/tool:1", max_retries=3)
        site.until_ended(job, within_s=PATIENCE_S)
        refused_once(fabric, job, "none of the trusted keys")

    def test_manifest_that_was_changed_under_a_signed_digest_never_runs(
        self, host: Callable[..., Agent], site: Site, fabric: Fabric, registry: TestEngine, shelf: Shelf, signer: Signer
    ) -> None:
        registry.import_image("cfab-changed:1", good="x")
        digest = registry.push("changed/tool:1", "cfab-changed:1")
        signer.sign(shelf, "changed/tool", digest)
        manifest = json.loads(shelf.manifest("changed/tool", digest))
        shelf.tamper(digest, json.dumps({**manifest, "annotations": {"more": "layers"}}).encode())
        host()
        job = submitted(fabric, f"{registry.registry}/changed/tool@{digest}", max_retries=3)
        site.until_ended(job, within_s=PATIENCE_S)
        detail = detail_of(fabric, job)
        assert (detail.job.state, len(detail.attempts)) == (JobState.FAILED, 1)
        assert detail.attempts[0].started_at is None and "cannot be pulled" in (detail.attempts[0].reason or "")

    def test_registry_that_is_away_costs_no_retry_and_the_job_runs_when_it_is_back(
        self, host: Callable[..., Agent], site: Site, fabric: Fabric, registry: TestEngine, shelf: Shelf, signer: Signer
    ) -> None:
        signer.sign(shelf, "away/tool", registry.push("away/tool:1"))
        registry.stop_registry()
        host()
        job = submitted(fabric, f"{registry.registry}/away/tool:1")
        until(lambda: any(a.outcome for a in detail_of(fabric, job).attempts), PATIENCE_S)
        assert "cannot be used now" in (detail_of(fabric, job).attempts[0].reason or "")
        assert fabric.state(job) in (JobState.PENDING, JobState.STARTING)
        registry.start_registry()
        fabric.due()
        site.until_ended(job, within_s=PATIENCE_S)
        assert fabric.state(job) == JobState.COMPLETED

    def test_image_that_only_this_node_has_cannot_be_checked_and_is_refused(
        self, host: Callable[..., Agent], site: Site, fabric: Fabric, registry: TestEngine, signer: Signer
    ) -> None:
        host(container_pull="never")
        registry.docker("tag", TEST_IMAGE, f"{registry.registry}/local/tool:1")
        job = submitted(fabric, f"{registry.registry}/local/tool:1")
        site.until_ended(job, within_s=PATIENCE_S)
        refused_once(fabric, job, "has no local/tool")


class TestCredentials:
    @pytest.fixture
    def lab(self, fabric: Fabric, docker_engine: TestEngine, directory: Path) -> UUID:
        """A tenant with a credential of its own for the registry."""
        tenant = fabric.add_tenant("lab")
        change_trust(fabric.db, tenant, {"credentials": {docker_engine.registry: "ours"}})
        file = directory / "credentials" / "lab" / "ours.json"
        file.parent.mkdir(parents=True, mode=0o700)
        file.write_text(json.dumps({"auths": {docker_engine.registry: {"username": "me", "password": PASSWORD}}}))
        return tenant

    @pytest.fixture
    def private(self, docker_engine: TestEngine) -> Iterator[str]:
        """The digest of a private image, `secret/tool:1`."""
        docker_engine.start_registry()
        docker_engine.import_image("cfab-secret:1", secret="x")
        digest = docker_engine.push("secret/tool:1", "cfab-secret:1")
        docker_engine.stop_registry()
        docker_engine.start_registry(HTPASSWD)
        yield digest
        docker_engine.stop_registry()

    def test_tenant_s_own_credential_pulls_for_it_alone_and_is_seen_nowhere(
        self,
        host: Callable[..., Agent],
        site: Site,
        fabric: Fabric,
        docker_engine: TestEngine,
        directory: Path,
        lab: UUID,
        private: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.DEBUG)
        image = f"{docker_engine.registry}/secret/tool"
        host()
        before = submitted(fabric, f"{image}:1", max_retries=3)
        site.until_ended(before, within_s=PATIENCE_S)
        refused_once(fabric, before, "no basic auth credentials")
        ours = submitted(fabric, f"{image}:1", "sh", "-c", "env; cat /proc/1/environ", tenant=lab)
        site.until_ended(ours, within_s=PATIENCE_S)
        detail = detail_of(fabric, ours, lab)
        assert (detail.job.state, detail.attempts[0].image_digest) == (JobState.COMPLETED, private)
        # The image is on the node now. Who may not pull it may not use it either, by whichever of its names.
        by_digest = submitted(fabric, f"{image}@{private}", max_retries=3)
        site.until_ended(by_digest, within_s=PATIENCE_S)
        refused_once(fabric, by_digest, "no basic auth credentials")
        again = submitted(fabric, f"{image}@{private}", tenant=lab)
        site.until_ended(again, within_s=PATIENCE_S)
        assert detail_of(fabric, again, lab).job.state == JobState.COMPLETED
        self.seen_nowhere(fabric, directory, caplog, detail.stdout + detail.stderr)

    def test_reference_to_another_tenant_s_credential_leads_nowhere(
        self, host: Callable[..., Agent], fabric: Fabric, docker_engine: TestEngine, lab: UUID, private: str
    ) -> None:
        change_trust(fabric.db, fabric.tenant, {"credentials": {docker_engine.registry: "ours"}})
        host()
        job = submitted(fabric, f"{docker_engine.registry}/secret/tool:1")
        until(lambda: any(a.outcome for a in detail_of(fabric, job).attempts), PATIENCE_S)
        detail = detail_of(fabric, job)
        assert "'ours' of tenant default is not on this host" in (detail.attempts[0].reason or "")
        assert fabric.state(job) in (JobState.PENDING, JobState.STARTING)

    def test_signatures_of_private_images_are_read_with_the_tenant_s_credential(
        self,
        host: Callable[..., Agent],
        site: Site,
        fabric: Fabric,
        docker_engine: TestEngine,
        lab: UUID,
        private: str,
        signer: Signer,
    ) -> None:
        shelf = Shelf(docker_engine.registry, docker_engine.root / "registry", ("me", PASSWORD))
        change_trust(fabric.db, lab, {"policy": "signed", "keys": [TrustedKey("ci", signer.pem)]})
        signer.sign(shelf, "secret/tool", private)
        host()
        theirs = submitted(fabric, f"{docker_engine.registry}/secret/tool:1")
        ours = submitted(fabric, f"{docker_engine.registry}/secret/tool:1", tenant=lab)
        site.until_ended(theirs, ours, within_s=PATIENCE_S)
        assert detail_of(fabric, ours, lab).job.state == JobState.COMPLETED
        refused_once(fabric, theirs, "denies it to those who do not sign in")

    @staticmethod
    def seen_nowhere(fabric: Fabric, directory: Path, caplog: pytest.LogCaptureFixture, output: bytes) -> None:
        """Not in the job's output, the agent's log, the keeper's files, or any row of the database."""
        assert PASSWORD.encode() not in output and PASSWORD not in caplog.text
        mine = directory / "credentials"
        files = [path for path in directory.rglob("*") if path.is_file() and mine not in path.parents]
        assert [path for path in files if PASSWORD.encode() in path.read_bytes()] == []
        assert any(path.name == "keeper.log" for path in files)
        tables = fabric.all(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
        )
        found = [
            table for (table,) in tables
            if fabric.all(f'SELECT 1 FROM "{table}" AS one WHERE one::text LIKE %s LIMIT 1', f"%{PASSWORD}%")
        ]  # fmt: skip
        assert found == []
