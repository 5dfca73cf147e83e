"""The life of attempts: start, signal, deadline, end. The keeper's heart, free of sockets.

Promise: when an attempt's exit record exists, no process of it is left (or the record says how many survived a
SIGKILL for ten seconds), and its output is in the spool.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from workers.keeper import processes
from workers.keeper.attempt import (
    ENDED,
    ENDING,
    RUNNING,
    Attempt,
    boottime,
    write_record,
)
from workers.keeper.gate import GATE_SCRIPT, Folded, exit_from_pidfd, find_sandboxed
from workers.keeper.launch import Birth, Launcher, failure, missing_program
from workers.keeper.loop import RANK_GATE, RANK_OUTPUT, Poller, Timers
from workers.keeper.orphans import Orphans
from workers.keeper.spec import Spec
from workers.keeper.trash import Trash
from workers.sandbox.bubblewrap import bubblewrap_argv
from workers.sandbox.cgroups import Cgroup, CgroupLayer, Limits

OUTPUT_EVENT_S = 0.05
SWEEP_RETRY_S = 0.005
EXEC_RETRY_S = 0.001
SURVIVOR_WAIT_S = 10.0
FORGOTTEN_KEPT = 4096
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Refused(Exception):
    """A command that is understood but not carried out; `code` is for programs."""

    def __init__(self, code: str, message: str) -> None:
        """Keep both."""
        super().__init__(message)
        self.code = code


class Jobs:
    """All attempts of one keeper."""

    def __init__(
        self,
        directory: str,
        *,
        uid_base: int | None,
        layer: CgroupLayer | None,
        bwrap: str | None,
        poller: Poller,
        timers: Timers,
        emit: Callable[[dict[str, Any]], None],
    ) -> None:
        """Serve `directory`; `uid_base` None runs jobs as the keeper's own user."""
        self._root = os.path.join(directory, "attempts")
        self._uid_base = uid_base
        self._layer = layer
        self._bwrap = bwrap
        self._poller = poller
        self._timers = timers
        self._emit = emit
        self._launcher = Launcher()
        self._boot = processes.boot_id()
        self.trash = Trash(os.path.join(directory, "trash"))
        self.attempts: dict[str, Attempt] = {}
        self._by_pid: dict[int, Attempt] = {}
        self._slots: dict[int, str] = {}
        self._ending: dict[str, Attempt] = {}
        self._orphans = Orphans(self._by_pid, self.trash.pids)
        self._forgotten: OrderedDict[str, None] = OrderedDict()
        self._unsaved: dict[str, Attempt] = {}
        self._dirty: dict[str, Attempt] = {}
        self._flushed_at = 0.0
        self._dead_groups: list[Cgroup] = []

    # -- start ---------------------------------------------------------------------------------------------

    def live_count(self) -> int:
        """Return how many attempts have no exit record yet."""
        return len(self._by_pid) + len(self._ending)

    def is_live(self, attempt_id: str) -> bool:
        """Tell whether an attempt is here without an exit record."""
        attempt = self.attempts.get(attempt_id)
        return attempt is not None and attempt.state != ENDED

    def start(self, spec: Spec) -> bool:
        """Start an attempt; False when it is here already (running or ended), which starts nothing.

        Raises Refused. What cannot be executed is not refused: it ends with a record that has a spawn_error.
        """
        if spec.attempt_id in self.attempts:
            return False
        self._check(spec)
        uid = None if self._uid_base is None else self._uid_base + spec.slot
        attempt = Attempt(spec, os.path.join(self._root, spec.attempt_id), uid)
        attempt.record["started_boottime"], attempt.record["started_wall"] = boottime(), time.time()
        try:
            self._create(attempt)
        except OSError as exc:
            self._undo(attempt)
            where = exc.filename or attempt.directory
            raise Refused("io", f"attempt {spec.attempt_id} was not started: {where}: {exc.strerror}") from exc
        self.attempts[spec.attempt_id] = attempt
        if attempt.record["spawn_error"]:
            self._ending[spec.attempt_id] = attempt
            attempt.ending_since = boottime()
            self._announce(attempt)
            self._finish(attempt)
            return True
        self._by_pid[attempt.pid] = attempt
        if uid is not None:
            self._slots[spec.slot] = spec.attempt_id
        for fd in attempt.output.pipes:
            self._poller.add(fd, RANK_OUTPUT, self._output_callback(attempt))
        if attempt.gate is not None:
            self._poller.add(attempt.gate, RANK_GATE, lambda _fd: self._open_gate(attempt))
        self._timers.at(attempt.deadline, spec.attempt_id, self._deadline_due)
        if spec.time_limit_s is not None:
            limit_at = attempt.record["started_boottime"] + spec.time_limit_s
            self._timers.at(limit_at, spec.attempt_id, self._limit_due)
        self._announce(attempt)
        return True

    def _check(self, spec: Spec) -> None:
        if spec.attempt_id in self._forgotten:
            raise Refused("forgotten", f"attempt {spec.attempt_id} has ended and was forgotten: it runs once")
        now = boottime()
        if spec.deadline <= now:
            raise Refused("deadline", f"deadline {spec.deadline:.3f} of {spec.attempt_id} has passed: it is {now:.3f}")
        if spec.sandbox == "bubblewrap" and self._bwrap is None:
            raise Refused("sandbox", f"{spec.attempt_id} asks for bubblewrap, but this keeper was started without it")
        if self._uid_base is not None and spec.slot in self._slots:
            holder = self._slots[spec.slot]
            raise Refused("slot", f"slot {spec.slot} for {spec.attempt_id} is in use by {holder}")

    def _create(self, attempt: Attempt) -> None:
        spec = attempt.spec
        attempt.make_directories()
        if self._layer is not None and (spec.sandbox != "off" or spec.memory_bytes or spec.cpus_milli):
            limits = Limits(spec.memory_bytes, spec.cpus_milli, spec.pids_max)
            attempt.cgroup = self._layer.create(spec.attempt_id, limits)
        note = attempt.remember(self._boot)
        try:
            if spec.sandbox == "bubblewrap":
                attempt.record["spawn_error"] = missing_program(spec.argv[0], spec.executable, spec.env)
            if attempt.record["spawn_error"] is None:
                self._fork(attempt)
                os.write(note, f"{attempt.pid} {processes.start_ticks(attempt.pid)}\n".encode())
        finally:
            os.close(note)

    def _fork(self, attempt: Attempt) -> None:
        spec, argv, file, gate_child = attempt.spec, attempt.spec.argv, attempt.spec.executable, None
        if spec.sandbox == "bubblewrap" and self._bwrap is not None:
            keeper_end, child_end = socket.socketpair()
            attempt.gate, gate_child = keeper_end.detach(), child_end.detach()
            os.set_blocking(attempt.gate, False)
            command = [file, *argv[1:]] if file else argv
            argv = bubblewrap_argv(
                self._bwrap, work=attempt.work_dir, executable=file, hide=spec.hide or [],
                gpus=spec.gpus or [], network=spec.network,
            )  # fmt: skip
            argv, file = [*argv, "/bin/sh", "-c", GATE_SCRIPT, "sh", *command], self._bwrap
        write_ends: tuple[int, ...] = ()
        try:
            write_ends = attempt.output.open_pipes()
            birth = Birth(
                argv=argv, file=file or argv[0],
                env={"PATH": SYSTEM_PATH, **spec.env, processes.MARKER: attempt.token},
                cwd=attempt.work_dir, stdout_fd=write_ends[0], stderr_fd=write_ends[1], gate_fd=gate_child,
                join_paths=attempt.cgroup.join_paths() if attempt.cgroup else (),
                uid=attempt.uid, pids_max=spec.pids_max,
            )  # fmt: skip
            attempt.pid, attempt.failure_fd = self._launcher.fork(birth)
        finally:
            for fd in write_ends:
                os.close(fd)
            if gate_child is not None:
                os.close(gate_child)

    def _undo(self, attempt: Attempt) -> None:
        if attempt.cgroup is not None:
            attempt.cgroup.remove()
        attempt.close()
        self.trash.discard(attempt.directory)

    def _announce(self, attempt: Attempt) -> None:
        self._emit(
            {
                "event": "started",
                "attempt_id": attempt.spec.attempt_id,
                "pid": attempt.pid,
                "uid": attempt.uid,
                "cgroup": attempt.cgroup.name if attempt.cgroup else None,
                "started_boottime": attempt.record["started_boottime"],
                "started_wall": attempt.record["started_wall"],
            }
        )

    def _open_gate(self, attempt: Attempt) -> None:
        """Let the sandboxed program begin, now that it can be found and signalled."""
        gate = attempt.gate
        if gate is None:
            return
        try:
            ready = os.read(gate, 16)
        except OSError:
            ready = b""
        if ready:
            attempt.job_pid, attempt.job_pidfd = find_sandboxed(attempt.pid)
            try:
                os.write(gate, b"\n")
            except OSError:
                ready = b""
        self._poller.remove(gate)
        attempt.close_gate()

    # -- output --------------------------------------------------------------------------------------------

    def _output_callback(self, attempt: Attempt) -> Callable[[int], None]:
        def ready(fd: int) -> None:
            taken = attempt.output.pump(fd)
            if taken == 0:
                self._poller.remove(fd)
                attempt.output.close_pipe(fd)
            elif taken:
                self._dirty[attempt.spec.attempt_id] = attempt

        return ready

    def flush_output_events(self, now: float) -> float | None:
        """Tell of new output, at most every 50 ms; return the seconds until the next flush, None when idle."""
        if not self._dirty:
            return None
        wait_s = self._flushed_at + OUTPUT_EVENT_S - now
        if wait_s > 0:
            return wait_s
        for attempt_id, attempt in self._dirty.items():
            self._emit({"event": "output", "attempt_id": attempt_id, "size": attempt.output.spool_bytes})
        self._dirty.clear()
        self._flushed_at = now
        return None

    # -- signals and clocks --------------------------------------------------------------------------------

    def stop(self, attempt_id: str, grace_s: float, cause: str) -> None:
        """Send SIGTERM now and SIGKILL to everything after `grace_s`; of one that has exited, keep its outcome.

        Repeating it can only shorten the grace; the first cause stands, but "cancel" replaces another.
        """
        attempt = self._signallable(attempt_id)
        if attempt is None:
            return
        if attempt.record["stop_cause"] is None or cause == "cancel":
            attempt.record["stop_cause"] = cause
        self._terminate(attempt, grace_s)

    def kill(self, attempt_id: str, cause: str) -> None:
        """SIGKILL everything of an attempt now; one that has exited keeps its outcome."""
        attempt = self._signallable(attempt_id)
        if attempt is not None:
            attempt.record["stop_cause"] = attempt.record["stop_cause"] or cause
            self._kill(attempt)

    def extend(self, attempt_id: str, deadline: float) -> bool:
        """Move a lease deadline forward, never back; False when the attempt is not live here."""
        attempt = self.attempts.get(attempt_id)
        if attempt is None or attempt.state == ENDED:
            return False
        attempt.deadline = max(attempt.deadline, deadline)
        return True

    def _signallable(self, attempt_id: str) -> Attempt | None:
        attempt = self.attempts.get(attempt_id)
        if attempt is None:
            raise Refused("unknown", f"attempt {attempt_id} is not here")
        if attempt.state != RUNNING:
            return None
        # An exit that came before the signal keeps its own outcome, also when it has not been reaped yet.
        ended = os.waitid(os.P_PID, attempt.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return attempt if ended is None else None

    def _terminate(self, attempt: Attempt, grace_s: float) -> None:
        if attempt.gate is not None:
            # Its own program has not begun, so nothing of it can make use of a grace.
            self._kill(attempt)
            return
        if not attempt.term_sent:
            attempt.term_sent = True
            self._send_term(attempt.spec.attempt_id)
        self._timers.at(boottime() + grace_s, attempt.spec.attempt_id, self._grace_over)

    def _send_term(self, attempt_id: str) -> None:
        attempt = self._running(attempt_id)
        if attempt is None:
            return
        if not processes.has_execed(attempt.pid):
            # Between fork and exec a handler of the keeper's would swallow the signal.
            self._timers.at(boottime() + EXEC_RETRY_S, attempt_id, self._send_term)
            return
        for number in (signal.SIGTERM, signal.SIGCONT):
            self._signal_program(attempt, number)

    def _running(self, attempt_id: str) -> Attempt | None:
        attempt = self.attempts.get(attempt_id)
        return attempt if attempt is not None and attempt.state == RUNNING else None

    def _signal_program(self, attempt: Attempt, number: int) -> None:
        """Signal the job's own process group, never the sandbox around it."""
        if attempt.spec.sandbox == "off":
            processes.send_group(attempt.pid, number)
            return
        if attempt.job_pidfd < 0:
            return
        try:
            group = os.getpgid(attempt.job_pid)
            signal.pidfd_send_signal(attempt.job_pidfd, 0)
        except ProcessLookupError:
            return
        if group == os.getpgid(attempt.pid):
            signal.pidfd_send_signal(attempt.job_pidfd, number)
        else:
            processes.send_group(group, number)

    def _grace_over(self, attempt_id: str) -> None:
        attempt = self._running(attempt_id)
        if attempt is not None:
            self._kill(attempt)

    def _deadline_due(self, attempt_id: str) -> None:
        attempt = self._running(attempt_id)
        if attempt is None:
            return
        if attempt.deadline > boottime():
            self._timers.at(attempt.deadline, attempt_id, self._deadline_due)
        elif self._signallable(attempt_id) is not None:
            attempt.record["lease_lost"] = True
            self._kill(attempt)

    def _limit_due(self, attempt_id: str) -> None:
        attempt = self._running(attempt_id)
        if attempt is None or attempt.term_sent or attempt.kill_sent:
            return
        if self._signallable(attempt_id) is not None:
            attempt.record["limit_hit"] = "time"
            self._terminate(attempt, attempt.spec.grace_s)

    def _kill(self, attempt: Attempt) -> None:
        attempt.kill_sent = True
        if attempt.cgroup is not None:
            attempt.cgroup.kill()
        else:
            processes.kill_trees([attempt.pid, *self._orphans.of(attempt)])
        # Before its first instructions the child is in no group and no cgroup yet.
        processes.send(attempt.pid, signal.SIGKILL)

    # -- the end -------------------------------------------------------------------------------------------

    def reap(self) -> None:
        """Collect every ended child, and finish the attempts of which nothing is left."""
        while True:
            try:
                info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                break
            if info is None:
                break
            attempt = self._by_pid.pop(info.si_pid, None)
            if attempt is not None and attempt.cgroup is None:
                # The unreaped leader still owns its group's number: nobody else can be hit.
                processes.send_group(info.si_pid, signal.SIGKILL)
            pid, status, used = os.wait4(info.si_pid, 0)
            if attempt is None:
                self.trash.reaped(pid)
                self._orphans.reaped(pid, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)
                continue
            attempt.state, attempt.wait_status, attempt.ending_since = ENDING, status, boottime()
            attempt.record["ended_boottime"], attempt.record["ended_wall"] = boottime(), time.time()
            attempt.record["cpu_seconds"] = used.ru_utime + used.ru_stime
            attempt.record["peak_memory_bytes"] = used.ru_maxrss * 1024
            self._ending[attempt.spec.attempt_id] = attempt
        for attempt_id in list(self._ending):
            self._sweep(attempt_id)

    def _sweep(self, attempt_id: str) -> None:
        """Kill what outlived the main process; finish the attempt once nothing is left."""
        attempt = self._ending.get(attempt_id)
        if attempt is None:
            return
        left = attempt.cgroup.pids() if attempt.cgroup else self._orphans.of(attempt)
        if left and boottime() - attempt.ending_since < SURVIVOR_WAIT_S:
            if attempt.cgroup is not None:
                attempt.cgroup.kill()
            else:
                processes.kill_trees(left)
            self._timers.at(boottime() + SWEEP_RETRY_S, attempt_id, self._sweep)
            return
        attempt.record["survivors"] = len(left)
        self._finish(attempt)

    def _finish(self, attempt: Attempt) -> None:
        spec, record = attempt.spec, attempt.record
        for fd in attempt.output.pipes:
            self._poller.remove(fd)
        if attempt.gate is not None:
            self._poller.remove(attempt.gate)
        attempt.output.drain()
        self._decode_end(attempt)
        if attempt.cgroup is not None:
            usage = attempt.cgroup.usage()
            record["oom"] = usage.oom_kills > 0
            record["peak_memory_bytes"] = usage.peak_memory_bytes or record["peak_memory_bytes"]
            record["cpu_seconds"] = usage.cpu_seconds if usage.cpu_seconds is not None else record["cpu_seconds"]
            if not attempt.cgroup.remove():
                self._dead_groups.append(attempt.cgroup)
        elif record["cpu_seconds"] is not None:
            record["cpu_seconds"] += attempt.orphan_cpu_seconds
            record["peak_memory_bytes"] = max(record["peak_memory_bytes"], attempt.orphan_peak_bytes)
        record["spool_bytes"] = attempt.output.spool_bytes
        record["truncated_bytes"] = attempt.output.truncated_bytes
        record["ended_boottime"] = record["ended_boottime"] or boottime()
        record["ended_wall"] = record["ended_wall"] or time.time()
        attempt.close()
        attempt.state = ENDED
        attempt.spec = spec._replace(env={}, argv=[])
        self._ending.pop(spec.attempt_id, None)
        self._dirty.pop(spec.attempt_id, None)
        if self._slots.get(spec.slot) == spec.attempt_id:
            del self._slots[spec.slot]
        self._persist(spec.attempt_id)
        self._emit({"event": "exited", "attempt_id": spec.attempt_id, "record": attempt.full_record()})

    def _decode_end(self, attempt: Attempt) -> None:
        record, status = attempt.record, attempt.wait_status
        if status is None:
            return
        failure_fd, attempt.failure_fd = attempt.failure_fd, -1
        program = attempt.spec.executable or attempt.spec.argv[0]
        record["spawn_error"] = failure(failure_fd, program if attempt.spec.sandbox == "off" else str(self._bwrap))
        if record["spawn_error"] is not None:
            return
        if attempt.spec.sandbox == "off":
            ended = Folded.plain(status)
        elif attempt.job_pidfd < 0 and not attempt.kill_sent:
            code = os.waitstatus_to_exitcode(status)
            record["spawn_error"] = f"the sandbox was not set up (bwrap ended with {code}); its message is in stderr"
            return
        else:
            inner = exit_from_pidfd(attempt.job_pidfd)
            ended = Folded.plain(inner) if inner is not None else Folded.by_shell_rule(status)
        record["exit_code"], record["signal"] = ended.exit_code, ended.signal

    def _persist(self, attempt_id: str) -> None:
        """Write exit.json; `tidy` repeats it while the disk is full, or a later keeper would call it lost."""
        attempt = self.attempts.get(attempt_id)
        if attempt is not None and not write_record(attempt.directory, attempt.full_record()):
            self._unsaved[attempt_id] = attempt

    # -- housekeeping --------------------------------------------------------------------------------------

    def adopt_ended(self, attempt: Attempt) -> None:
        """Take over a record that an earlier keeper left."""
        attempt.state = ENDED
        self.attempts[attempt.spec.attempt_id] = attempt

    def forget(self, attempt_id: str) -> None:
        """Remove an ended attempt with its files; an unknown one is fine. Raises Refused while it runs."""
        attempt = self.attempts.get(attempt_id)
        if attempt is None:
            return
        if attempt.state != ENDED:
            raise Refused("running", f"attempt {attempt_id} is still running: stop it first")
        del self.attempts[attempt_id]
        self._forgotten[attempt_id] = None
        if len(self._forgotten) > FORGOTTEN_KEPT:
            self._forgotten.popitem(last=False)
        self.trash.discard(attempt.directory)

    def kill_all(self, cause: str) -> None:
        """SIGKILL every live attempt."""
        for attempt in list(self._by_pid.values()):
            self.kill(attempt.spec.attempt_id, cause)

    def tidy(self) -> None:
        """Once a second: save what a full disk refused, remove groups that were busy, drop pointless timers."""
        for attempt_id in list(self._unsaved):
            del self._unsaved[attempt_id]
            self._persist(attempt_id)
        self._dead_groups = [group for group in self._dead_groups if not group.remove()]
        self._timers.prune(self.is_live, self.live_count())
