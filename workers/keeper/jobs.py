"""The life of attempts: start, signal, deadline, end. The keeper's heart, free of sockets.

Promise: when an attempt's exit record exists, no process of it is left (or the record says how many survived a
SIGKILL for ten seconds), and its output is in the spool.
"""

from __future__ import annotations

import os
import signal
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
)
from workers.keeper.births import Births
from workers.keeper.ends import record_end, record_usage
from workers.keeper.folders import Folders
from workers.keeper.gate import find_sandboxed
from workers.keeper.loop import RANK_GATE, RANK_OUTPUT, Poller, Timers
from workers.keeper.orphans import Orphans
from workers.keeper.output import OutputNews
from workers.keeper.spec import Spec
from workers.keeper.wire import Refused
from workers.sandbox.cgroups import Cgroup, CgroupLayer

SWEEP_RETRY_S = 0.005
EXEC_RETRY_S = 0.001
SURVIVOR_WAIT_S = 10.0
FORGOTTEN_KEPT = 4096


class Jobs:
    """All attempts of one keeper."""

    def __init__(
        self,
        directory: str,
        *,
        uid_base: int | None,
        layer: CgroupLayer | None,
        bwrap: str | None,
        births: str,
        poller: Poller,
        timers: Timers,
        emit: Callable[[dict[str, Any]], None],
    ) -> None:
        """Serve `directory`; `uid_base` None runs jobs as the keeper's own user; `births` is the `Launcher`'s way."""
        self._uid_base = uid_base
        self._bwrap = bwrap
        self._poller = poller
        self._timers = timers
        self._emit = emit
        self.folders = Folders(directory)
        self._births = Births(layer, bwrap, self.folders, births)
        self.attempts: dict[str, Attempt] = {}
        self._by_pid: dict[int, Attempt] = {}
        self._slots: dict[int, str] = {}
        self._ending: dict[str, Attempt] = {}
        self._orphans = Orphans(self._by_pid, self.folders.pids, self._births.launcher.zygote_pids)
        self._forgotten: OrderedDict[str, None] = OrderedDict()
        self._unsaved: dict[str, Attempt] = {}
        self.news = OutputNews(emit)
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
        attempt = Attempt(spec, self.folders.path(spec.attempt_id), uid)
        attempt.record["started_boottime"], attempt.record["started_wall"] = boottime(), time.time()
        try:
            self._births.create(attempt)
        except OSError as exc:
            self._births.undo(attempt)
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
            late = f"deadline {spec.deadline:.3f} of {spec.attempt_id} has passed: it is {now:.3f}"
            raise Refused("deadline", late)
        if spec.sandbox == "bubblewrap" and self._bwrap is None:
            raise Refused("sandbox", f"{spec.attempt_id} wants bubblewrap, this keeper was started without it")
        if self._uid_base is not None and spec.slot in self._slots:
            holder = self._slots[spec.slot]
            raise Refused("slot", f"slot {spec.slot} for {spec.attempt_id} is in use by {holder}")

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
                self.news.grown[attempt.spec.attempt_id] = attempt.output

        return ready

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
                self.folders.reaped(pid)
                self._births.launcher.reaped(pid)
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
        record_end(attempt)
        record_usage(attempt)
        if attempt.cgroup is not None and not attempt.cgroup.remove():
            self._dead_groups.append(attempt.cgroup)
        record["spool_bytes"] = attempt.output.spool_bytes
        record["truncated_bytes"] = attempt.output.truncated_bytes
        record["ended_boottime"] = record["ended_boottime"] or boottime()
        record["ended_wall"] = record["ended_wall"] or time.time()
        attempt.close()
        attempt.state = ENDED
        attempt.spec = spec._replace(env={}, argv=[])
        self._ending.pop(spec.attempt_id, None)
        self.news.grown.pop(spec.attempt_id, None)
        if self._slots.get(spec.slot) == spec.attempt_id:
            del self._slots[spec.slot]
        self._persist(spec.attempt_id)
        self._emit({"event": "exited", "attempt_id": spec.attempt_id, "record": attempt.full_record()})

    def _persist(self, attempt_id: str) -> None:
        """Write exit.json; `tidy` repeats it while the disk is full, or a later keeper would call it lost."""
        attempt = self.attempts.get(attempt_id)
        if attempt is not None and not attempt.notes.add_record(attempt.full_record()):
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
        printed = attempt.record["spool_bytes"] + attempt.record["truncated_bytes"] > 0
        self.folders.discard(attempt.directory, printed=printed, survived=attempt.record["survivors"] > 0)

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
