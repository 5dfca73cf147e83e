"""The small real programs that the demo runs, and the local web server that a worker fetches them from."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PRIMES = """\
#!/bin/sh
# Counts the primes below $1 by trial division and says how far it is.
limit=$1 n=3 count=1 last=2 step=$(($1 / 4)) next=$(($1 / 4))
while [ $n -lt $limit ]; do
    d=3
    while [ $((d * d)) -le $n ] && [ $((n % d)) -ne 0 ]; do d=$((d + 2)); done
    if [ $((d * d)) -gt $n ]; then count=$((count + 1)) last=$n; fi
    n=$((n + 2))
    if [ $n -ge $next ]; then echo "$count primes below $next"; next=$((next + step)); fi
done
echo "result: $count primes below $limit, the last is $last"
"""

POLITE = """\
#!/bin/sh
# Works until it is asked to stop, then says goodbye.
exec 2>/dev/null # or the shell would tell of its sleep that SIGTERM ended too
trap 'echo "goodbye, asked to stop after $n ticks"; exit 0' TERM
n=0
echo "at work"
while :; do sleep 0.05; n=$((n + 1)); done
"""

STEADY = """\
#!/bin/sh
# Counts to $1, four times a second.
n=0
while [ $n -lt $1 ]; do n=$((n + 1)); echo "step $n of $1"; sleep 0.25; done
echo "result: $n steps in attempt $CFAB_ATTEMPT"
"""


@dataclass(frozen=True)
class Program:
    """A program as a job asks for it."""

    url: str
    sha256: str


@dataclass(frozen=True)
class Programs:
    """What the demo runs; `factor` is a compiled program of this machine, None where it has no such."""

    primes: Program
    polite: Program
    steady: Program
    factor: Program | None


@contextmanager
def serve_programs(directory: Path) -> Iterator[Programs]:
    """Write the programs into `directory` and serve them on a free port of loopback until the block ends."""
    for name, text in (("primes", PRIMES), ("polite", POLITE), ("steady", STEADY)):
        (directory / name).write_text(text)
    has_factor = _copy_factor(directory / "factor")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(directory)))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()

    def program(name: str) -> Program:
        digest = hashlib.sha256((directory / name).read_bytes()).hexdigest()
        return Program(f"http://127.0.0.1:{server.server_port}/{name}", digest)

    try:
        factor = program("factor") if has_factor else None
        yield Programs(program("primes"), program("polite"), program("steady"), factor)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def primes_below(limit: int) -> tuple[int, int]:
    """How many primes there are below `limit`, and the last: the demo's own sum, to hold the job's result against."""
    found: list[int] = []
    for n in range(2, limit):
        if all(n % prime for prime in found if prime * prime <= n):
            found.append(n)
    return len(found), found[-1]


def _copy_factor(path: Path) -> bool:
    """Copy `factor` to `path`; whether the copy works alone (a busybox applet, say, goes by the name it is run as)."""
    original = shutil.which("factor")
    if original is None:
        return False
    shutil.copyfile(original, path)
    path.chmod(0o755)
    try:
        tried = subprocess.run([path, "15"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return tried.stdout == "15: 3 5\n"


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: requests are no news here."""
