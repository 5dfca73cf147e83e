"""The keeper's own parent: when the keeper dies, nothing of its jobs may live on.

A second process is needed because nothing else survives `kill -9` of the keeper: the death signal reaches only
its direct children, and only those that did not switch it off.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable

from workers.keeper import processes


def run_guarded(serve: Callable[[int, int], None]) -> int:
    """Fork, run `serve(guard_pid, pipe)` in the child, wait, and kill whatever it leaves; return its exit code.

    The pipe reaches its end, or gets a byte on SIGTERM, when the keeper is to stop.
    """
    _heed_all_signals()
    processes.become_subreaper()
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    guard_pid = os.getpid()
    stops = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    for number in stops:
        signal.signal(number, lambda _number, _frame: os.write(write_fd, b"t"))
    pid = os.fork()
    if pid == 0:
        for number in stops:
            signal.signal(number, signal.SIG_IGN)
        os.close(write_fd)
        processes.become_subreaper()
        status = 1
        try:
            serve(guard_pid, read_fd)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(read_fd)
    status = _wait(pid)
    _kill_everything()
    return os.waitstatus_to_exitcode(status)


def _heed_all_signals() -> None:
    """What is ignored stays so in all that is started: a shell's background jobs ignore SIGQUIT, nohup's SIGHUP."""
    own = {signal.SIGPIPE, signal.SIGXFSZ}  # Python's; births see to these.
    for number in signal.valid_signals() - own:
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


def _wait(pid: int) -> int:
    while True:
        ended, status = os.wait()
        if ended == pid:
            return status


def _kill_everything() -> None:
    """Kill and reap all that was re-parented here, until no child is left."""
    while True:
        processes.kill_trees(processes.own_children())
        try:
            os.wait()
        except ChildProcessError:
            return
