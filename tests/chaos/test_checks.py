"""Every check can fail: evidence of a right run passes all of them, one doctored fact fails the one that guards it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos import checks
from tests.chaos.evidence import Attempt, Evidence, Job, Node, Sample
from tests.chaos.witness import Line, lives, read_witness
from tests.chaos.workload import Planned

HAS = Node(slots=2, cpus_milli=1000, memory_bytes=2**30, gpus=1)
ROOM = Node(slots=2, cpus_milli=600, memory_bytes=2**29, gpus=1)
RIGHT = Sample({"n": ROOM}, {"n": ROOM}, drift=0, gpus_held_twice=0)

Doctor = Callable[[Evidence], Evidence]


def lines(
    job_id: str, attempt: int, begins: float, ends: float, gpu: str = "", ended: bool = True, member: int = 0
) -> list[Line]:
    gpus = (gpu,) if gpu else ()
    return [
        Line("start", job_id, attempt, begins, gpus, member=member),
        Line("end" if ended else "alive", job_id, attempt, ends, gpus, member=member),
    ]


def slices(gpu: str, *sizes: int) -> list[Line]:
    """Attempts that are alive at the same time, each with so many bytes of the GPU."""
    return [Line(word, f"slice-{n}", 1, at, (gpu,), size) for n, size in enumerate(sizes) for word, at in
            (("start", 11.0), ("end", 12.0))]  # fmt: skip


def right() -> Evidence:
    """One job that ran once on a GPU, one that was lost and ran again, one that failed twice with one retry; a gang of
    two that lost a host, upon which the other member failed, and ran again."""
    return Evidence(
        planned={
            "once": Planned("a", "ok", {}),
            "lost": Planned("b", "ok", {}),
            "fails": Planned("c", "fail", {}),
            "gang": Planned("d", "ok", {}),
        },
        jobs={
            "once": Job("once", "completed", 0, 0, 0, 1),
            "lost": Job("lost", "completed", 0, 0, 0, 1),
            "fails": Job("fails", "failed", 1, 1, 7, 1),
            "gang": Job("gang", "completed", 0, 0, 0, 1, members=2),
        },
        attempts=[
            Attempt("once", 1, "n", "completed", 0, 500, ("GPU-1",)),
            Attempt("lost", 1, "n", "lost", None, 500, ("GPU-1",)),
            Attempt("lost", 2, "n", "completed", 0, 500),
            Attempt("fails", 1, "n", "failed", 7, 500),
            Attempt("fails", 2, "n", "failed", 7, 500),
            Attempt("gang", 1, "n", "failed", 1, 500),
            Attempt("gang", 1, "n", "lost", None, 500, member=1),
            Attempt("gang", 2, "n", "completed", 0, 500),
            Attempt("gang", 2, "n", "completed", 0, 500, member=1),
        ],
        nodes={"n": HAS},
        witness=[
            *lines("once", 1, 10.0, 12.0, "GPU-1"),
            *lines("lost", 1, 12.5, 14.0, "GPU-1", ended=False),
            *lines("lost", 2, 14.0, 16.0),
            *lines("fails", 1, 10.0, 11.0),
            *lines("fails", 2, 12.0, 13.0),
            *lines("gang", 1, 20.0, 21.0, ended=False),
            *lines("gang", 1, 20.0, 22.0, ended=False, member=1),
            *lines("gang", 2, 23.0, 24.0),
            *lines("gang", 2, 23.0, 24.0, member=1),
        ],
        samples=[RIGHT],
        counted={(1, "completed"): 3, (1, "failed"): 1},
        classes={(1, "completed"): 3, (1, "failed"): 1},
        completed_by_node={"n": 4},
        left_over={"allocations": 0, "leases": 0, "gpu_holds": 0, "usage_rows": 0},
        gpu_memory={"GPU-1": 80, "GPU-2": 80},
    )


def with_job(job_id: str, **changes: object) -> Doctor:
    return lambda e: replace(e, jobs={**e.jobs, job_id: replace(e.jobs[job_id], **changes)})  # type: ignore[arg-type]


def with_attempt(place: int, **changes: object) -> Doctor:
    def doctor(e: Evidence) -> Evidence:
        changed = replace(e.attempts[place], **changes)  # type: ignore[arg-type]
        return replace(e, attempts=[*e.attempts[:place], changed, *e.attempts[place + 1 :]])

    return doctor


def with_lines(*more: Line) -> Doctor:
    return lambda e: replace(e, witness=[*e.witness, *more])


def without_job(job_id: str) -> Doctor:
    return lambda e: replace(e, jobs={name: job for name, job in e.jobs.items() if name != job_id})


def with_sample(**changes: object) -> Doctor:
    return lambda e: replace(e, samples=[RIGHT, replace(RIGHT, **changes)])  # type: ignore[arg-type]


def test_right_evidence_passes_every_check() -> None:
    assert not any(checks.judge(right()).values())
    assert not checks.no_restarts(replace(right(), attempts=right().attempts[:1]))


def test_slices_that_fit_are_no_fault() -> None:
    assert checks.gpus_exclusive(with_lines(*slices("GPU-2", 40, 40))(right())) == []


@pytest.mark.parametrize(
    ("check", "doctor"),
    [
        pytest.param(checks.nothing_lost, without_job("once"), id="a job is gone"),
        pytest.param(checks.nothing_lost, with_job("lost", state="pending"), id="a job never ended"),
        pytest.param(checks.nothing_lost, with_job("fails", state="completed"), id="a failure counts as success"),
        pytest.param(
            checks.nothing_lost,
            lambda e: replace(e, jobs={**e.jobs, "twin": Job("twin", "completed", 0, 0, 0, 1)}),
            id="one submit made two jobs",
        ),
        pytest.param(checks.one_result_each, with_job("once", terminal_events=2), id="a job ended twice"),
        pytest.param(checks.one_result_each, with_attempt(1, outcome="completed"), id="two results accepted"),
        pytest.param(checks.one_result_each, with_attempt(2, outcome=None), id="an attempt never ended"),
        pytest.param(checks.one_result_each, with_attempt(2, number=3), id="an attempt is missing"),
        pytest.param(checks.one_result_each, with_attempt(0, exit_code=1), id="the result is another's"),
        pytest.param(checks.one_result_each, with_attempt(1, outcome="failed"), id="a loss was charged"),
        pytest.param(checks.one_result_each, with_job("fails", max_retries=2), id="a retry was withheld"),
        pytest.param(checks.one_result_each, with_attempt(8, outcome=None), id="a member never ended"),
        pytest.param(checks.one_result_each, with_attempt(8, outcome="lost"), id="a gang completed without a member"),
        pytest.param(checks.one_result_each, with_attempt(6, outcome="cancelled"), id="a failure was not charged"),
        pytest.param(checks.gangs_whole, with_job("gang", members=3), id="half a gang was placed"),
        pytest.param(checks.gangs_whole, with_attempt(7, member=1), id="a member was placed twice"),
        pytest.param(
            checks.results_are_true, with_lines(*lines("gang", 1, 20, 21, member=2)), id="a stranger ran in a gang"
        ),
        pytest.param(
            checks.no_overlap,
            with_lines(Line("alive", "gang", 1, 23.1, member=1)),
            id="a member lived beside the next attempt",
        ),
        pytest.param(checks.results_are_true, with_lines(*lines("once", 2, 20, 21)), id="ran unclaimed"),
        pytest.param(checks.results_are_true, with_lines(*lines("once", 1, 20, 21)), id="one attempt ran twice"),
        pytest.param(
            checks.results_are_true,
            lambda e: replace(e, witness=[line for line in e.witness if line.word != "end"]),
            id="completed without an end",
        ),
        pytest.param(checks.no_overlap, with_lines(Line("alive", "lost", 1, 14.2)), id="an attempt outlived its lease"),
        pytest.param(
            checks.gpus_exclusive,
            with_lines(Line("alive", "once", 1, 12.6, ("GPU-1",))),
            id="a GPU in two attempts",
        ),
        pytest.param(
            checks.gpus_exclusive,
            with_lines(*slices("GPU-2", 40, 60)),
            id="slices beyond a GPU's memory",
        ),
        pytest.param(
            checks.gpus_exclusive,
            with_lines(*slices("GPU-1", 40)),
            id="a slice of a GPU that another has to itself",
        ),
        pytest.param(checks.capacity_kept, with_attempt(3, cpus_milli=600), id="more CPUs than the node has"),
        pytest.param(
            checks.capacity_kept,
            lambda e: replace(e, nodes={"n": replace(HAS, slots=1)}),
            id="more jobs than the node has slots",
        ),
        pytest.param(
            checks.never_overcommitted,
            with_sample(used={"n": replace(ROOM, cpus_milli=1001)}),
            id="usage above the node",
        ),
        pytest.param(
            checks.never_overcommitted,
            with_sample(allocated={"n": replace(ROOM, gpus=2)}),
            id="allocations above the node",
        ),
        pytest.param(checks.never_overcommitted, with_sample(drift=1), id="usage off by one"),
        pytest.param(checks.never_overcommitted, with_sample(gpus_held_twice=1), id="a GPU held twice"),
        pytest.param(checks.never_overcommitted, lambda e: replace(e, samples=[]), id="nobody looked"),
        pytest.param(checks.nothing_left_over, lambda e: replace(e, left_over={"usage_rows": 1}), id="usage is left"),
        pytest.param(
            checks.counts_right,
            lambda e: replace(e, counted={(1, "completed"): 4, (1, "failed"): 1}),
            id="a count is off by one",
        ),
        pytest.param(checks.counts_right, lambda e: replace(e, completed_by_node={"n": 3}), id="an end is not counted"),
        pytest.param(checks.no_restarts, lambda e: e, id="a job was restarted"),
    ],
)
def test_a_doctored_fact_fails_its_check(check: Callable[[Evidence], list[str]], doctor: Doctor) -> None:
    assert check(doctor(right()))


def test_members_of_gangs_are_told_apart_in_the_witness(tmp_path: Path) -> None:
    path = tmp_path / "witness"
    path.write_text("start job 2.1 10.00 GPU-1@40\nstart job 2 10.00 -\n", encoding="ascii")
    assert [(life.attempt, life.member) for life in lives(read_witness(path))] == [(2, 0), (2, 1)]


def test_a_torn_line_of_the_witness_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "witness"
    path.write_text("start job 1 10.00 -\nalive job 1 10.\n", encoding="ascii")
    with pytest.raises(ValueError, match="no job writes"):
        read_witness(path)
