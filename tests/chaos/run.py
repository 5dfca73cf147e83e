"""A chaos run from beginning to end: jobs and blows side by side, then calm, then the verdict."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from uuid import uuid4

import psycopg2

from tests.chaos import checks
from tests.chaos import options as sizes
from tests.chaos.client import Client, Crowd, GaveUp
from tests.chaos.evidence import Evidence, Reader, execute, gather
from tests.chaos.fabric import TOKEN, Fabric, wait_until
from tests.chaos.havoc import Havoc
from tests.chaos.options import FAULTS, Options
from tests.chaos.watcher import Watcher
from tests.chaos.workload import FOR_EVER, PROGRAM, Planned, ProgramServer, draw_gpu_jobs, draw_jobs, planned_body

Say = Callable[[str], None]
GPU_RUN = {"CFAB_LEASE_S": "5", "CFAB_RENEW_S": "1", "CFAB_FENCE_MARGIN_S": "2", "CFAB_GPU_SHARING": "memory"}
UNFINISHED = "SELECT count(*) AS n FROM job WHERE state < 4"
LONG_JOBS = 8


@dataclass
class Report:
    """What a run saw, and what is wrong with it (empty lists when nothing is)."""

    findings: dict[str, list[str]]
    evidence: Evidence
    struck: Counter[str] = field(default_factory=Counter)
    exits: dict[str, int] = field(default_factory=dict)
    repeats: int = 0
    took_s: float = 0.0

    @property
    def problems(self) -> list[str]:
        """Every finding with the name of its check."""
        return [f"{name}: {text}" for name, found in self.findings.items() for text in found]

    def lines(self) -> Iterator[str]:
        """The report in words."""
        outcomes = Counter(a.outcome for a in self.evidence.attempts)
        states = Counter(job.state for job in self.evidence.jobs.values())
        gap_s = checks.shortest_handover_s(self.evidence)
        gangs = sum(job.members > 1 for job in self.evidence.jobs.values())
        yield f"{len(self.evidence.jobs)} jobs ({gangs} gangs) in {self.took_s:.0f} s: {_counts(states)}"
        yield f"{len(self.evidence.attempts)} attempts: {_counts(outcomes)}"
        yield f"{sum(self.struck.values())} strikes: {_counts(self.struck)}"
        yield f"ended by themselves and were started again: {_counts(Counter(self.exits)) or 'none'}"
        samples, lines = len(self.evidence.samples), len(self.evidence.witness)
        yield f"{self.repeats} requests sent again; {samples} samples, {lines} lines of witness"
        yield "no job had a second attempt that ran" if gap_s is None else f"shortest handover {gap_s:.2f} s"
        for name, found in self.findings.items():
            yield f"{'FAILED' if found else 'ok    '} {name}"
            yield from (f"       {text}" for text in found[:10])


def run_chaos(options: Options, say: Callable[[str], None] = print) -> Report:
    """Jobs under fire; all invariants are judged. The same seed draws the same jobs and the same order of strikes."""
    rng = random.Random(options.seed)
    with _fabric(Fabric(faults=FAULTS), options.keep, say) as fabric, _programs() as programs:
        jobs = draw_jobs(rng, options.jobs, fabric.witness, programs)
        client = Client(fabric.api_url, TOKEN)
        crowd, watcher = Crowd(client, jobs, options.seconds * 0.8), Watcher(fabric.postgres.url())
        havoc = Havoc(fabric, rng)
        began = time.monotonic()
        watcher.start()
        crowd.start()
        try:
            havoc.run(options.seconds, min(2.0, options.seconds / 24))
            say(f"calm after {options.seconds:g} s and {sum(havoc.struck.values())} strikes")
            _settle(fabric, options.patience_s, lambda: crowd.done, havoc.keep_up)
            took_s = time.monotonic() - began
            extra, deaf = fill_all_slots(fabric, client)
            jobs += extra
        finally:
            crowd.close()
            watcher.stop()
        # Jobs that were accepted, by the id that the user was given.
        planned = {client.ids[job.key]: job for job in jobs if job.key in client.ids}
        evidence = gather(fabric.postgres.url(), planned, fabric.witness, watcher.samples)
        findings = {
            "everything_was_accepted": _unasked(jobs, client, crowd),
            "every_node_still_works": deaf,
            **checks.judge(evidence),
        }
        exits = {name: role.exits for name, role in fabric.roles.items() if role.exits}
        report = Report(findings, evidence, havoc.struck, exits, client.repeats, took_s)
        if report.problems:
            say(fabric.tails(60))
        return report


def run_broker_kills(kills: int, options: Options, say: Callable[[str], None] = print) -> Report:
    """Long jobs while the broker is killed again and again: none of them may notice, none may be restarted."""
    rng = random.Random(options.seed)
    with _fabric(Fabric(), options.keep, say) as fabric:
        over = fabric.root / "over"
        jobs = [long_job(number, fabric, over) for number in range(LONG_JOBS)]
        client = Client(fabric.api_url, TOKEN)
        began = time.monotonic()
        client.submit_together(jobs)
        wait_until(lambda: started(fabric) == LONG_JOBS, 30, "the long jobs to run")
        for _ in range(kills):
            fabric.broker.kill()
            time.sleep(rng.uniform(0.05, 0.6))
            fabric.broker.start()
            time.sleep(rng.uniform(0.1, 0.9))
            for role in fabric.roles.values():
                role.keep_up()
        over.touch()
        _settle(fabric, options.patience_s, lambda: True, lambda: None)
        planned = {client.ids[job.key]: job for job in jobs}
        evidence = gather(fabric.postgres.url(), planned, fabric.witness, [])
        wanted = {name: check for name, check in checks.ALL.items() if name != checks.never_overcommitted.__name__}
        findings = checks.judge(evidence, {**wanted, "no_restarts": checks.no_restarts})
        exits = {name: role.exits for name, role in fabric.roles.items() if role.exits}
        struck = Counter({"kill broker": kills})
        return Report(findings, evidence, struck, exits, client.repeats, time.monotonic() - began)


def run_gpus(
    options: Options, bugs: Mapping[str, str] | None = None, tamper: Sequence[str] = (), say: Say = print
) -> Report:
    """Jobs that fight for few GPUs while agents and keepers are killed: no GPU may be over-used.

    `tamper` are statements run in the database first, and `bugs` are planted, to show that the run would see it.
    """
    rng = random.Random(options.seed)
    with _fabric(Fabric(GPU_RUN, bugs), options.keep, say) as fabric:
        for statement in tamper:
            execute(fabric.postgres.url(), statement)
        jobs = draw_gpu_jobs(rng, options.jobs, fabric.witness)
        client = Client(fabric.api_url, TOKEN)
        began = time.monotonic()
        client.submit_together(jobs)
        hosts = {*sizes.NODES, *(f"keeper of {node}" for node in sizes.NODES)}
        havoc = Havoc(fabric, rng, hosts)
        havoc.run(options.seconds, options.seconds / 16)
        _settle(fabric, options.patience_s, lambda: True, havoc.keep_up)
        planned = {client.ids[job.key]: job for job in jobs}
        evidence = gather(fabric.postgres.url(), planned, fabric.witness, [])
        wanted = {name: check for name, check in checks.ALL.items() if name != checks.never_overcommitted.__name__}
        exits = {name: role.exits for name, role in fabric.roles.items() if role.exits}
        took_s = time.monotonic() - began
        return Report(checks.judge(evidence, wanted), evidence, havoc.struck, exits, client.repeats, took_s)


def fill_all_slots(fabric: Fabric, client: Client, patience_s: float = 60.0) -> tuple[list[Planned], list[str]]:
    """As many jobs as there are slots, all of which must run at once: no agent is alive and deaf. (jobs, problems)."""
    over = fabric.root / "all-at-once"
    slots = sizes.SLOTS * len(sizes.NODES)
    jobs = [long_job(number, fabric, over) for number in range(slots)]
    before = started(fabric)
    problems = []
    try:
        client.submit_together(jobs)
        wait_until(lambda: started(fabric) >= before + slots, patience_s, f"{slots} jobs to run at once")
    except (TimeoutError, GaveUp) as exc:
        problems.append(f"{exc}; {started(fabric) - before} run")
    over.touch()
    _settle(fabric, 30, lambda: True, lambda: None)
    return jobs, problems


def long_job(number: int, fabric: Fabric, over: object) -> Planned:
    """A job that runs until the file `over` exists."""
    body = planned_body("background", "ok", fabric.witness) | {"script": PROGRAM}
    body["env_variables"]["UNTIL"] = str(over)
    body["arguments"] = [str(FOR_EVER), "ok"]
    return Planned(f"long-{number}-{uuid4().hex}", "ok", body)


def started(fabric: Fabric) -> int:
    """How many attempts have written their first line."""
    return fabric.witness.read_text(encoding="ascii").count("start ")


def _unasked(jobs: list[Planned], client: Client, crowd: Crowd) -> list[str]:
    problems = [f"{job.key} was never accepted" for job in jobs if job.key not in client.ids]
    return problems + ([crowd.problem] if crowd.problem else [])


def _settle(fabric: Fabric, patience_s: float, asked: Callable[[], bool], keep_up: Callable[[], None]) -> None:
    """Waits until everything was asked for and has ended; when patience ends, the checks will say what has not."""

    def settled() -> bool:
        keep_up()
        return asked() and _unfinished(fabric) == 0

    try:
        wait_until(settled, patience_s, "all jobs to end")
    except TimeoutError:
        return


def _unfinished(fabric: Fabric) -> int | None:
    try:
        reader = Reader(fabric.postgres.url())
        try:
            return int(reader.rows(UNFINISHED)[0]["n"])
        finally:
            reader.close()
    except psycopg2.Error:
        return None


@contextmanager
def _fabric(fabric: Fabric, keep: bool, say: Callable[[str], None]) -> Iterator[Fabric]:
    whole = False
    try:
        fabric.start()
        yield fabric
        whole = True
    finally:
        if not whole:
            say(fabric.tails())
        if keep:
            say(f"everything is kept in {fabric.root}")
        fabric.close(keep)


@contextmanager
def _programs() -> Iterator[ProgramServer]:
    server = ProgramServer()
    try:
        yield server
    finally:
        server.close()


def _counts(counter: Counter[str] | Counter[str | None]) -> str:
    return ", ".join(f"{n} {what}" for what, n in sorted(counter.items(), key=lambda item: str(item[0])))
