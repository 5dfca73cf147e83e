"""The invariants, each a function from evidence to the list of what breaks it. Pure: they know no server and no clock.

`ALL` names them; a run is right when every list is empty.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from tests.chaos.evidence import Attempt, Evidence, Node
from tests.chaos.witness import RESOLUTION_S, Life, lives

FINAL = {
    "completed": {"completed"},
    "failed": {"failed", "timed_out", "out_of_memory", "refused", "lost"},
    "cancelled": {"cancelled", "failed", "lost", "node_fault", "drained", "preempted"},
}
"""Which outcome of its last attempt each terminal state may stand on; a cancel may come between two attempts."""
CHARGED = {"failed", "timed_out", "out_of_memory"}
GRAVITY = (
    "refused", "lost", "node_fault", "preempted", "drained", "requeued", "out_of_memory", "timed_out", "failed",
    "cancelled", "completed",
)  # fmt: skip
"""Of the members' ends the first of these is their gang's."""


@dataclass(frozen=True)
class Try:
    """An attempt of a job, all members of a gang together; None as long as one of them has not ended.

    `exit_codes` are those of the members whose end is the gang's: of equal ones the first counts, by clocks of nodes.
    """

    number: int
    outcome: str | None
    exit_codes: frozenset[int | None]
    members: tuple[int, ...]


def nothing_lost(evidence: Evidence) -> list[str]:
    """Every job that was accepted has ended, in the one right state; and no job exists that nobody asked for."""
    problems = []
    for job_id, plan in evidence.planned.items():
        job = evidence.jobs.get(job_id)
        if job is None:
            problems.append(f"job {job_id} ({plan.key}) was accepted and is gone")
        elif job.state != plan.ends_as:
            problems.append(f"job {job_id} ({plan.key}) is {job.state}, not {plan.ends_as}")
    strangers = set(evidence.jobs) - set(evidence.planned)
    return problems + [f"job {job_id} exists, but nobody asked for it" for job_id in sorted(strangers)]


def one_result_each(evidence: Evidence) -> list[str]:
    """Each job ended once, by its last attempt; every attempt has ended; only failures of its own were charged."""
    problems = []
    tries = _tries(evidence.attempts)
    for job in evidence.jobs.values():
        mine = tries.get(job.id, [])
        if job.terminal_events != 1:
            problems.append(f"job {job.id} was told to have ended {job.terminal_events} times")
        if [a.number for a in mine] != list(range(1, len(mine) + 1)):
            problems.append(f"job {job.id} has attempts {[a.number for a in mine]}")
        problems += [f"attempt {a.number} of job {job.id} never ended" for a in mine if a.outcome is None]
        wins = [a.number for a in mine if a.outcome == "completed"]
        if len(wins) > 1 or (wins and wins[0] != len(mine)):
            problems.append(f"job {job.id} has accepted results of attempts {wins} of {len(mine)}")
        if mine and mine[-1].outcome not in FINAL.get(job.state, set()):
            problems.append(f"job {job.id} is {job.state}, but its last attempt ended {mine[-1].outcome}")
        if mine and job.state != "cancelled" and job.exit_code not in mine[-1].exit_codes:
            problems.append(f"job {job.id} has exit code {job.exit_code}, its last attempt {set(mine[-1].exit_codes)}")
        charged = sum(a.outcome in CHARGED for a in mine)
        spent = sum(a.outcome in CHARGED for a in mine[:-1])
        allowed = job.max_retries
        # The failure that ends a job spends no retry; one before a cancel has spent it already.
        right = {spent, charged} if job.state == "cancelled" else {spent}
        if job.failures not in right or job.failures > allowed:
            problems.append(
                f"job {job.id} ran again after {spent} failures and spent {job.failures} of {allowed} retries"
            )
        if job.state == "failed" and mine and mine[-1].outcome in CHARGED and charged <= allowed:
            problems.append(f"job {job.id} failed for good after {charged} failures with {allowed} retries")
    return problems


def results_are_true(evidence: Evidence) -> list[str]:
    """A completed attempt really came to its end, and everything that ran was an attempt, started once."""
    seen = {(life.job_id, life.attempt, life.member): life for life in lives(evidence.witness)}
    known = {(a.job_id, a.number, a.member) for a in evidence.attempts}
    problems = [f"job {job} ran as attempt {n}.{m}, which nobody claimed" for job, n, m in sorted(set(seen) - known)]
    problems += [
        f"attempt {number}.{member} of job {job_id} was started {life.starts} times"
        for (job_id, number, member), life in seen.items()
        if life.starts != 1
    ]
    for a in evidence.attempts:
        life = seen.get((a.job_id, a.number, a.member))
        if a.outcome == "completed" and (life is None or not life.ended):
            problems.append(f"attempt {a.number}.{a.member} of job {a.job_id} is completed, but never came to its end")
    return problems


def gangs_whole(evidence: Evidence) -> list[str]:
    """Every attempt was made with all of its job's members."""
    tries = _tries(evidence.attempts)
    return [
        f"attempt {one.number} of job {job.id} was made with members {list(one.members)} of {job.members}"
        for job in evidence.jobs.values()
        for one in tries.get(job.id, [])
        if one.members != tuple(range(job.members))
    ]


