"""From an assignment to a specification that a runner can start: command line, environment, limits."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import PurePosixPath

from app.domain.gang import RUNNER_PREFIX
from app.domain.job import Assignment
from config.settings import Settings
from workers.agent.checkpoints import CHECKPOINT
from workers.agent.confinement import Confinement
from workers.containers.recipe import FILES, WORK
from workers.runners.base import RunSpec
from workers.runners.container import ContainerSpec

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CONFIG = "config.json"


def run_spec(
    one: Assignment,
    slot: int,
    deadline: float,
    work_dir: str,
    files_dir: str,
    log_cap_bytes: int,
    sandbox: str,
    network: str,
    hide: tuple[str, ...],
    simulated_gpus: bool = False,
) -> RunSpec:
    """The specification of an assignment; `executable` follows when its binary has been fetched.

    The environment holds nothing of the agent's own: a basic PATH, HOME and the like, what the user asked for, and
    last the fabric's variables, which nobody can override. A configuration comes as a file, never in the environment.
    """
    env = {
        "PATH": PATH,
        "HOME": work_dir,
        "PWD": work_dir,
        "TMPDIR": "/tmp" if sandbox == "bubblewrap" else work_dir,
        "LANG": "C.UTF-8",
        **one.environment,
        **_fabric_env(one),
    }
    files = {}
    if one.config is not None:
        files[CONFIG] = json.dumps(one.config, separators=(",", ":"))
        env["CFAB_CONFIG"] = f"{files_dir}/{CONFIG}"
    env["CFAB_CHECKPOINT"] = f"{work_dir}/{CHECKPOINT}"
    limited = one.hard_limits
    return RunSpec(
        attempt_id=str(one.attempt_id),
        job_id=str(one.job_id),
        attempt=one.attempt,
        argv=_argv(one),
        env=env,
        deadline=deadline,
        cpus_milli=one.resources.cpus_milli if limited else None,
        memory_bytes=one.resources.memory_bytes if limited else None,
        slot=slot,
        time_limit_s=one.time_limit_s,
        grace_s=one.grace_s,
        log_cap_bytes=log_cap_bytes,
        sandbox=sandbox,
        network=network,
        hide=hide,
        gpus=() if simulated_gpus else one.gpu_uuids,
        files=files,
    )


def container_spec(one: Assignment, slot: int, deadline: float, settings: Settings) -> ContainerSpec:
    """The specification of an assignment that runs in a container of its image.

    The image's own environment, user and working directory stand; a command takes the place of its entry point, and
    without one the image's program is run with the arguments. The login for its registry comes later.
    """
    env = {"HOME": WORK, "TMPDIR": "/tmp", **one.environment, **_fabric_env(one)}
    files = {}
    if one.config is not None:
        files[CONFIG] = json.dumps(one.config, separators=(",", ":"))
        env["CFAB_CONFIG"] = f"{FILES}/{CONFIG}"
    env["CFAB_CHECKPOINT"] = f"{WORK}/{CHECKPOINT}"
    given = bool(one.command) or one.script is not None
    limited = one.hard_limits
    return ContainerSpec(
        attempt_id=str(one.attempt_id),
        job_id=str(one.job_id),
        attempt=one.attempt,
        argv=_argv(one) if given else list(one.arguments),
        env=env,
        deadline=deadline,
        cpus_milli=one.resources.cpus_milli if limited else None,
        memory_bytes=one.resources.memory_bytes if limited else None,
        slot=slot,
        time_limit_s=one.time_limit_s,
        grace_s=one.grace_s,
        log_cap_bytes=settings.log_cap_bytes,
        network=settings.container_network if one.gang is None else settings.container_gangs,
        gpus=() if settings.simulate_gpus else one.gpu_uuids,
        files=files,
        image=one.image or "",
        own_entrypoint=not given,
        pull=settings.container_pull,
    )


def gang_runners(settings: Settings, confinement: Confinement, runners: Iterable[str]) -> tuple[str, ...]:
    """For each of `runners` whose jobs here can meet those of other hosts: what says so in a node's capabilities.

    Members of gangs must reach each other at any port. Processes have the host's network unless a sandbox takes it
    away; containers never have it, unless the operator gives it to members of gangs.
    """
    shut = {
        "process": confinement.sandbox != "off" and confinement.network == "none",
        "container": settings.container_gangs == "off",
    }
    return tuple(RUNNER_PREFIX + runner for runner in runners if not shut.get(runner, False))


def _fabric_env(one: Assignment) -> dict[str, str]:
    """The fabric's own variables, which nobody can override."""
    return {
        "CFAB_JOB_ID": str(one.job_id),
        "CFAB_ATTEMPT": str(one.attempt),
        "CFAB_PREEMPTIBLE": "1" if one.preemptible else "0",
        "CFAB_GPUS": ",".join(one.gpu_uuids),
        "CUDA_VISIBLE_DEVICES": ",".join(one.gpu_uuids),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CFAB_GPU_MEMORY_BYTES": str(one.gpu_memory_bytes or ""),
        "CFAB_GPU_SHARED": "1" if one.resources.gpu_shared else "",
        "CFAB_CPUS": f"{one.resources.cpus_milli / 1000:g}",
        "CFAB_MEMORY_BYTES": str(one.resources.memory_bytes),
    }


def _argv(one: Assignment) -> list[str]:
    if one.command:
        return [*one.command, *one.arguments]
    if one.script is not None:
        return ["/bin/sh", "-c", one.script, "sh", *one.arguments]
    name = PurePosixPath((one.binary_url or "").split("?")[0].split("#")[0]).name or "program"
    return [name, *one.arguments]
