"""The runner contract: what every way of running a job offers the agent, and the words they share.

Knows no Celery and no database. Every method may be repeated; every event may be delivered again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Protocol

Cancelled = Callable[[], bool]


class RunnerError(Exception):
    """A runner could not do what was asked; the message says why and what to do."""


class StartRefused(RunnerError):
    """Nothing was started. `code` is one of deadline, slot, sandbox, invalid, io, forgotten, closing, keeper, old."""

    def __init__(self, code: str, message: str) -> None:
        """Keep both."""
        super().__init__(message)
        self.code = code


class RunnerUnavailable(RunnerError):
    """The runner's process cannot be reached now; the call may or may not have had its effect. Repeat it."""


class PrepareCancelled(RunnerError):
    """Preparing was given up because the attempt is no longer wanted."""


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One attempt to run. `deadline` is absolute CLOCK_BOOTTIME seconds; the environment is complete.

    `files` (name: text) are for the job to read in `Runner.files_dir` while it runs; nobody else is shown them.
    """

    attempt_id: str
    argv: Sequence[str]
    env: Mapping[str, str]
    deadline: float
    job_id: str = ""
    attempt: int = 1
    member: int = 0
    executable: str | None = None
    cpus_milli: int | None = None
    memory_bytes: int | None = None
    pids_max: int = 1024
    slot: int = 0
    time_limit_s: float | None = None
    grace_s: float = 10.0
    log_cap_bytes: int = 64 * 1024 * 1024
    sandbox: str = "off"
    network: str = "host"
    hide: Sequence[str] = ()
    gpus: Sequence[str] = ()
    files: Mapping[str, str] = field(default_factory=dict, repr=False)

    def to_wire(self) -> dict[str, Any]:
        """Return it as plain JSON values; without `files` when there are none, for keepers that know of none."""
        wire = {item.name: getattr(self, item.name) for item in fields(self)}
        if not self.files:
            del wire["files"]
        return {
            **wire,
            "argv": list(self.argv),
            "env": dict(self.env),
            "hide": list(self.hide),
            "gpus": list(self.gpus),
            **({"files": dict(self.files)} if self.files else {}),
        }

    def with_executable(self, path: str) -> RunSpec:
        """Return a copy that runs the verified file at `path`."""
        return replace(self, executable=path)


@dataclass(frozen=True, slots=True)
class ExitRecord:
    """How an attempt ended. Exactly one of exit_code, signal, spawn_error is set, none of them if the keeper was lost.

    A signal is never folded into the exit code. `oom` stands beside both: a killed child can leave a parent that
    exits 0. `survivors` counts processes that SIGKILL did not end within ten seconds. Wall times are Unix seconds.
    `node_fault` says why the node could not run it: nothing of it ran then. `image_digest` is its image's, by registry.
    """

    attempt_id: str
    job_id: str = ""
    attempt: int = 1
    member: int = 0
    exit_code: int | None = None
    signal: int | None = None
    oom: bool = False
    limit_hit: str | None = None
    stop_cause: str | None = None
    lease_lost: bool = False
    keeper_lost: bool = False
    started_boottime: float | None = None
    ended_boottime: float | None = None
    started_wall: float | None = None
    ended_wall: float | None = None
    peak_memory_bytes: int | None = None
    cpu_seconds: float | None = None
    spool_bytes: int = 0
    truncated_bytes: int = 0
    survivors: int = 0
    spawn_error: str | None = None
    node_fault: str | None = None
    image_digest: str | None = None

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> ExitRecord:
        """Read a record; keys of a newer keeper are ignored."""
        return cls(**{item.name: wire[item.name] for item in fields(cls) if item.name in wire})

    def to_wire(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Started:
    """The attempt's process exists."""

    attempt_id: str
    pid: int
    started_boottime: float
    started_wall: float


@dataclass(frozen=True, slots=True)
class Output:
    """The spool has grown to `spool_bytes` (frames, see workers/spool.py)."""

    attempt_id: str
    spool_bytes: int


@dataclass(frozen=True, slots=True)
class Exited:
    """Nothing of the attempt lives any more and its output is complete."""

    attempt_id: str
    record: ExitRecord


Event = Started | Output | Exited
Callback = Callable[[Event], None]


@dataclass(frozen=True, slots=True)
class Held:
    """An attempt that a runner holds: running, or ended and not yet forgotten."""

    attempt_id: str
    job_id: str
    attempt: int
    member: int
    slot: int
    running: bool
    pid: int
    deadline: float
    started_boottime: float | None
    started_wall: float | None
    spool_bytes: int
    record: ExitRecord | None


@dataclass(frozen=True, slots=True)
class Stock:
    """What is held, and which runners (process, container) cannot be asked what they hold."""

    held: Sequence[Held]
    unseen: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Sample:
    """What an attempt uses now; cpu_seconds counts from its start, memory leaves out cache that can be given back.

    `pids` are its processes by the host's numbers.
    """

    attempt_id: str
    memory_bytes: int
    cpu_seconds: float
    processes: int = field(default=0)
    gpu_percent: float | None = None
    gpu_memory_bytes: int | None = None
    pids: frozenset[int] = frozenset()


class Runner(Protocol):
    """Runs attempts. All methods are thread-safe, may be repeated, and raise RunnerUnavailable when cut off."""

    def obstacle(self) -> str | None:
        """Say why nothing is to be claimed for this runner now, though what runs goes on; None when all is well."""

    def prepare(self, spec: RunSpec, cancelled: Cancelled) -> RunSpec:
        """Fetch what the attempt needs and return the spec to start. Raises PrepareCancelled or RunnerError."""

    def subscribe(self, callback: Callback) -> None:
        """Deliver every later event to `callback`, one at a time, from a thread of the runner's own."""

    def attach(self) -> list[Held]:
        """Return everything held: what an earlier agent left too. Events missed before are seen in it."""

    def take_stock(self) -> Stock:
        """Return what `attach` does for each runner that answers, and which do not."""

    def start(self, spec: RunSpec) -> bool:
        """Start an attempt; False when it is already held, which starts nothing. Raises StartRefused."""

    def start_many(self, specs: Sequence[RunSpec]) -> list[bool | StartRefused]:
        """Start several in one exchange; one answer each, in order."""

    def stop(self, attempt_id: str, grace_s: float, cause: str) -> None:
        """SIGTERM now, SIGKILL to everything after `grace_s`. An attempt that is gone or ended is fine."""

    def kill(self, attempt_id: str, cause: str) -> None:
        """SIGKILL everything of an attempt now. One that is gone or ended is fine."""

    def extend(self, deadlines: Mapping[str, float]) -> list[str]:
        """Move lease deadlines forward; return the attempts that are not running here."""

    def forget(self, attempt_ids: Iterable[str], wait: bool = True) -> None:
        """Remove ended attempts and their files. Raises RunnerError for one that still runs.

        Without `wait` it returns before that is done, and does not tell how it went; a later start comes after it.
        """

    def spool_path(self, attempt_id: str) -> str:
        """Return where the attempt's output frames are; the file is missing until something is printed."""

    def work_dir(self, attempt_id: str) -> str:
        """Return the attempt's working directory, for HOME and the like in its environment."""

    def files_dir(self, attempt_id: str) -> str:
        """Return where a job finds the files that come with it: the path as the job sees it."""

    def samples(self, only: Collection[str] | None = None) -> list[Sample]:
        """Measure the running attempts, or `only` these; those that ended meanwhile are left out."""

    def close(self) -> None:
        """Let go: stop threads and connections. What runs goes on running where the runner outlives its user."""
