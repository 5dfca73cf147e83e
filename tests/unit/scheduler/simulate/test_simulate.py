"""Simulations: loads, runs that lose nothing, the comparisons at their own rules, and no starvation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from app.cli.simulate import command
from scheduler.planner import Rules
from scheduler.planner.line import Line
from scheduler.simulate.cluster import Cluster
from scheduler.simulate.comparison import compare, fitting
from scheduler.simulate.fabric import Ways
from scheduler.simulate.generator import Load, generate
from scheduler.simulate.report import jain, report, table
from scheduler.simulate.tally import Tally
from scheduler.simulate.trace import TraceError, TraceJob, read_trace, write_trace

SMALL = Cluster(nodes=4, gpus=4, small_part=0.0)
QUICK = Ways(plan_s=10.0)


def job(
    submit_s: float, gpus: int, runtime_s: float, gang: int = 1, word: str = "background", limit_s: float = 0
) -> TraceJob:
    return TraceJob(submit_s, "ann", word, gpus, 0, runtime_s, limit_s or runtime_s, gang)


def simulated(jobs: list[TraceJob], policy: str, ways: Ways = QUICK, cluster: Cluster = SMALL) -> Tally:
    (tally,) = compare(jobs, cluster, [policy], ways, lambda _text: None)
    return tally


def starts(tally: Tally) -> list[float]:
    return list(tally.first_start)


def test_a_seed_makes_the_same_jobs_everywhere() -> None:
    jobs = generate(Load(jobs=200, gpus=800, seed=7))
    assert jobs == generate(Load(jobs=200, gpus=800, seed=7)) != generate(Load(jobs=200, gpus=800, seed=8))
    # These figures are part of what a published result means: a load that changes needs another name.
    assert (jobs[0].submit_s, round(sum(job.all_gpus * job.runs_s for job in jobs))) == (GOLDEN_FIRST, GOLDEN_WORK)


GOLDEN_FIRST, GOLDEN_WORK = 16.378, 5394019


def test_a_trace_is_read_as_it_was_written(tmp_path: Path) -> None:
    jobs = generate(Load(jobs=50))
    write_trace(tmp_path / "jobs.csv", jobs)
    assert read_trace(tmp_path / "jobs.csv") == jobs


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("-1,ann,background,1,0,60,60,1", "submit_s must be a number of at least 0, not '-1'"),
        ("0,ann,urgent,1,0,60,60,1", "class must be one of foreground, background, best_effort, not 'urgent'"),
        ("0,ann,background,1,0,nan,60,1", "runtime_s must be a number"),
        ("0,ann,background,1,0,60,60,0", "gang must be a number of at least 1"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, problem: str) -> None:
    path = tmp_path / "jobs.csv"
    path.write_text(f"submit_s,tenant,class,gpus,gpu_memory_gb,runtime_s,limit_s,gang\n{line}\n", encoding="utf-8")
    with pytest.raises(TraceError, match=r"jobs\.csv:2") as caught:
        read_trace(path)
    assert problem in str(caught.value)


@pytest.mark.parametrize("policy", ["fabric", "easy", "fifo"])
@pytest.mark.parametrize("preempt", [False, True])
def test_every_job_runs_once_whole_and_never_more_than_there_is(policy: str, preempt: bool) -> None:
    cluster = Cluster(nodes=10, gpus=8)
    jobs = fitting(generate(Load(jobs=200, gpus=cluster.all_gpus, load=1.5, seed=3)), cluster)
    tally = simulated(jobs, policy, Ways(plan_s=120.0, preempt=preempt), cluster)
    assert tally.done == len(jobs)
    for number, one in enumerate(jobs):
        assert tally.end[number] - tally.first_start[number] >= one.runs_s - 1e-6
        assert tally.first_start[number] >= one.submit_s
    assert all(0 <= busy <= cluster.all_gpus for _time, busy in tally.series)
    assert (tally.preemptions > 0) == (tally.lost_gpu_s > 0)
    assert tally.preemptions == 0 or (policy == "fabric" and preempt)


@pytest.mark.parametrize("policy", ["fabric", "easy", "fifo"])
def test_the_same_trace_runs_the_same_way_twice(policy: str) -> None:
    jobs = fitting(generate(Load(jobs=150, gpus=SMALL.all_gpus, load=2.0)), SMALL)
    assert starts(simulated(jobs, policy)) == starts(simulated(jobs, policy))


def test_fifo_lets_nobody_pass_the_oldest() -> None:
    jobs = [job(0, 4, 100, gang=3), job(1, 4, 50, gang=2), job(2, 1, 10)]
    assert starts(simulated(jobs, "fifo")) == [0, 100, 100]


def test_easy_lets_pass_what_does_not_delay_the_oldest() -> None:
    # The gang can start at 100 when three of four nodes are free again and needs all four.
    jobs = [job(0, 4, 100, gang=3), job(1, 4, 50, gang=4), job(2, 1, 98), job(3, 1, 98), job(4, 1, 90)]
    assert starts(simulated(jobs, "easy")) == [0, 100, 2, 150, 4]


def test_a_gang_is_not_starved_by_small_jobs_and_short_ones_use_its_hole() -> None:
    small = [job(number, 1, 300 if number % 2 else 1100, limit_s=1100 + number) for number in range(16)]
    gang = job(20, 4, 100, gang=4)
    stream = [job(30 + 10 * number, 1, 300, limit_s=400 if number % 2 else 5000) for number in range(200)]
    tally = simulated([*small, gang, *stream], "fabric")
    # All limits of what ran before it are over at 1125 s, with grace; a cycle later it runs.
    assert tally.first_start[16] <= 1140
    assert any(start < tally.first_start[16] for start in starts(tally)[17:]), "nobody used the hole"


def _adversary() -> list[TraceJob]:
    """A best-effort gang under an endless stream of foreground jobs that fill more than everything."""
    stream = [job(4.0 * number, 1, 100, limit_s=200, word="foreground") for number in range(3000)]
    return sorted([*stream, job(50, 4, 60, gang=4, word="best_effort")], key=lambda one: one.submit_s)


def test_nobody_starves() -> None:
    jobs = _adversary()
    ways = Ways(plan_s=10.0, rules=Rules(starvation_s=1800))
    waited = simulated(jobs, "fabric", ways).wait_s(next(n for n, one in enumerate(jobs) if one.gang > 1))
    # Its age, the longest that anything it waits for may run, its grace, and two cycles.
    assert 1800 <= waited <= 1800 + 200 + 10 + 2 * 10


def test_without_ageing_it_starves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Line, "_starved", lambda self: [])
    jobs = _adversary()
    ways = Ways(plan_s=10.0, rules=Rules(starvation_s=1800))
    waited = simulated(jobs, "fabric", ways).wait_s(next(n for n, one in enumerate(jobs) if one.gang > 1))
    assert waited > 11_000


def test_preempted_work_is_counted_and_checkpoints_save_it() -> None:
    jobs = [job(0, 4, 1000, gang=4, word="best_effort"), job(500, 4, 10, word="foreground")]
    lost = simulated(jobs, "fabric", Ways(plan_s=10.0, preempt=True))
    assert lost.preemptions == 1 and lost.first_start[1] == 510 and lost.lost_gpu_s == 16 * 510
    saved = simulated(jobs, "fabric", Ways(plan_s=10.0, preempt=True, checkpoint_s=100))
    assert saved.lost_gpu_s == 16 * 10 and saved.end[0] < lost.end[0]


def test_jain_is_one_for_equals_and_least_for_one_who_has_all() -> None:
    assert jain([2, 2, 2, 2]) == 1 and jain([1, 0, 0, 0]) == 0.25


def test_the_report_tells_by_class_and_tenant() -> None:
    jobs = fitting(generate(Load(jobs=100, gpus=SMALL.all_gpus)), SMALL)
    found = report(compare(jobs, SMALL, ["fabric", "easy"], QUICK, lambda _text: None))
    assert {"all", "foreground", "tenant-01", "gangs"} <= set(found["fabric"]["wait_s"])
    assert 0 < found["easy"]["utilisation"] <= 1 and found["fabric"]["cycle_ms"]["max"] > 0
    assert "tenant-01" not in table(found) and "tenant-01" in table(found, tenants=True)


def test_a_planner_that_never_ran_is_told_without_numbers() -> None:
    found = report([simulated([job(0, 1, 10), job(1, 1, 10)], "fabric")])
    assert found["fabric"]["cycle_ms"] == {"p50": None, "p99": None, "max": None}
    assert "no cycle ran" in table(found)
    json.dumps(found, allow_nan=False)


def test_the_command_prints_json_and_draws(tmp_path: Path) -> None:
    done = CliRunner().invoke(command, ["--jobs", "60", "--nodes", "10", "--json", "--plot", str(tmp_path / "a.png")])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert set(told) == {"about", "fabric", "easy", "fifo"} and (tmp_path / "a.png").stat().st_size > 10_000


def test_what_cannot_be_simulated_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("tenant\nann\n", encoding="utf-8")
    done = CliRunner().invoke(command, ["--trace", str(tmp_path / "a.csv")])
    assert done.exit_code == 2 and "the header lacks" in done.output
    write_trace(tmp_path / "b.csv", [job(0, 64, 1)])
    done = CliRunner().invoke(command, ["--trace", str(tmp_path / "b.csv")])
    assert done.exit_code == 2 and "none of the 1 jobs fits" in done.output
