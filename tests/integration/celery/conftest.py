"""A cluster of pytest-celery: one Valkey, two fabric workers on one database, and no result backend.

One for all tests of this folder: each leaves both workers with their slots free, or with jobs that it started.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from celery import Celery
from pytest_celery import CeleryBrokerCluster, CeleryTestSetup, CeleryWorkerCluster

from app.bells import Ringer, make_celery
from app.domain.job import DEFAULT_TENANT
from app.local.ports import free_port
from app.local.valkey import ValkeyServer
from app.services.stop import request_stop
from app.storage.database import Database
from config.settings import Settings, load_settings
from tests.factories import Fabric, until
from tests.integration.celery.local_nodes import LocalValkey, LocalWorker, ValkeyNode, WorkerNode
from tests.servers import TestServers

NAMES = ("north", "south")
POLL_S = 3600
"""The workers must hear bells: nothing in these tests waits for a poll."""


@pytest.fixture(scope="package")
def directory() -> Iterator[Path]:
    """A short path, since sockets lie below it."""
    root = Path(tempfile.mkdtemp(prefix="cfab-celery-", dir="/tmp"))
    root.chmod(0o711)
    yield root
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="package")
def celery_broker_cluster(directory: Path) -> Iterator[CeleryBrokerCluster]:
    """One embedded Valkey."""
    server = ValkeyServer(directory / "valkey", free_port(), "only-for-tests")
    server.create()
    server.start()
    node = ValkeyNode(LocalValkey(server))
    yield CeleryBrokerCluster(node)
    node.teardown()


@pytest.fixture(scope="package")
def celery_backend_cluster() -> None:
    """None: results are rows in PostgreSQL."""


@pytest.fixture
def celery_backend_cluster_config() -> None:
    """None, as above."""


@pytest.fixture(scope="package")
def settings(servers: TestServers, celery_broker_cluster: CeleryBrokerCluster) -> Iterator[Settings]:
    """What API and scheduler would have."""
    url = servers.database()
    yield load_settings({}, database_url=url, broker_url=celery_broker_cluster[0].config()["url"])
    servers.drop(url)


@pytest.fixture(scope="package")
def celery_setup_app(settings: Settings) -> Celery:
    """The fabric's own Celery application, as Flower and operators use it."""
    return make_celery(settings)


@pytest.fixture(scope="package")
def celery_worker_cluster(
    directory: Path, settings: Settings, celery_setup_app: Celery
) -> Iterator[CeleryWorkerCluster]:
    """Two workers that stand for two hosts; each runs two jobs at a time."""
    workers = []
    for place, name in enumerate(NAMES):
        own = {
            "CFAB_DATABASE_URL": settings.database_url, "CFAB_BROKER_URL": settings.broker_url,
            "CFAB_POLL_S": str(POLL_S), "CFAB_SLOTS": "2", "CFAB_CPUS_MILLI": "2000", "CFAB_MEMORY_MIB": "2048",
            "CFAB_JOB_UID_BASE": str(520_000 + 1000 * place), "CFAB_CONTAINER_RUNTIME": "off", "CFAB_RENEW_S": "1",
        }  # fmt: skip
        workers.append(WorkerNode(LocalWorker(name, directory, own), celery_setup_app))
    try:
        for worker in workers:
            worker.container.process.start()
        for worker in workers:
            worker.ready()
        yield CeleryWorkerCluster(*workers)
    finally:
        for worker in workers:
            worker.teardown()


@pytest.fixture
def fabric(settings: Settings, celery_setup: CeleryTestSetup) -> Iterator[Fabric]:
    """The services of the database that the cluster's workers serve. What still runs in the end is cancelled."""
    db = Database(settings.database_url)
    fabric = Fabric(db, settings)
    yield fabric
    with db.transaction() as tx:
        left = [row.id for row in tx.rows("SELECT id FROM job WHERE state < 4")]
    for job in left:
        request_stop(db, DEFAULT_TENANT, job, "the test", "it is over")
    until(lambda: fabric.value("SELECT count(*) FROM job WHERE state < 4") == 0, 60)
    db.close()


@pytest.fixture
def ringer(settings: Settings) -> Iterator[Ringer]:
    """Rings as the API does."""
    ringer = Ringer(settings)
    yield ringer
    ringer.close()
