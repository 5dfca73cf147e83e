"""Jobs that share a simulated GPU under a real keeper: each sees its slice, is measured alone, is told of overuse."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

from app.domain.resources import MIB
from app.domain.states import JobState
from app.services import operate
from tests.factories import share, until
from tests.integration.agent.conftest import Site

SLICE = replace(share(gpus=1, gpu_memory=4096 * MIB), gpu_shared=True)
# What takes the memory is a child, as it is with most training programs.
PROGRAM = """echo "$CUDA_VISIBLE_DEVICES $CFAB_GPU_MEMORY_BYTES $CFAB_GPU_SHARED"
sh -c 'echo $$ > "$1"; while [ ! -e "$2" ]; do sleep 0.05; done' sh "$PID_FILE" "$OVER"; exit 0"""


class Shared:
    """Two jobs on one GPU, each with a process whose number is known."""

    def __init__(self, site: Site, **settings: Any) -> None:
        self.site, self.fabric = site, site.fabric
        self.faults, self.over = site.directory / "faults", site.directory / "over"
        site.agent(
            runner=site.processes(), simulate_gpus="A100-80GB", simulate_gpu_faults=str(self.faults), gpu_poll_s=0.05,
            gpu_sharing="memory", sample_s=0.1, **settings,
        )  # fmt: skip
        self.jobs = [self._submit(number) for number in range(2)]
        until(lambda: all(self._pid_file(number).exists() for number in range(2)))
        until(lambda: all(self._pid_file(number).read_text().strip() for number in range(2)))

    def hold(self, *mib: int) -> None:
        """What the processes of each job hold from now on."""
        lines = [f"0 process {self._pid_file(n).read_text().strip()} {size}\n" for n, size in enumerate(mib)]
        spare = self.faults.with_suffix(".new")
        spare.write_text("".join(lines))
        spare.rename(self.faults)

    def sampled(self, job_id: UUID) -> int | None:
        size: int | None = self.fabric.value(
            """SELECT max(s.gpu_memory_bytes) FROM sample s JOIN attempt a ON a.id = s.attempt_id
            WHERE a.job_id = %s""",
            job_id,
        )
        return size

    def _submit(self, number: int) -> UUID:
        environment = {"PID_FILE": str(self._pid_file(number)), "OVER": str(self.over)}
        return self.fabric.submit_one(script=PROGRAM, resources=SLICE, environment=environment)

    def _pid_file(self, number: int) -> Path:
        return self.site.directory / f"pid-{number}"


def test_each_job_is_measured_by_its_own_processes_and_told_of_overuse_at_its_end(site: Site) -> None:
    both = Shared(site)
    (card,) = operate.get_node(both.fabric.db, "n1").gpus
    assert (card.state, card.slice_bytes, len(card.job_ids)) == ("shared", 2 * 4096 * MIB, 2)
    both.hold(1000, 5000)
    until(lambda: [both.sampled(one) for one in both.jobs] == [1000 * MIB, 5000 * MIB], 60)
    both.over.touch()
    site.until_ended(*both.jobs)
    modest, greedy = [both.fabric.attempts(one)[0] for one in both.jobs]
    assert (modest.outcome, modest.reason or "") == ("completed", "")
    assert (greedy.outcome, greedy.reason) == ("completed", "it used 5.24 GB of GPU memory and had a slice of 4.29 GB")
    assert site.output(both.jobs[0]).decode() == f"{card.uuid} {4096 * MIB} 1\n"


def test_overuse_ends_the_job_where_the_operator_wants_that(site: Site) -> None:
    both = Shared(site, gpu_overuse="kill")
    both.hold(4096, 4097)
    site.until_ended(both.jobs[1], within_s=60)
    (ended,) = both.fabric.attempts(both.jobs[1])
    assert (ended.outcome, ended.limit_hit, ended.oom) == ("out_of_memory", "gpu_memory", True)
    assert ended.reason.startswith("out of GPU memory; it used ")
    assert both.fabric.state(both.jobs[0]) == JobState.RUNNING
    both.over.touch()
    site.until_ended(both.jobs[0])


def test_a_restarted_agent_knows_whose_slice_is_whose(site: Site) -> None:
    both = Shared(site)
    site.agents[0].stop()
    site.agent(
        runner=site.processes(), simulate_gpus="A100-80GB", simulate_gpu_faults=str(both.faults), gpu_poll_s=0.05,
        gpu_sharing="memory", sample_s=0.1,
    )  # fmt: skip
    both.hold(1000, 5000)
    until(lambda: [both.sampled(one) for one in both.jobs] == [1000 * MIB, 5000 * MIB], 60)
    both.over.touch()
    site.until_ended(*both.jobs)
    assert "5.24 GB" in both.fabric.attempts(both.jobs[1])[0].reason
