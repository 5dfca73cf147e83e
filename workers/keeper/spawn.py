"""The cheapest birth: a child that copies no memory, and carries out a list of system calls that ends with an exec.

A forked Python copies its memory and every page it then touches: 2 ms of CPU time for each job. This child borrows its
parent's memory until the exec instead, so it must not run Python. What it runs are the few bytes of CODE below: they
carry out one system call of a table after the other, touch no stack, and note down in the table where they stopped. The
parent goes on meanwhile, and only keeps the table where it is.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import signal
import struct
from collections.abc import Callable, Sequence

from workers.keeper.child import GATE_FD, HARD_OPEN_FILES, SOFT_OPEN_FILES, Birth, candidates

# Assembled from (AT&T syntax; %rdi is the table's address, the return value is clone's):
#           mov %rdi,%r9;  mov $0x200111,%edi        # CLONE_CHILD_CLEARTID | CLONE_VM | SIGCHLD
#           xor %esi,%esi; xor %edx,%edx; lea -8(%r9),%r10; xor %r8d,%r8d
#           mov $56,%eax;  syscall                   # clone, on the parent's stack, which the child does not touch
#           test %eax,%eax; jz child; ret
#   child:  mov %r9,%r12
#   again:  mov (%r9),%rax; test %rax,%rax; js out   # the number of the call; a negative one ends the table
#           mov 8(%r9),%rdi; mov 16(%r9),%rsi; mov 24(%r9),%rdx; mov 32(%r9),%r10; mov 40(%r9),%r8
#           syscall;       mov %rax,64(%r9)
#           cmpq $1,56(%r9); jb must; je next        # 0 MUST, 1 MAY, 2 EQUAL
#           cmp 48(%r9),%rax; jne out; jmp next
#   must:   test %rax,%rax; js out
#   next:   add $72,%r9;   jmp again
#   out:    mov %r9,-16(%r12)                        # where it stopped: an exec never comes here
#           mov $127,%edi; mov $231,%eax; syscall; hlt
CODE = bytes.fromhex(
    "4989f9bf1101200031f631d24d8d51f84531c0b8380000000f0585c07401c34d89cc498b014885c07836498b7908498b7110498b51184d8b"
    "51204d8b41280f05498941404983793801720a740d493b4130750deb054885c078064983c148ebc24d894c24f0bf7f000000b8e70000000f"
    "05f4"
)
_MACHINE = "x86_64"
_WRITE, _SIGACTION, _SIGMASK, _DUP2, _EXECVE, _CHDIR, _UMASK, _GETPPID = 1, 13, 14, 33, 59, 80, 95, 110
_SETSID, _SETGROUPS, _SETRESUID, _SETRESGID, _PRCTL, _PRLIMIT = 112, 116, 117, 119, 157, 302
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP = 1, 24

MUST, MAY, EQUAL = 0, 1, 2
"""A call that must not fail, one that may, and one whose result must be the expected one."""

# Where the child stopped, or 0; and a word that the kernel clears once the child has let go of this memory.
_HEAD = struct.Struct("<qq")
_ENTRY = struct.Struct("<qqqqqqqqq")
_LIMIT = struct.Struct("<QQ")
_SIGSET_BYTES = 128
# Python handles or ignores these. A handler must not run in borrowed memory, and what is ignored stays so across exec.
_DEFAULTS = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ,
)  # fmt: skip


class Spawner:
    """Carries out births for a single-threaded process: no other thread may fork or take signals meanwhile."""

    def __init__(self, null_fd: int, most_files: int) -> None:
        """Load the code and try it. Raises OSError where this machine has no use for it or does not let it run."""
        if os.uname().machine != _MACHINE:
            raise OSError(errno.ENOSYS, f"births by table are known for {_MACHINE} only")
        self._run = _load()
        self._borrowed: list[tuple[Outcome, _Memory, _Memory]] = []
        hard = HARD_OPEN_FILES if most_files == resource.RLIM_INFINITY else min(HARD_OPEN_FILES, most_files)
        # The limit of files, a signal's default action, the empty set of signals.
        self._constants = _Memory([_LIMIT.pack(min(SOFT_OPEN_FILES, hard), hard), bytes(32), bytes(8), b"0"])
        files, default, no_signals, self._zero = self._constants.places
        self._begin = [
            _call(_SETSID),
            _call(_DUP2, null_fd, 0),
            _call(_UMASK, 0o022),
            _call(_PRLIMIT, 0, resource.RLIMIT_NOFILE, files),
        ]
        self._privileges = [_call(_PRCTL, _PR_CAPBSET_DROP, number, mode=MAY) for number in range(_capabilities())]
        self._end = [
            # A change of user clears this, so it comes after it; a parent that died before it is found out after it.
            _call(_PRCTL, _PR_SET_PDEATHSIG, signal.SIGKILL),
            _call(_GETPPID, mode=EQUAL, expected=os.getpid()),
            *(_call(_SIGACTION, number, default, 0, 8) for number in _DEFAULTS),
            _call(_SIGMASK, signal.SIG_SETMASK, no_signals, 0, 8),
        ]
        self._try(null_fd)

    def _try(self, null_fd: int) -> None:
        missing = Birth(["x"], "/nonexistent/x", {}, "/", (), None, 0, False)
        pid, outcome = self.fork(missing, (null_fd, null_fd))
        os.waitpid(pid, 0)
        if outcome.number != errno.ENOENT:
            raise OSError(outcome.number, "a child that borrows memory does not tell its parent how it went")

    def fork(self, birth: Birth, fds: Sequence[int]) -> tuple[int, Outcome]:
        """Start the child, not waiting for its exec; return its process id, and what says later how it went.

        `fds` are stdout, stderr and the gate where there is one; the caller may close them at once. Raises OSError.
        """
        joined: list[int] = []
        try:
            for path in birth.join_paths:
                # The group's own file says who may enter: opened here, since the child may be another user by then.
                joined.append(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
            strings, arrays, calls, execs = self._calls(birth, fds, joined)
            table = _Memory([b"".join([_HEAD.pack(0, 1), *calls, *execs, _call(-1)])])
            pid = self._run(table.places[0] + _HEAD.size)
        finally:
            for fd in joined:
                os.close(fd)
        if pid < 0:
            raise OSError(-pid, os.strerror(-pid))
        outcome = Outcome(table, len(calls))
        self._borrowed = [one for one in self._borrowed if one[0].pending]
        self._borrowed.append((outcome, strings, arrays))
        return pid, outcome

    def _calls(
        self, birth: Birth, fds: Sequence[int], joined: Sequence[int]
    ) -> tuple[_Memory, _Memory, list[bytes], list[bytes]]:
        """Return what `become_job` does, as calls, the ways to exec last; and the memory that they point to."""
        argv = [os.fsencode(word) for word in birth.argv]
        env = [os.fsencode(f"{name}={value}") for name, value in birth.env.items()]
        limit = _LIMIT.pack(birth.pids_max, birth.pids_max)
        paths = [os.fsencode(path) for path in candidates(birth.file, birth.env)]
        strings = _Memory([limit, os.fsencode(birth.cwd), *argv, *env, *paths])
        limit_at, cwd_at, *rest = strings.places
        argv_at, env_at, paths_at = rest[: len(argv)], rest[len(argv) : len(argv) + len(env)], rest[-len(paths) :]
        arrays = _Memory([struct.pack(f"<{len(one) + 1}Q", *one, 0) for one in (argv_at, env_at)])
        calls = [
            *self._begin,
            *(_call(_WRITE, fd, self._zero, 1) for fd in joined),
            _call(_DUP2, fds[0], 1),
            _call(_DUP2, fds[1], 2),
            _call(_CHDIR, cwd_at),
        ]
        if birth.gated:
            calls.append(_call(_DUP2, fds[2], GATE_FD))
        if (uid := birth.uid) is not None:
            # The limit counts per user, and this user is this slot's alone.
            calls += [_call(_PRLIMIT, 0, resource.RLIMIT_NPROC, limit_at), *self._privileges, _call(_SETGROUPS)]
            calls += [_call(_SETRESGID, uid, uid, uid), _call(_SETRESUID, uid, uid, uid)]
        calls += self._end
        return strings, arrays, calls, [_call(_EXECVE, path, *arrays.places, mode=MAY) for path in paths_at]


class _Memory:
    """Bytes at addresses that stay where they are until this object is gone."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        """Lay out `pieces`, each with a NUL behind it and beginning at a multiple of eight."""
        starts, blob = [], bytearray()
        for piece in pieces:
            starts.append(len(blob))
            blob += piece
            blob += bytes(8 - len(piece) % 8)
        self.bytes = blob
        self._pin = ctypes.c_char.from_buffer(blob)
        base = ctypes.addressof(self._pin)
        self.places = [base + start for start in starts]


def _call(number: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0, *, mode: int = MUST, expected: int = 0) -> bytes:
    return _ENTRY.pack(number, a, b, c, d, 0, expected, mode, 0)


class Outcome:
    """How a birth went, as the child noted it down."""

    def __init__(self, table: _Memory, first_exec: int) -> None:
        """Keep the table where it is: the child reads and writes it."""
        self._table = table
        self._first_exec = first_exec

    @property
    def pending(self) -> bool:
        """Whether the child still borrows its parent's memory: neither has its program begun nor has it ended."""
        return bool(_HEAD.unpack_from(self._table.bytes)[1])

    @property
    def number(self) -> int:
        """0 if the program began, else the errno of the call that failed, or of the exec that says most.

        To be asked once the child has ended.
        """
        stopped_at, _pending = _HEAD.unpack_from(self._table.bytes)
        if stopped_at == 0:
            return 0
        last = (stopped_at - self._table.places[0] - _HEAD.size) // _ENTRY.size
        if last < self._first_exec:
            # Nothing but a parent that is gone makes a call differ without failing.
            return max(-self._result(last), 0) or errno.ESRCH
        tried = [-self._result(number) for number in range(self._first_exec, last)]
        return next((number for number in tried if number not in (errno.ENOENT, errno.ENOTDIR)), tried[-1])

    def _result(self, number: int) -> int:
        return int(_ENTRY.unpack_from(self._table.bytes, _HEAD.size + number * _ENTRY.size)[-1])


