"""Jobs on a real agent with real GPUs: each sees its own alone, and is sampled with what it takes there.

The job that takes memory calls the driver's library by ctypes, so that nothing but the driver is needed.
"""

from __future__ import annotations

import sys

from app.domain.states import JobState
from app.services import operate
from tests.factories import job, share, until
from tests.integration.agent.conftest import Site

TAKEN_MIB = 512
TAKE = f"""
import ctypes, sys, time
cuda = ctypes.CDLL("libcuda.so.1")
def check(code, what):
    if code:
        sys.exit(f"{{what}} failed with {{code}}")
check(cuda.cuInit(0), "cuInit")
count = ctypes.c_int()
check(cuda.cuDeviceGetCount(ctypes.byref(count)), "cuDeviceGetCount")
device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
check(cuda.cuDeviceGet(ctypes.byref(device), 0), "cuDeviceGet")
check(cuda.cuCtxCreate_v2(ctypes.byref(context), 0, device), "cuCtxCreate")
check(cuda.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t({TAKEN_MIB} * 2**20)), "cuMemAlloc")
print("sees", count.value, flush=True)
time.sleep(600)
"""


def test_a_job_sees_its_own_gpu_alone(site: Site, smi: list[list[str]]) -> None:
    fabric = site.fabric
    site.agent(runner=site.processes())
    script = 'echo "visible $CUDA_VISIBLE_DEVICES order $CUDA_DEVICE_ORDER"; nvidia-smi -L'
    one = fabric.submit_one(script=script, resources=share(gpus=1))
    site.until_ended(one)
    assert fabric.state(one) == JobState.COMPLETED
    output = site.output(one).decode()
    (uuid,) = fabric.attempts(one)[0].gpu_uuids
    assert uuid in {row[1] for row in smi}
    assert f"visible {uuid} order PCI_BUS_ID" in output
    assert uuid in output.split("PCI_BUS_ID", 1)[1], "nvidia-smi lists the job's GPU"


def test_no_more_jobs_run_than_there_are_gpus(site: Site, smi: list[list[str]]) -> None:
    fabric = site.fabric
    site.agent(runner=site.processes(), slots=32)
    jobs = fabric.submit(*[job(script="sleep 600", resources=share(gpus=1))] * (len(smi) + 1))
    until(lambda: sum(fabric.state(one) == JobState.RUNNING for one in jobs) == len(smi))
    assert fabric.state(jobs[-1]) == JobState.PENDING
    assert [one.state for one in operate.get_node(fabric.db, "n1").gpus] == ["held"] * len(smi)


def test_a_job_is_sampled_with_the_memory_that_it_takes(site: Site) -> None:
    fabric = site.fabric
    site.agent(runner=site.processes(), sample_s=0.5, gpu_poll_s=0.5)
    one = fabric.submit_one(script=f"exec {sys.executable} -c '{TAKE}'", resources=share(gpus=1))
    until(lambda: b"sees 1" in site.output(one) or fabric.state(one) > JobState.STOPPING, 60)
    assert fabric.state(one) == JobState.RUNNING, site.output(one)
    until(lambda: bool(fabric.all("SELECT 1 FROM sample WHERE gpu_memory_bytes >= %s", TAKEN_MIB * 2**20)), 60)


def test_the_memory_of_a_job_takes_its_gpu_out_for_nobody(site: Site) -> None:
    fabric = site.fabric
    site.agent(runner=site.processes(), gpu_poll_s=0.2, gpu_stranger_mib=256)
    one = fabric.submit_one(script=f"exec {sys.executable} -c '{TAKE}'", resources=share(gpus=1))
    until(lambda: b"sees 1" in site.output(one) or fabric.state(one) > JobState.STOPPING, 60)
    until(lambda: (operate.get_node(fabric.db, "n1").gpus[0].readings.get("memory_used_bytes") or 0) > 2**28, 60)
    assert all(gpu.healthy for gpu in operate.get_node(fabric.db, "n1").gpus)
