"""One container job as its keeper holds it: times, flags, its folder, and what is noted for a later keeper.

Knows neither the engine nor sockets. The environment and the files are never noted: they may be secret.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
import time
from typing import Any

from workers.containers.recipe import TMP, WORK, Wanted
from workers.containers.spool import Spool
from workers.keeper.attempt import BLANK_RECORD, boottime
from workers.keeper.spec import Spec

PREPARING = "preparing"
STARTING = "starting"
RUNNING = "running"
ENDED = "ended"
STATE = "state.json"
RECORD = "record.json"
SPOOL = "spool"


class Attempt:
    """A container job from its start until it is forgotten. Its fields are the keeper's, under the keeper's lock."""

    def __init__(self, spec: Spec, directory: str, wanted: Wanted | None) -> None:
        """Describe it; nothing is made on disk yet. Without `wanted` it was begun by an earlier keeper."""
        self.spec = spec
        self.wanted = wanted
        self.directory = directory
        self.record: dict[str, Any] = {**BLANK_RECORD, "node_fault": None, "image_digest": None}
        self.output = Spool(f"{directory}/{SPOOL}", spec.log_cap_bytes)
        self.state = PREPARING
        self.deadline = spec.deadline
        self.container = ""
        self.pid = 0
        self.init_pidfd = -1
        self.program_pidfd = -1
        self.term_sent = False
        self.kill_sent = False
        self.kill_at: float | None = None
        self.error_tail = b""
        self.engine_broke = False
        self.rebooted = False
        self.over = threading.Event()

    @property
    def id(self) -> str:
        """The attempt's id."""
        return self.spec.attempt_id

    @property
    def limit_at(self) -> float | None:
        """When its time is over."""
        started = self.record["started_boottime"]
        return None if started is None or self.spec.time_limit_s is None else started + self.spec.time_limit_s

    @property
    def mounted(self) -> dict[str, str]:
        """The folders that the job may write to, each with its path in the container."""
        return {f"{self.directory}/work": WORK, f"{self.directory}/tmp": TMP}

    def make_folder(self) -> None:
        """Make its folder, which only this user can enter, with what is mounted into the container. Raises OSError."""
        os.mkdir(self.directory, 0o700)
        for name, mode in (("work", 0o1777), ("tmp", 0o1777), ("files", 0o755)):
            os.mkdir(f"{self.directory}/{name}")
            os.chmod(f"{self.directory}/{name}", mode)
        for name, text in (self.spec.files or {}).items():
            with open(f"{self.directory}/files/{name}", "x", encoding="utf-8") as file:
                file.write(text)
            os.chmod(f"{self.directory}/files/{name}", 0o444)

    def note(self, boot: str) -> None:
        """Write down what a later keeper needs to go on with it. Raises OSError."""
        bare = self.spec._replace(env={}, argv=[], files=None)._asdict()
        state = {
            "spec": bare,
            "boot": boot,
            "deadline": self.deadline,
            "state": self.state,
            "record": self.record,
            "said": self.output.said,
            "term_sent": self.term_sent,
            "kill_sent": self.kill_sent,
            "kill_at": self.kill_at,
        }
        _write_json(f"{self.directory}/{STATE}", state)

    def note_end(self) -> None:
        """Write the exit record. Raises OSError."""
        _write_json(f"{self.directory}/{RECORD}", self.full_record())

    def full_record(self) -> dict[str, Any]:
        """The exit record with the attempt's identity."""
        return {**self._identity(), **self.record}

    def describe(self) -> dict[str, Any]:
        """What `list` tells about it."""
        ended = self.state == ENDED
        return {
            **self._identity(),
            "state": ENDED if ended else RUNNING,
            "pid": self.pid,
            "slot": self.spec.slot,
            "uid": None,
            "cgroup": None,
            "deadline": self.deadline,
            "started_boottime": self.record["started_boottime"],
            "started_wall": self.record["started_wall"],
            "spool_bytes": self.record["spool_bytes"] if ended else self.output.spool_bytes,
            "record": self.full_record() if ended else None,
        }

    def finish(self) -> None:
        """Close what is open, complete the record, drop what may be secret."""
        self.output.close()
        for fd in (self.init_pidfd, self.program_pidfd):
            if fd >= 0:
                os.close(fd)
        self.init_pidfd = self.program_pidfd = -1
        self.record["spool_bytes"] = self.output.spool_bytes
        self.record["truncated_bytes"] = self.output.truncated_bytes
        self.record["ended_boottime"] = self.record["ended_boottime"] or boottime()
        self.record["ended_wall"] = self.record["ended_wall"] or time.time()
        self.state = ENDED
        self.spec = self.spec._replace(env={}, argv=[], files=None)
        self.wanted = None
        shutil.rmtree(f"{self.directory}/files", ignore_errors=True)

    def _identity(self) -> dict[str, Any]:
        spec = self.spec
        return {"attempt_id": spec.attempt_id, "job_id": spec.job_id, "attempt": spec.attempt, "member": spec.member}


def read_noted(directory: str, name: str) -> dict[str, Any] | None:
    """What was noted in one of an attempt's files; None when there is nothing readable."""
    with contextlib.suppress(OSError, ValueError):
        with open(f"{directory}/{name}", encoding="utf-8") as file:
            found = json.load(file)
            return found if isinstance(found, dict) else None
    return None


def _write_json(path: str, value: dict[str, Any]) -> None:
    with open(f"{path}.new", "w", encoding="utf-8") as file:
        json.dump(value, file)
    os.replace(f"{path}.new", path)
