"""A tiny process that forks jobs for the keeper: `zygote.py SOCKET KEEPER_PID`.

For machines whose system calls `spawn` does not know. Forking the keeper itself copies its memory for every job, and
every page it then touches once more: 2 ms of its one thread. This one has a third of the pages and nothing else to do.
With CLONE_PARENT the jobs are nevertheless the keeper's own children: it waits for them, and they die with it.
"""

from __future__ import annotations

import array
import ctypes
import gc
import marshal
import os
import signal
import socket
import struct
import sys
from typing import Any

HEADER = struct.Struct("<I")
REPLY = struct.Struct("<i")
MOST_FDS = 4
_CLONE_PARENT = 0x00008000
# From the kernel's system call tables; other machines fork in the keeper.
_CLONE_NUMBERS = {"x86_64": 56, "aarch64": 220, "riscv64": 220}


def can_be_used() -> bool:
    """Tell whether this machine's clone call is known."""
    return os.uname().machine in _CLONE_NUMBERS


def serve(sock: socket.socket, keeper_pid: int) -> None:
    """Fork a job for each request until the keeper closes the socket."""
    from workers.keeper import processes
    from workers.keeper.child import Birth, become_job, open_null_above_gate

    processes.die_with_parent(keeper_pid)
    null_fd = open_null_above_gate()
    # PyDLL keeps the interpreter's lock, so that the child finds itself holding it.
    syscall = ctypes.PyDLL(None, use_errno=True).syscall
    clone = _CLONE_NUMBERS[os.uname().machine]
    gc.collect()
    gc.freeze()
    gc.disable()
    while True:
        request = _receive(sock)
        if request is None:
            return
        values, fds = request
        pid = syscall(clone, _CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0)
        if pid == 0:
            become_job(Birth(*values), fds, null_fd, keeper_pid)
        sock.sendall(REPLY.pack(pid if pid > 0 else -ctypes.get_errno()))
        for fd in fds:
            os.close(fd)


def _receive(sock: socket.socket) -> tuple[list[Any], list[int]] | None:
    fds = array.array("i")
    header, ancillary, _, _ = sock.recvmsg(HEADER.size, socket.CMSG_SPACE(MOST_FDS * fds.itemsize))
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
    if not header:
        return None
    for fd in fds:
        os.set_inheritable(fd, False)
    (left,) = HEADER.unpack(header)
    body = b""
    while len(body) < left:
        piece = sock.recv(left - len(body))
        if not piece:
            return None
        body += piece
    return marshal.loads(body), list(fds)


if __name__ == "__main__":
    # Isolated mode leaves this tree out of the path; it goes last, so that it cannot shadow the standard library.
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    control = socket.socket(fileno=int(sys.argv[1]))
    # It came through an exec and must not go through the next one: who holds it can start anything as anyone.
    control.set_inheritable(False)
    serve(control, int(sys.argv[2]))