def _capabilities() -> int:
    """Return how many capabilities this kernel knows."""
    try:
        with open("/proc/sys/kernel/cap_last_cap", encoding="ascii") as file:
            return int(file.read()) + 1
    except (OSError, ValueError):
        return 64


def _load() -> Callable[[int], int]:
    """Return CODE as a function of a table's address; its pages are never writable and executable at once."""
    pages = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.write(CODE)
    pin = ctypes.c_char.from_buffer(pages)
    address = ctypes.addressof(pin)
    libc = ctypes.CDLL(None, use_errno=True)
    readable_and_executable = mmap.PROT_READ | mmap.PROT_EXEC
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), readable_and_executable) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mprotect: {os.strerror(number)}")
    # PYFUNCTYPE keeps the interpreter's lock, as for any fork.
    function = ctypes.PYFUNCTYPE(ctypes.c_long, ctypes.c_void_p)(address)
    masks = _Memory([b"\xff" * _SIGSET_BYTES, bytes(_SIGSET_BYTES)])
    every, previous = map(ctypes.c_void_p, masks.places)

    def run(table: int, _keep: object = (pin, masks)) -> int:
        # Through the C library: the signal module makes 64 objects of a mask, which takes longer than the fork.
        libc.pthread_sigmask(signal.SIG_SETMASK, every, previous)
        try:
            return int(function(table))
        finally:
            libc.pthread_sigmask(signal.SIG_SETMASK, previous, None)

    return run
