"""The environment tells a job its share, and users cannot say otherwise."""

from __future__ import annotations

from dataclasses import replace
from datetime import date
from uuid import UUID

from app.domain.job import DEFAULT_TENANT, Assignment
from app.domain.priority import PriorityClass
from app.domain.resources import Resources
from workers.agent.launch import run_spec

ONE = UUID(int=1)
ASSIGNMENT = Assignment(
    job_id=ONE, attempt_id=ONE, attempt=2, token=ONE, type="t", tenant_id=DEFAULT_TENANT,
    priority_class=PriorityClass.BACKGROUND, log_day=date(2024, 1, 1), resources=Resources(1500, 2**30, 2),
    hard_limits=False, gpu_uuids=("GPU-b", "GPU-a"), runner="process", binary_url=None, binary_sha256=None, image=None,
    script="true", command=(), arguments=(), environment={}, time_limit_s=None, grace_s=10.0,
)  # fmt: skip


def env_of(one: Assignment) -> dict[str, str]:
    return dict(run_spec(one, 0, 1.0, "/w", "/w/files", 1, "off", "host", ()).env)


def test_a_job_learns_its_gpus_cpus_and_memory() -> None:
    env = env_of(ASSIGNMENT)
    assert env["CFAB_GPUS"] == env["CUDA_VISIBLE_DEVICES"] == "GPU-b,GPU-a"
    assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert (env["CFAB_CPUS"], env["CFAB_MEMORY_BYTES"]) == ("1.5", str(2**30))


def test_a_job_learns_the_size_of_its_slice() -> None:
    slice_of = Resources(1500, 2**30, 1, 20 * 10**9, gpu_shared=True)
    env = env_of(replace(ASSIGNMENT, gpu_uuids=("GPU-a",), resources=slice_of, gpu_memory_bytes=20 * 10**9))
    assert (env["CUDA_VISIBLE_DEVICES"], env["CFAB_GPU_MEMORY_BYTES"]) == ("GPU-a", str(20 * 10**9))
    assert env["CFAB_GPU_SHARED"] == "1"
    assert env_of(ASSIGNMENT)["CFAB_GPU_SHARED"] == ""


def test_a_job_without_gpus_sees_none() -> None:
    env = env_of(replace(ASSIGNMENT, gpu_uuids=()))
    assert env["CFAB_GPUS"] == env["CUDA_VISIBLE_DEVICES"] == ""


def test_users_cannot_give_themselves_more() -> None:
    names = ("CFAB_GPUS", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "CFAB_CPUS", "CFAB_MEMORY_BYTES",
             "CFAB_GPU_MEMORY_BYTES", "CFAB_GPU_SHARED")  # fmt: skip
    assert "all" not in env_of(replace(ASSIGNMENT, environment=dict.fromkeys(names, "all"))).values()
