"""Reading how an attempt ended and what it used, once nothing of it is left.

Fills the attempt's record; knows nothing of the loop, of other attempts or of the disk.
"""

from __future__ import annotations

import os

from workers.keeper.attempt import Attempt, nothing
from workers.keeper.gate import Folded, exit_from_pidfd


def record_end(attempt: Attempt) -> None:
    """Fill in exit code or signal, or why the program never ran. Without a process there is nothing to read."""
    record, status = attempt.record, attempt.wait_status
    if status is None:
        return
    sandboxed = attempt.spec.sandbox != "off"
    failure, attempt.failure = attempt.failure, nothing
    record["spawn_error"] = failure()
    if record["spawn_error"] is not None:
        return
    if not sandboxed:
        ended = Folded.plain(status)
    elif attempt.job_pidfd < 0 and not attempt.kill_sent:
        code = os.waitstatus_to_exitcode(status)
        record["spawn_error"] = f"the sandbox was not set up (bwrap ended with {code}); see its message in stderr"
        return
    else:
        inner = exit_from_pidfd(attempt.job_pidfd)
        ended = Folded.plain(inner) if inner is not None else Folded.by_shell_rule(status)
    record["exit_code"], record["signal"] = ended.exit_code, ended.signal


def record_usage(attempt: Attempt) -> None:
    """Fill in memory, CPU time and oom: from the control group, else from what was reaped.

    Without a group the peak is the largest single process, and includes the keeper's own size at the fork.
    """
    record = attempt.record
    if attempt.cgroup is not None:
        usage = attempt.cgroup.usage()
        record["oom"] = usage.oom_kills > 0
        record["peak_memory_bytes"] = usage.peak_memory_bytes or record["peak_memory_bytes"]
        if usage.cpu_seconds is not None:
            record["cpu_seconds"] = usage.cpu_seconds
    elif record["cpu_seconds"] is not None:
        record["cpu_seconds"] += attempt.orphan_cpu_seconds
        record["peak_memory_bytes"] = max(record["peak_memory_bytes"], attempt.orphan_peak_bytes)
