"""What the demo shows, scene by scene. Each submits real jobs, follows them, and records what it saw."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psutil

from app.cli.client import Client
from app.cli.failure import ExitCode, Failure
from app.cli.follow import pieces
from app.local.demo.fabric import GPUS, Fabric
from app.local.demo.programs import Program, Programs, primes_below
from app.local.demo.report import Outcome, Report

# No scene takes a tenth of this; a demo that hangs is a demo that failed.
PATIENCE_S = 60.0
LIMITS = {"foreground": 20_000, "background": 17_500, "best_effort": 15_000}
FACTORED, FACTORS = "1000000016000000063", "1000000007 1000000009"
STEPS = 20


@dataclass(frozen=True)
class Seen:
    """What a scene saw, and whether it is what it should have been."""

    right: bool
    words: str


@dataclass(frozen=True)
class Stage:
    """What every scene needs."""

    fabric: Fabric
    programs: Programs
    report: Report


class Watch:
    """A job being followed in a thread: its lines so far, with the times they were written and came here."""

    def __init__(self, stage: Stage, name: str, job_id: str) -> None:
        self.name = name
        self.lines: list[Line] = []
        self._report = stage.report
        self._said = threading.Condition()
        threading.Thread(target=self._follow, args=(stage.fabric.client, job_id), daemon=True).start()

    def wait_for(self, number: int) -> None:
        """Return when the job has written `number` lines. Raises Failure after PATIENCE_S."""
        with self._said:
            if not self._said.wait_for(lambda: len(self.lines) >= number, PATIENCE_S):
                raise Failure(ExitCode.TIMEOUT, f"{self.name} wrote {len(self.lines)} lines, not {number}")

    def _follow(self, client: Client, job_id: str) -> None:
        rest = ""
        try:
            for piece in pieces(client, job_id):
                *whole, rest = (rest + piece["text"]).split("\n")
                for text in whole:
                    self._report.say(text, self.name)
                    with self._said:
                        self.lines.append(Line(text, piece["time"], time.time()))
                        self._said.notify_all()
        except Failure as failure:
            self._report.say(f"the log broke off: {failure.message}", self.name)


@dataclass(frozen=True)
class Line:
    """A line of output; unix times."""

    text: str
    written_at: float
    came_at: float


def submit(stage: Stage, name: str, program: Program, priority: str, *arguments: str) -> tuple[Client, str]:
    """Submit `program` and say so."""
    client = stage.fabric.client
    body = {"type": name, "binary_url": program.url, "binary_sha256": program.sha256, "priority": priority}
    job = client.submit(body | {"arguments": list(arguments)})
    stage.report.say(f"submitted as {job['id']}, {priority}", name)
    return client, str(job["id"])


def ended(client: Client, job_id: str) -> dict[str, Any]:
    """The job once it has ended."""
    return client.wait(job_id, PATIENCE_S, lambda job: None)


def count_primes(stage: Stage, priority: str) -> Seen:
    """A script by URL and SHA-256; its result is held against a sum of our own."""
    limit = LIMITS[priority]
    client, job_id = submit(stage, priority, stage.programs.primes, priority, str(limit))
    watch = Watch(stage, priority, job_id)
    count, last = primes_below(limit)
    job = ended(client, job_id)
    watch.wait_for(5)
    result = f"result: {count} primes below {limit}, the last is {last}\n"
    right = job["status"] == "completed" and job["exit_code"] == 0 and job["stdout"].endswith(result)
    return Seen(right, f"{job['status']}, {_last_line(job)}")


def factor_number(stage: Stage, program: Program) -> Seen:
    """A compiled program, fetched and verified like any other."""
    client, job_id = submit(stage, "factor", program, "foreground", FACTORED)
    watch = Watch(stage, "factor", job_id)
    job = ended(client, job_id)
    watch.wait_for(1)
    right = job["status"] == "completed" and job["stdout"] == f"{FACTORED}: {FACTORS}\n"
    return Seen(right, f"{job['status']}, {_last_line(job)}")


def refuse_wrong_checksum(stage: Stage) -> Seen:
    """A program that is not the one asked for is never run and never tried again."""
    wrong = Program(stage.programs.primes.url, "0" * 64)
    client, job_id = submit(stage, "wrong-sum", wrong, "foreground", "10")
    job = ended(client, job_id)
    message = str(job.get("message") or "")
    stage.report.say(f"{job['status']}: {message}", "wrong-sum")
    attempts = [(attempt["outcome"], attempt["started_at"]) for attempt in job["attempts"]]
    right = job["status"] == "failed" and attempts == [("refused", None)] and "SHA-256" in message
    tries = ", ".join(f"{how}, {f'started {at}' if at else 'never started'}" for how, at in attempts)
    return Seen(right, f"{job['status']}, {tries}")


def pin_gpu(stage: Stage) -> Seen:
    """A job that asks for a GPU sees the one that the fabric gave it, and no other."""
    client = stage.fabric.client
    body = {"type": "gpu", "script": 'echo "$CUDA_VISIBLE_DEVICES"', "priority": "foreground"}
    job_id = str(client.submit(body | {"resources": {"gpus": 1}})["id"])
    stage.report.say(f"submitted as {job_id}, one of the {GPUS} that are pretended here", "gpu")
    job = ended(client, job_id)
    given = [uuid for attempt in job["attempts"] for uuid in attempt["gpu_uuids"]]
    stage.report.say(f"sees {job['stdout'].strip()}", "gpu")
    right = job["status"] == "completed" and len(given) == 1 and job["stdout"] == f"{given[0]}\n"
    return Seen(
        right, f"{job['status']}, sees {job['stdout'].strip() or 'none'}, was given {', '.join(given) or 'none'}"
    )


def stop_gracefully(stage: Stage) -> Seen:
    """SIGTERM reaches the program, which ends in its own way before its grace is over."""
    client, job_id = submit(stage, "polite", stage.programs.polite, "background")
    watch = Watch(stage, "polite", job_id)
    watch.wait_for(1)
    stage.report.say("asking it to stop", "polite")
    client.stop(job_id, "the demo has seen enough")
    job = ended(client, job_id)
    watch.wait_for(2)
    right = job["status"] == "cancelled" and "\ngoodbye, asked to stop" in job["stdout"]
    return Seen(right, f"{job['status']}, {_last_line(job)}")


def survive_worker(stage: Stage) -> Seen:
    """kill -9 of the worker under a running job: the job goes on, its log too, and nothing is run twice."""
    client, job_id = submit(stage, "steady", stage.programs.steady, "foreground", str(STEPS))
    watch = Watch(stage, "steady", job_id)
    watch.wait_for(4)
    victim = stage.fabric.worker()
    if victim is None:
        raise Failure(ExitCode.NOT_FOUND, "no worker process was found")
    victim.send_signal(signal.SIGKILL)
    killed_at = time.time()
    stage.report.say(f"kill -9 {victim.pid}: the worker is dead, the job is not", "steady")
    stage.fabric.wait_new_worker(victim.pid)
    stage.report.say("the supervisor has started a new worker", "steady")
    job = ended(client, job_id)
    watch.wait_for(STEPS + 1)
    heard_at = min((line.came_at for line in watch.lines if line.came_at > killed_at + 0.2), default=killed_at)
    alone = sum(killed_at < line.written_at < heard_at for line in watch.lines)
    steps = "".join(f"step {n} of {STEPS}\n" for n in range(1, STEPS + 1))
    tries = len(job["attempts"])
    right = job["status"] == "completed" and tries == 1 and alone > 0
    right = right and job["stdout"] == f"{steps}result: {STEPS} steps in attempt 1\n"
    return Seen(right, f"{job['status']}, attempts: {tries}, {alone} lines written without a worker")


def play(stage: Stage, what: str, expected: str, scene: Callable[[], Seen]) -> Outcome:
    """Run a scene; one that breaks off is an outcome that failed."""
    began = time.monotonic()
    try:
        seen = scene()
    except (Failure, psutil.Error, KeyError, IndexError) as exc:
        seen = Seen(False, f"broke off: {exc}")
        stage.report.say(seen.words, what)
    return Outcome(what, expected, seen.words, time.monotonic() - began, seen.right)


def _last_line(job: dict[str, Any]) -> str:
    return str(job["stdout"]).strip().rsplit("\n", 1)[-1] or "no output"
