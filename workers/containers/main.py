"""The keeper of containers as a program: `python -I -S main.py --dir D --engine SOCKET [--max-image-bytes N]`.

A guard starts the serving process again when that dies, so that lease deadlines hold without an agent too. Containers
go on meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import sys
import time
from typing import NamedTuple

ALREADY_SERVED = 3
AGAIN_S = 0.2
AGAIN_MOST_S = 10.0
STEADY_S = 60.0


class Arguments(NamedTuple):
    """The command line, read."""

    dir: str
    engine: str
    max_image_bytes: int = 100 * 2**30


def parse_arguments(words: list[str]) -> Arguments:
    """Read `--name value` pairs. Raises ValueError saying what is wrong."""
    kinds = {"--dir": str, "--engine": str, "--max-image-bytes": int}
    if len(words) % 2 or any(name not in kinds for name in words[::2]):
        raise ValueError(f"arguments {words}: wanted pairs of {', '.join(kinds)} and a value")
    pairs = zip(words[::2], words[1::2], strict=True)
    values = {name[2:].replace("-", "_"): kinds[name](value) for name, value in pairs}
    if "dir" not in values or "engine" not in values:
        raise ValueError("--dir (socket, attempts and log) and --engine (the Docker Engine's socket) are needed")
    return Arguments(**values)


def main(arguments: list[str]) -> int:
    """Take the directory's lock, detach, and serve it from a session of its own."""
    try:
        parsed = parse_arguments(arguments)
    except ValueError as exc:
        sys.stderr.write(f"keeper of containers: {exc}\n")
        return 2
    directory = os.path.realpath(parsed.dir)
    os.makedirs(directory, 0o711, exist_ok=True)
    # Inherited by everything forked from here: the directory is free when all of it has ended.
    lock = os.open(os.path.join(directory, "keeper.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.stderr.write(f"another keeper serves {directory}\n")
        return ALREADY_SERVED
    ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
    if os.fork() != 0:
        os.close(ready_write)
        if os.read(ready_read, 16) == b"ready":
            return 0
        sys.stderr.write(f"the keeper of {directory} ended at once; see {directory}/keeper.log\n")
        return 1
    os.close(ready_read)
    os._exit(_detached(parsed, directory, ready_write))


def _detached(parsed: Arguments, directory: str, ready_fd: int) -> int:
    os.setsid()
    os.chdir("/")
    os.umask(0o022)
    log = os.open(os.path.join(directory, "keeper.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open("/dev/null", os.O_RDWR)
    for target, source in ((0, null), (1, log), (2, log)):
        os.dup2(source, target)
    guard_pid = os.getpid()
    pause_s = AGAIN_S
    while True:
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            os._exit(_serve(parsed, directory, ready_fd, guard_pid))
        if ready_fd >= 0:
            os.close(ready_fd)
            ready_fd = -1
        status, told = _wait(child)
        if told or os.waitstatus_to_exitcode(status) == 0 or not os.path.isdir(directory):
            return 0
        sys.stderr.write(f"the keeper ended with {os.waitstatus_to_exitcode(status)}; starting another\n")
        sys.stderr.flush()
        pause_s = AGAIN_S if time.monotonic() - began > STEADY_S else min(AGAIN_MOST_S, pause_s * 2)
        time.sleep(pause_s)


def _wait(child: int) -> tuple[int, bool]:
    """Return the wait status of the serving process, and whether the guard was told to end; it passes that on."""
    told = False

    def pass_on(*_: object) -> None:
        nonlocal told
        told = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGTERM)

    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    for number in numbers:
        signal.signal(number, pass_on)
    status = os.waitpid(child, 0)[1]
    for number in numbers:
        signal.signal(number, signal.SIG_DFL)
    return status, told


def _serve(parsed: Arguments, directory: str, ready_fd: int, guard_pid: int) -> int:
    import traceback

    from workers.containers.service import Config, Service

    try:
        service = Service(Config(directory, parsed.engine, parsed.max_image_bytes, guard_pid))
        if ready_fd >= 0:
            os.write(ready_fd, b"ready")
            os.close(ready_fd)
        service.run()
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    # Isolated mode leaves this tree out of the path; it goes last, so that it cannot shadow the standard library.
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    sys.exit(main(sys.argv[1:]))
