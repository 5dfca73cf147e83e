"""`cfab demo`, also `python -m app.local.demo.command`: the fabric at work, in a few seconds."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from types import FrameType

import click

from app.cli.failure import ExitCode, Failure
from app.local.demo import scenes
from app.local.demo.fabric import Fabric, temporary_directory
from app.local.demo.programs import serve_programs
from app.local.demo.report import Outcome, Report
from app.local.demo.scenes import Seen, Stage

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command("demo")
def command() -> None:
    """Start a fabric in a temporary directory, run real programs on it, check every outcome, leave nothing."""
    sys.exit(demo())


def demo() -> ExitCode:
    """0 when every outcome was right, 1 when one was not; what it started is gone either way."""
    report = Report()
    before = {number: signal.signal(number, _interrupt) for number in _ENDING}
    try:
        with temporary_directory() as root:
            _run(report, Fabric(root))
    except KeyboardInterrupt:
        report.say("interrupted; nothing is left behind")
        return ExitCode.INTERRUPTED
    except Failure as failure:
        click.echo(f"demo: {failure.message}", err=True)
        return ExitCode.JOB_FAILED
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    click.echo("\n" + report.table() + "\n")
    wrong = sum(not outcome.right for outcome in report.outcomes)
    if wrong:
        click.echo(click.style(f"{wrong} of {len(report.outcomes)} outcomes were wrong", fg="red"))
        return ExitCode.JOB_FAILED
    click.echo(click.style(f"all {len(report.outcomes)} outcomes were right", fg="green"))
    return ExitCode.OK


def _run(report: Report, fabric: Fabric) -> None:
    try:
        report.say(f"cfab up: PostgreSQL, Valkey, API, scheduler, worker, Flower in {fabric.data}")
        fabric.wait_ready()
        report.say(f"ready: API {fabric.url}/api/v1, Flower http://127.0.0.1:{fabric.flower_port}")
        programs = fabric.data.parent / "programs"
        programs.mkdir()
        with serve_programs(programs) as served:
            _play_all(Stage(fabric, served, report))
    finally:
        # A second Ctrl-C must not leave half a fabric behind.
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)
        report.close("stopping everything")
        began = time.monotonic()
        forced = fabric.stop()
        took_s = time.monotonic() - began
    for words in forced:
        report.say(f"had to be killed: {words}")
    seen = f"processes killed by force: {len(forced)}"
    report.outcomes.append(Outcome("clean end", "processes killed by force: 0", seen, took_s, not forced))


def _play_all(stage: Stage) -> None:
    """First the scenes that may run side by side, then the one that kills the worker."""
    together: list[tuple[str, str, Callable[[], Seen]]] = [
        (f"{priority} job", f"completed, primes below {limit}", partial(scenes.count_primes, stage, priority))
        for priority, limit in scenes.LIMITS.items()
    ]
    if stage.programs.factor is not None:
        factor = partial(scenes.factor_number, stage, stage.programs.factor)
        together.append(("compiled program", "completed, both factors", factor))
    refuse = partial(scenes.refuse_wrong_checksum, stage)
    together.append(("wrong checksum", "failed, never started", refuse))
    together.append(("GPU job", "completed, sees its own", partial(scenes.pin_gpu, stage)))
    together.append(("graceful stop", "cancelled, said goodbye", partial(scenes.stop_gracefully, stage)))
    outcomes: dict[str, Outcome] = {}

    def play(what: str, expected: str, scene: Callable[[], Seen]) -> None:
        outcomes[what] = scenes.play(stage, what, expected, scene)

    # Daemons: Ctrl-C must not wait for jobs that are about to be ended anyway.
    threads = [threading.Thread(target=play, args=scene, daemon=True) for scene in together]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    stage.report.outcomes += [outcomes[what] for what, _, _ in together]
    survive = partial(scenes.survive_worker, stage)
    stage.report.outcomes.append(scenes.play(stage, "worker killed", "completed, attempts: 1", survive))


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    command()
