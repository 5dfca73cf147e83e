"""Bringing one attempt into the world: its folder, its control group, its pipes, its process.

Knows nothing of clocks or other attempts; undoes itself when a step fails.
"""

from __future__ import annotations

import contextlib
import os
import socket

from workers.keeper import processes
from workers.keeper.attempt import Attempt
from workers.keeper.child import Birth
from workers.keeper.files import write_files
from workers.keeper.folders import Folders
from workers.keeper.gate import GATE_SCRIPT
from workers.keeper.launch import Launcher, missing_program
from workers.sandbox.bubblewrap import bubblewrap_argv
from workers.sandbox.cgroups import CgroupLayer, Limits

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Births:
    """Starts attempts with what this host offers."""

    def __init__(self, layer: CgroupLayer | None, bwrap: str | None, folders: Folders, way: str = "auto") -> None:
        """Prepare to fork."""
        self._layer = layer
        self._bwrap = bwrap
        self._folders = folders
        self.launcher = Launcher(way)
        self._boot = processes.boot_id()

    def create(self, attempt: Attempt) -> None:
        """Make folder, group and process. Raises OSError; what was made by then is left to `undo`.

        A sandboxed program that cannot be found gets a spawn_error and no process.
        """
        spec = attempt.spec
        self._folders.make(attempt.directory, attempt.uid)
        if spec.files:
            write_files(attempt.directory, spec.files, attempt.uid)
            # Their text is on disk now; only that there are some is worth memory for as long as the job runs.
            attempt.spec = spec = spec._replace(files=dict.fromkeys(spec.files, ""))
        if self._layer is not None and (spec.sandbox != "off" or spec.memory_bytes or spec.cpus_milli):
            limits = Limits(spec.memory_bytes, spec.cpus_milli, spec.pids_max)
            attempt.cgroup = self._layer.create(spec.attempt_id, limits)
        attempt.begin_notes(self._boot)
        if spec.sandbox == "bubblewrap":
            attempt.record["spawn_error"] = missing_program(spec.argv[0], spec.executable, spec.env)
        if attempt.record["spawn_error"] is None:
            self._fork(attempt)

    def _fork(self, attempt: Attempt) -> None:
        spec, argv, file, gate_child = attempt.spec, attempt.spec.argv, attempt.spec.executable, None
        if spec.sandbox == "bubblewrap" and self._bwrap is not None:
            keeper_end, child_end = socket.socketpair()
            attempt.gate, gate_child = keeper_end.detach(), child_end.detach()
            os.set_blocking(attempt.gate, False)
            command = [file, *argv[1:]] if file else argv
            argv = bubblewrap_argv(
                self._bwrap, work=attempt.work_dir, executable=file, hide=spec.hide or [],
                gpus=spec.gpus or [], network=spec.network, files=attempt.files_dir if spec.files else None,
            )  # fmt: skip
            argv, file = [*argv, "/bin/sh", "-c", GATE_SCRIPT, "sh", *command], self._bwrap
        birth = Birth(
            argv=argv,
            file=file or argv[0],
            env={"PATH": SYSTEM_PATH, **spec.env, processes.MARKER: attempt.token},
            cwd=attempt.work_dir,
            join_paths=attempt.cgroup.join_paths() if attempt.cgroup else (),
            uid=attempt.uid,
            pids_max=spec.pids_max,
            gated=gate_child is not None,
        )
        fds = [] if gate_child is None else [gate_child]
        try:
            fds[:0] = attempt.output.open_pipes()
            attempt.pid, attempt.failure = self.launcher.fork(birth, fds)
            # From here on the process is there, and only its end may end the attempt: a full disk must not.
            with contextlib.suppress(OSError):
                attempt.notes.add_process(attempt.pid, processes.start_ticks(attempt.pid))
        finally:
            for fd in fds:
                os.close(fd)

    def undo(self, attempt: Attempt) -> None:
        """Remove what a failed `create` made."""
        if attempt.cgroup is not None:
            attempt.cgroup.remove()
        attempt.close()
        attempt.notes.close()
        self._folders.discard(attempt.directory, printed=True)
