"""Finding out what this host offers to confine jobs, by trying it: required, preferred or off.

The answer is a plan that the agent hands to the keeper and puts into every spec. Reads no environment.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass

from workers.sandbox.bubblewrap import bubblewrap_argv
from workers.sandbox.cgroups import find_mounts
from workers.sandbox.probe import cgroups_offered

PROBE_TIMEOUT_S = 20.0
MODES = ("required", "preferred", "off")


class SandboxUnavailable(RuntimeError):
    """A sandbox is required and this host cannot give it; the message says what is missing and what to do."""


@dataclass(frozen=True, slots=True)
class SandboxPlan:
    """How jobs are confined on this host.

    `sandbox` goes into specs ("off" or "bubblewrap"); `uid_base` and `bwrap` go to the keeper. `uid_base` None means
    that jobs run as the worker's own user. `warnings` are sentences for an operator, empty when nothing is missing.
    """

    mode: str
    sandbox: str
    bwrap: str | None
    cgroups: str | None
    uid_base: int | None
    network: str
    warnings: tuple[str, ...]


def detect(mode: str, *, uid_base: int = 200_000, network: str = "host", bwrap: str | None = None) -> SandboxPlan:
    """Return the plan for this host.

    As root, every slot gets a user of its own from `uid_base` on, in every mode. `bwrap` names the program where it
    is not in PATH. Raises SandboxUnavailable when `mode` is "required" and bubblewrap does not work here, and
    ValueError for another mode.
    """
    if mode not in MODES:
        raise ValueError(f"sandbox mode is {mode!r}: use one of {', '.join(MODES)}")
    root = os.geteuid() == 0
    job_uid = uid_base if root else None
    cgroups = cgroups_offered(find_mounts())
    program, problem = (None, None) if mode == "off" else _working_bubblewrap(bwrap, job_uid, network)
    if mode == "required" and problem is not None:
        raise SandboxUnavailable(f"CFAB_SANDBOX=required, but {problem}. Or set CFAB_SANDBOX=preferred or off.")
    warnings = []
    if problem is not None:
        warnings.append(f"jobs run without a sandbox: {problem}")
    if mode != "off" and cgroups is None:
        warnings.append(
            "jobs' memory and CPU limits are not enforced: no writable control groups here "
            "(run the worker as root, or under systemd with Delegate=yes)"
        )
    if mode == "off" and network == "none":
        warnings.append("jobs keep the host's network: CFAB_JOB_NETWORK=none needs the sandbox")
    return SandboxPlan(
        mode=mode,
        sandbox="bubblewrap" if program else "off",
        bwrap=program,
        cgroups=cgroups,
        uid_base=job_uid,
        network=network,
        warnings=tuple(warnings),
    )


def _working_bubblewrap(bwrap: str | None, uid: int | None, network: str) -> tuple[str | None, str | None]:
    """Return bubblewrap's path, or why it does not work, after running a trivial job the way jobs are run."""
    program = bwrap or shutil.which("bwrap")
    if program is None or not os.access(program, os.X_OK):
        return None, f"bubblewrap is not installed ({bwrap or 'bwrap'} not found): install the package bubblewrap"
    with tempfile.TemporaryDirectory(prefix="cfab-probe-", dir="/tmp") as work:
        if uid is not None:
            # Below every keeper's range: a keeper kills whatever it finds of its own slots' users.
            uid = max(1, uid - 1)
            os.chown(work, uid, uid)
        argv = [*bubblewrap_argv(program, work=work, network=network), "/bin/sh", "-c", "exit 0"]
        try:
            tried = subprocess.run(
                argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False,
                timeout=PROBE_TIMEOUT_S, user=uid, group=uid, extra_groups=None if uid is None else [], cwd=work,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as exc:
            return None, f"{program} could not be tried: {exc}"
    if tried.returncode == 0:
        return program, None
    said = tried.stderr.decode(errors="replace").strip().splitlines()
    reason = said[-1] if said else f"exit code {tried.returncode}"
    return None, (
        f"{program} does not work here ({reason}): version 0.8 or newer is needed, and users must be allowed to make "
        "namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone, "
        "kernel.apparmor_restrict_unprivileged_userns=0)"
    )
