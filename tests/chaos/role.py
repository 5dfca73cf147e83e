"""Runs one role of the fabric as it is, from its settings alone: `python -m tests.chaos.role worker [--bug NAME]`."""

from __future__ import annotations

import argparse
import sys

from config.settings import load_settings


def plant() -> argparse.Namespace:
    """Plants the bug that the command line names, if any, in this process; the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=("worker", "scheduler"))
    parser.add_argument("--bug")
    asked = parser.parse_args()
    if asked.bug:
        from tests.chaos.bugs import BUGS

        BUGS[asked.bug]()
    return asked


def main() -> int:
    """Runs the role until it is told to end; its exit code."""
    asked = plant()
    settings = load_settings()
    if asked.role == "worker":
        from workers.main import run as run_worker

        return run_worker(settings)
    from scheduler.main import run as run_scheduler

    return run_scheduler(settings)


if __name__ == "__main__":
    sys.exit(main())
elif __name__ == "__mp_main__":
    # The scheduler's beat is a process of its own, spawned with this command line; a healthy one would hide the bug.
    plant()
