"""`cfab worker`: a Celery worker that carries the node agent. SIGTERM detaches; jobs go on under the keeper."""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from celery.platforms import SecurityWarning

from app.bells import Ringer, make_celery
from app.domain.errors import FabricError
from app.storage.database import Database
from app.storage.faults import parse_faults
from config.celery import CLASS_QUEUES, bell_queue, node_queue
from config.logs import set_up_logging
from config.settings import Settings, SettingsError
from workers.again import Again
from workers.agent import heart
from workers.agent.agent import Agent
from workers.agent.capacity import host_identity
from workers.agent.confinement import Confinement
from workers.agent.step import install
from workers.artifacts import ArtifactCache, CacheUnusable, FetchPolicy
from workers.runners.base import RunnerError
from workers.runners.composite import Runners
from workers.runners.container import ContainerOptions, ContainerRunner, check_engine
from workers.runners.keeper_client import KeeperOptions
from workers.runners.process import ProcessRunner
from workers.sandbox.detect import SandboxUnavailable, detect

log = logging.getLogger(__name__)

EXIT_SETUP = 2
AGENT_WAIT_S = 20


def build_agent(settings: Settings) -> tuple[Agent, Again]:
    """The agent of this host with its runner, cache and database login, and what begins anew when it sees more.

    Starts a keeper where none serves.
    """
    plan = detect(settings.sandbox, uid_base=settings.job_uid_base, network=settings.job_network)
    for warning in plan.warnings:
        log.warning("%s", warning)
    root = Path(os.path.realpath(settings.work_dir)) / settings.node
    root.mkdir(mode=0o711, parents=True, exist_ok=True)
    _take_node(root)
    policy = FetchPolicy(
        schemes=frozenset(settings.fetch_schemes), hosts=settings.fetch_hosts,
        allow_loopback=settings.fetch_allow_loopback, allow_private=settings.fetch_allow_private,
        max_bytes=settings.fetch_max_bytes, timeout_s=settings.fetch_timeout_s,
    )  # fmt: skip
    cache = ArtifactCache(root / "cache", settings.cache_max_bytes, policy)
    runner = ProcessRunner(
        KeeperOptions(
            directory=root / "keeper",
            uid_base=plan.uid_base,
            cgroups="off" if settings.sandbox == "off" else "auto",
            bwrap=plan.bwrap,
        )
    )
    containers, away = _containers(settings, root / "containers")
    both = Runners(runner, containers) if containers else runner
    secrets = [Path(settings.registry_credentials_dir)] if settings.registry_credentials_dir else []
    hide = tuple(str(p) for p in (root / "cache", settings.data_dir.expanduser(), *secrets) if p.exists())
    db = Database(
        settings.agent_url, pool_size=2, application_name=f"cfab-agent {settings.node}"[:63],
        statement_timeout_s=settings.statement_timeout_s,
        faults=parse_faults(settings.faults) if settings.faults else None,
    )  # fmt: skip
    confinement = Confinement(plan.sandbox, settings.job_network, hide)
    agent = Agent(
        db, settings, both, cache, Ringer(settings), confinement, host_identity(str(root)),
        ("process", "container") if containers else ("process",), _end_this_process, ("container",) if away else (),
    )  # fmt: skip
    return agent, Again(agent, partial(check_engine, _engine_of(settings)) if away else both.attach, _end_this_process)


def _containers(settings: Settings, directory: Path) -> tuple[ContainerRunner | None, bool]:
    """The runner of containers; None where there is to be none, or no Docker Engine answers.

    And whether containers of an earlier worker may still run unseen. Raises RunnerError where one is required.
    """
    left = (directory / "attempts").is_dir() and any((directory / "attempts").iterdir())
    if settings.container_runtime == "off" and not left:
        return None, False
    options = ContainerOptions(
        directory=directory,
        engine=_engine_of(settings),
        max_image_bytes=settings.container_images_max_bytes,
    )
    try:
        return ContainerRunner(options), False
    except RunnerError as exc:
        if settings.container_runtime == "required":
            raise
        if left:
            # Without the engine nobody can know whether they run; to hand them to other nodes would run them twice.
            log.warning("%s; jobs that an earlier worker left in containers are left to their leases till then", exc)
        else:
            log.info("this node runs no containers: %s", exc)
        return None, left


def _engine_of(settings: Settings) -> str:
    return settings.docker_host.removeprefix("unix://")


def _take_node(root: Path) -> None:
    """Makes this process the only agent of `root` till it ends: waits a little for one that is just stopping."""
    lock = os.open(root / "agent.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for _ in range(AGENT_WAIT_S * 10):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(0.1)
    raise SettingsError(f"another worker serves {root}; stop it first, or set CFAB_NODE_NAME to a name of its own")


def run(settings: Settings, argv: Sequence[str] = ()) -> int:
    """Runs the worker until SIGTERM or SIGINT; exit code 0, or 2 with a message when it cannot be set up."""
    set_up_logging(settings)
    try:
        if not settings.agent_url:
            raise SettingsError("CFAB_DATABASE_URL (or CFAB_AGENT_DATABASE_URL) must be set")
        agent, again = build_agent(settings)
    except (SettingsError, SandboxUnavailable, RunnerError, CacheUnusable, FabricError, OSError) as exc:
        print(f"cfab worker: {exc}", file=sys.stderr)
        return EXIT_SETUP
    again.start()
    _serve(settings, agent, argv)
    again.begin_if_due()
    return 0


def _serve(settings: Settings, agent: Agent, argv: Sequence[str]) -> None:
    drain_limit_s = settings.drain_limit_s if settings.drain_on_stop else None
    if not settings.broker_url:
        _run_without_broker(agent, drain_limit_s)
        return
    # The worker needs root to give every job a user of its own; no job ever runs as root.
    warnings.simplefilter("ignore", SecurityWarning)
    app = make_celery(settings)
    install(app, agent, drain_limit_s)
    heart.install(app, agent.registry)
    own = node_queue(settings.node)
    app.conf.task_queues = [*app.conf.task_queues, bell_queue(own)]
    app.worker_main(
        [
            "worker", "--pool", "solo", "--queues", ",".join((*CLASS_QUEUES, own)), "--hostname", f"{settings.node}@%h",
            "--without-mingle", "--without-gossip", "--loglevel", settings.log_level, *argv,
        ]
    )  # fmt: skip


def _run_without_broker(agent: Agent, drain_limit_s: float | None) -> None:
    """The agent alone: it polls, and everything but the speed is the same."""
    done = threading.Event()

    def end(*_: object) -> None:
        agent.give_up()
        done.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    if agent.start():
        done.wait()
        if drain_limit_s is not None:
            agent.drain(drain_limit_s)
    agent.stop()


def _end_this_process() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
