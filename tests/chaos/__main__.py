"""`python -m tests.chaos --seed N --jobs N --seconds N`: the long form; exit code 0 only when every invariant held."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from typing import Any

from tests.chaos.options import Options
from tests.chaos.run import Report, run_broker_kills, run_chaos


def main() -> int:
    """Runs chaos as asked and prints the verdict."""
    options = _options()
    for name in [name for name in os.environ if name.startswith("CFAB_")]:
        # No run may see what the shell was set up for.
        del os.environ[name]
    signal.signal(signal.SIGTERM, _interrupt)
    print(f"seed {options.seed}: {options.jobs} jobs, {options.seconds:g} s of strikes", flush=True)
    right = True
    if options.jobs:
        right = _tell("chaos", run_chaos(options, _say))
    if options.broker_kills:
        right &= _tell("broker kills", run_broker_kills(options.broker_kills, options, _say))
    _say(f"seed {options.seed}: {'every invariant held' if right else 'NOT RIGHT'}")
    return 0 if right else 1


def _options() -> Options:
    default = Options()
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--seed", type=int, default=default.seed, help="draws jobs and strikes; random when absent")
    parser.add_argument("--jobs", type=int, default=default.jobs, help="jobs under fire (0: none)")
    parser.add_argument("--seconds", type=float, default=default.seconds, help="how long things are hit")
    parser.add_argument("--patience", type=float, default=default.patience_s, help="seconds of calm to finish in")
    parser.add_argument(
        "--broker-kills", type=int, default=default.broker_kills, help="with long jobs running (0: none)"
    )
    parser.add_argument("--keep", action="store_true", help="keep logs, database and witness")
    asked = parser.parse_args()
    return Options(asked.seed, asked.jobs, asked.seconds, asked.patience, asked.broker_kills, asked.keep)


def _tell(name: str, report: Report) -> bool:
    _say(f"== {name}")
    for line in report.lines():
        _say(line)
    return not report.problems


def _say(text: str) -> None:
    print(text, flush=True)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
