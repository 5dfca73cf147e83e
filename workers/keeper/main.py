"""Starts a keeper: `python -I -S workers/keeper/main.py --dir D`. Returns once it serves, or says why not.

Exit codes: 0 it serves now, 2 bad arguments, 3 another keeper serves this directory, 1 anything else.
"""

from __future__ import annotations

import fcntl
import os
import sys
import zlib
from typing import NamedTuple

ALREADY_SERVED = 3


class Arguments(NamedTuple):
    """The command line, read. Without argparse, whose memory every fork would copy."""

    dir: str
    uid_base: int | None = None
    cgroups: str = "auto"
    bwrap: str | None = None
    births: str = "auto"
    idle_exit_s: float | None = None


def parse_arguments(words: list[str]) -> Arguments:
    """Read `--name value` pairs. Raises ValueError saying what is wrong."""
    kinds = {"--dir": str, "--uid-base": int, "--cgroups": str, "--bwrap": str, "--births": str, "--idle-exit-s": float}
    if len(words) % 2 or any(name not in kinds for name in words[::2]):
        raise ValueError(f"arguments {words}: wanted pairs of {', '.join(kinds)} and a value")
    pairs = zip(words[::2], words[1::2], strict=True)
    values = {name[2:].replace("-", "_"): kinds[name](value) for name, value in pairs}
    if "dir" not in values:
        raise ValueError("--dir is missing: the directory of this keeper's socket, attempts and log")
    parsed = Arguments(**values)
    if parsed.uid_base is not None and (parsed.uid_base < 1000 or os.geteuid() != 0):
        raise ValueError(f"--uid-base {parsed.uid_base}: it needs root and must be at least 1000")
    if parsed.cgroups not in ("auto", "off"):
        raise ValueError(f"--cgroups {parsed.cgroups}: it must be auto or off")
    if parsed.births not in ("auto", "spawn", "zygote", "fork"):
        raise ValueError(f"--births {parsed.births}: it must be auto, spawn, zygote or fork")
    return parsed


def main(arguments: list[str]) -> int:
    """Take the directory's lock, detach, and serve it from a process of its own session."""
    try:
        parsed = parse_arguments(arguments)
    except ValueError as exc:
        sys.stderr.write(f"keeper: {exc}\n")
        return 2
    directory = os.path.realpath(parsed.dir)
    os.makedirs(directory, 0o711, exist_ok=True)
    lock = os.open(os.path.join(directory, "keeper.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.stderr.write(f"another keeper serves {directory}\n")
        return ALREADY_SERVED
    if parsed.uid_base is not None:
        from workers.keeper.uid_range import NoRangeLeft, take_range

        try:
            # The descriptor stays open, and with it the lock, in every process forked from here.
            first, _held = take_range(parsed.uid_base, directory)
        except (NoRangeLeft, OSError) as exc:
            sys.stderr.write(f"keeper: {exc}\n")
            return 1
        parsed = parsed._replace(uid_base=first)
    ready_read, ready_write = os.pipe2(os.O_CLOEXEC)
    if os.fork() != 0:
        os.close(ready_write)
        answer = os.read(ready_read, 4096)
        if answer == b"ready":
            return 0
        sys.stderr.write(f"the keeper of {directory} ended at once; see {directory}/keeper.log\n")
        return 1
    os.close(ready_read)
    os._exit(_detached(parsed, directory, lock, ready_write))


def _detached(parsed: Arguments, directory: str, lock: int, ready_fd: int) -> int:
    from workers.keeper.guard import run_guarded

    os.setsid()
    os.chdir("/")
    os.umask(0o022)
    log = os.open(os.path.join(directory, "keeper.log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open("/dev/null", os.O_RDWR)
    for target, source in ((0, null), (1, log), (2, log)):
        os.dup2(source, target)
    for fd in (log, null):
        if fd > 2:
            os.close(fd)

    def serve(guard_pid: int, guard_fd: int) -> None:
        _serve(parsed, directory, ready_fd, guard_pid, guard_fd)

    return run_guarded(serve)


def _serve(parsed: Arguments, directory: str, ready_fd: int, guard_pid: int, guard_fd: int) -> None:
    import gc
    import resource

    from workers.keeper.service import Config, Service
    from workers.sandbox.cgroups import find_layer

    soft_and_hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft_and_hard, soft_and_hard))
    base = f"cfab-{zlib.crc32(directory.encode()):08x}"
    layer = find_layer(base) if parsed.cgroups == "auto" else None
    config = Config(
        directory=directory,
        uid_base=parsed.uid_base,
        layer=layer,
        cgroups=parsed.cgroups,
        bwrap=parsed.bwrap,
        births=parsed.births,
        idle_exit_s=parsed.idle_exit_s,
        guard_pid=guard_pid,
        guard_fd=guard_fd,
    )
    service = Service(config)
    # The collector would touch every page, and each fork copies touched pages. The keeper makes no cycles that
    # matter: `Service` collects now and then.
    gc.collect()
    gc.freeze()
    gc.disable()
    os.write(ready_fd, b"ready")
    os.close(ready_fd)
    service.run()


if __name__ == "__main__":
    # Isolated mode leaves this tree out of the path; it goes last, so that it cannot shadow the standard library.
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    sys.exit(main(sys.argv[1:]))