def no_overlap(evidence: Evidence, allowed_s: float = 0.0) -> list[str]:
    """No attempt of a job showed life later than `allowed_s` after a later attempt of it had begun."""
    problems = []
    for job_id, mine in _lives_by_job(evidence).items():
        for earlier in mine:
            for later in mine:
                overlap_s = earlier.ends - later.begins
                if earlier.attempt < later.attempt and overlap_s > allowed_s:
                    problems.append(
                        f"attempt {earlier.attempt} of job {job_id} lived {overlap_s:.2f} s beside {later.attempt}"
                    )
    return problems


def gpus_exclusive(evidence: Evidence) -> list[str]:
    """No GPU was used by two attempts at once, but by slices that it has the memory for, by the jobs' own account."""
    by_gpu: dict[str, list[Life]] = {}
    for life in lives(evidence.witness):
        for gpu in life.gpus:
            by_gpu.setdefault(gpu, []).append(life)
    return [
        problem
        for gpu, users in by_gpu.items()
        for problem in _gpu_problems(gpu, users, evidence.gpu_memory.get(gpu, 0))
    ]


def _gpu_problems(gpu: str, users: list[Life], memory_bytes: int) -> Iterator[str]:
    now: list[Life] = []
    for life in sorted(users, key=lambda life: life.begins):
        now = [*(other for other in now if other.ends > life.begins + RESOLUTION_S), life]
        slices = [other.slice_bytes for other in now if other.slice_bytes is not None]
        if len(now) > 1 and len(slices) < len(now):
            yield f"{gpu} was used by jobs {', '.join(other.job_id for other in now)} at once"
        elif sum(slices) > memory_bytes:
            yield f"{gpu} has {memory_bytes} bytes; slices of {slices} were used at once"


def capacity_kept(evidence: Evidence) -> list[str]:
    """No node ran more jobs or more CPUs at once than it has, by the jobs' own account."""
    where = {(a.job_id, a.number, a.member): a for a in evidence.attempts}
    changes: dict[str, list[tuple[float, int, int]]] = {}
    for life in lives(evidence.witness):
        attempt = where.get((life.job_id, life.attempt, life.member))
        if attempt is not None:
            told = changes.setdefault(attempt.node_id, [])
            told.append((life.begins + RESOLUTION_S, 1, attempt.cpus_milli))
            told.append((life.ends, -1, -attempt.cpus_milli))
    problems = []
    for node_id, told in changes.items():
        jobs, cpus_milli = _most_at_once(told)
        node = evidence.nodes[node_id]
        if jobs > node.slots or cpus_milli > node.cpus_milli:
            problems.append(f"{node_id} ran {jobs} jobs with {cpus_milli / 1000:g} CPUs at once; it has {node}")
    return problems


