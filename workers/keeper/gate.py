"""The gate through which a sandboxed program begins, and how its real end is read.

bubblewrap folds a signal into its exit code (128 + n) and does not pass signals on. So the program waits at a gate,
inside the sandbox, until the keeper holds a descriptor on it: for signals, and for its true exit status.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from typing import NamedTuple

from workers.keeper import processes

# Says "ready" on descriptor 3, waits for a line, closes it and becomes the program.
GATE_SCRIPT = 'echo r >&3; read -r _ <&3; exec "$@" 3>&-'

# struct pidfd_info of linux/pidfd.h (Linux 6.15): mask, cgroup id, eleven 32-bit ids, the wait status.
_PIDFD_INFO = struct.Struct("=QQ11Ii")
_PIDFD_INFO_EXIT = 1 << 3
_PIDFD_GET_INFO = (3 << 30) | (_PIDFD_INFO.size << 16) | (0xFF << 8) | 11
_HIGHEST_SIGNAL = 64


class Folded(NamedTuple):
    """How a process ended: one of the two is None."""

    exit_code: int | None
    signal: int | None

    @classmethod
    def plain(cls, wait_status: int) -> Folded:
        """Read a wait status as the kernel gives it."""
        code = os.waitstatus_to_exitcode(wait_status)
        return cls(None, -code) if code < 0 else cls(code, None)

    @classmethod
    def by_shell_rule(cls, wait_status: int) -> Folded:
        """Read 128 + n as death by signal n: all that is known where the kernel keeps no inner status."""
        ended = cls.plain(wait_status)
        code = ended.exit_code
        if code is not None and 128 < code <= 128 + _HIGHEST_SIGNAL:
            return cls(None, code - 128)
        return ended


def find_sandboxed(bwrap_pid: int) -> tuple[int, int]:
    """Return the program behind bubblewrap and its sandbox's init: process id and pidfd, (0, -1) when gone."""
    pid = bwrap_pid
    for _ in range(2):
        below = processes.children(pid)
        if not below:
            return 0, -1
        pid = below[0]
    with contextlib.suppress(OSError):
        return pid, os.pidfd_open(pid)
    return 0, -1


def exit_from_pidfd(pidfd: int) -> int | None:
    """Return the wait status of a process that somebody else reaped; None where the kernel does not keep it."""
    if pidfd < 0:
        return None
    buffer = bytearray(_PIDFD_INFO.size)
    _PIDFD_INFO.pack_into(buffer, 0, _PIDFD_INFO_EXIT, *([0] * 13))
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, buffer)
    except OSError:
        return None
    values = _PIDFD_INFO.unpack(buffer)
    return int(values[-1]) if values[0] & _PIDFD_INFO_EXIT else None