def never_overcommitted(evidence: Evidence) -> list[str]:
    """In every sample what is reserved on a node fits it, usage rows equal allocations, each GPU is held once."""
    problems = [] if evidence.samples else ["no sample was taken"]
    for number, sample in enumerate(evidence.samples):
        for kind, reserved in (("usage", sample.used), ("allocations", sample.allocated)):
            for node_id, much in reserved.items():
                has = evidence.nodes[node_id]
                if not _fits(much, has):
                    problems.append(f"sample {number}: {kind} of {node_id} are {much}, it has {has}")
        if sample.drift:
            problems.append(f"sample {number}: usage and allocations of {sample.drift} nodes differ")
        if sample.gpus_held_twice:
            problems.append(f"sample {number}: {sample.gpus_held_twice} GPUs are held twice")
    return problems


def nothing_left_over(evidence: Evidence) -> list[str]:
    """When all jobs have ended nothing is reserved any more."""
    return [f"{n} {what} are left" for what, n in evidence.left_over.items() if n]


def counts_right(evidence: Evidence) -> list[str]:
    """The maintained counts equal the rows, and every attempt that completed was counted at its node once."""
    problems = []
    if dict(evidence.counted) != dict(evidence.classes):
        problems.append(f"counted {dict(evidence.counted)}, but there are {dict(evidence.classes)}")
    completed = Counter(a.node_id for a in evidence.attempts if a.outcome == "completed")
    for node_id in {*completed, *evidence.completed_by_node}:
        counted = evidence.completed_by_node.get(node_id, 0)
        if completed[node_id] != counted:
            problems.append(f"{node_id} completed {completed[node_id]} attempts, {counted} are counted")
    return problems


def no_restarts(evidence: Evidence) -> list[str]:
    """Every job ran exactly once: what a broker goes through must not disturb a single job."""
    again = Counter(a.job_id for a in evidence.attempts)
    return [f"job {job_id} took {n} attempts" for job_id, n in again.items() if n != 1]


ALL: Mapping[str, Callable[[Evidence], list[str]]] = {
    check.__name__: check
    for check in (
        nothing_lost, one_result_each, results_are_true, gangs_whole, no_overlap, gpus_exclusive, capacity_kept,
        never_overcommitted, nothing_left_over, counts_right,
    )
}  # fmt: skip


def judge(evidence: Evidence, checks: Mapping[str, Callable[[Evidence], list[str]]] = ALL) -> dict[str, list[str]]:
    """Every check's findings."""
    return {name: check(evidence) for name, check in checks.items()}


def shortest_handover_s(evidence: Evidence) -> float | None:
    """The least time between the last line of an attempt and the first of a later one of its job; None without any."""
    gaps = [
        later.begins - earlier.ends
        for mine in _lives_by_job(evidence).values()
        for earlier in mine
        for later in mine
        if earlier.attempt < later.attempt
    ]
    return min(gaps, default=None)


def _tries(attempts: Iterable[Attempt]) -> dict[str, list[Try]]:
    """The attempts of each job by number."""
    together: dict[tuple[str, int], list[Attempt]] = {}
    for attempt in attempts:
        together.setdefault((attempt.job_id, attempt.number), []).append(attempt)
    found: dict[str, list[Try]] = {}
    for (job_id, number), members in sorted(together.items()):
        outcomes = {member.outcome for member in members}
        outcome = None if None in outcomes else next(one for one in GRAVITY if one in outcomes)
        codes = frozenset(member.exit_code for member in members if member.outcome == outcome)
        ranks = tuple(sorted(member.member for member in members))
        found.setdefault(job_id, []).append(Try(number, outcome, codes, ranks))
    return found


def _lives_by_job(evidence: Evidence) -> dict[str, list[Life]]:
    found: dict[str, list[Life]] = {}
    for life in lives(evidence.witness):
        found.setdefault(life.job_id, []).append(life)
    return found


def _most_at_once(changes: list[tuple[float, int, int]]) -> tuple[int, int]:
    jobs = cpus_milli = most_jobs = most_cpus = 0
    for _at, job, cpus in sorted(changes):
        jobs, cpus_milli = jobs + job, cpus_milli + cpus
        most_jobs, most_cpus = max(most_jobs, jobs), max(most_cpus, cpus_milli)
    return most_jobs, most_cpus


def _fits(much: Node, has: Node) -> bool:
    return (
        much.slots <= has.slots
        and much.cpus_milli <= has.cpus_milli
        and much.memory_bytes <= has.memory_bytes
        and much.gpus <= has.gpus
    )
