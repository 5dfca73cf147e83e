"""The five contracts as their clients use them, under one interface: a suite over all states what it means once.

Words are written down here from the documents and the mapping they agree on, not taken from the code under test.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from werkzeug.test import TestResponse

from app.domain.phase import Phase
from tests.contract.conftest import SHA, Caller

PAGE = 100


@dataclass(frozen=True, eq=False)
class Spoke:
    """One contract: where it is, how it shows ids, its words for phases, and the names of its fields."""

    name: str
    at: str
    words: Mapping[Phase, str]
    filtered_by: str
    every_word: tuple[str, ...]
    id_prefix: str = ""
    listed_under: str | None = None
    ids: tuple[str, str] = ("id", "id")
    """The names of the id in a list and alone."""
    jobs_path: str = "/jobs"
    body: Mapping[str, Any] = field(default_factory=dict)
    created_as: str = ""
    logs_query: str | None = None

    def shown(self, job: UUID) -> str:
        """The id as this contract shows it."""
        return self.id_prefix + job.hex if self.id_prefix else str(job)

    def parsed(self, text: str) -> UUID:
        """The fabric's id."""
        assert text.startswith(self.id_prefix), text
        return UUID(text.removeprefix(self.id_prefix))


_JOBS_WORDS = {
    Phase.READY: "pending", Phase.WAITING: "pending", Phase.PREEMPTED: "pending", Phase.STARTING: "running",
    Phase.RUNNING: "running", Phase.CANCELLING: "running", Phase.STOPPING: "running", Phase.COMPLETED: "completed",
    Phase.FAILED: "failed", Phase.CANCELLED: "cancelled",
}  # fmt: skip
JOBS = Spoke(
    name="jobs",
    at="/jobs/api/v1",
    words=_JOBS_WORDS,
    filtered_by="status",
    every_word=("pending", "running", "completed", "failed", "cancelled"),
    body={
        "type": "data-processing", "binary_url": "https://example.com/binary", "binary_sha256": SHA,
        "priority": "background",
    },
    created_as="pending",
    logs_query="",
)  # fmt: skip
AI = Spoke(
    name="ai",
    at="/ai/api/v1",
    words={
        Phase.READY: "queued", Phase.WAITING: "pending", Phase.PREEMPTED: "queued", Phase.STARTING: "running",
        Phase.RUNNING: "running", Phase.CANCELLING: "cancelled", Phase.STOPPING: "running",
        Phase.COMPLETED: "succeeded", Phase.FAILED: "failed", Phase.CANCELLED: "cancelled",
    },
    filtered_by="status",
    every_word=("pending", "queued", "running", "succeeded", "failed", "cancelled"),
    id_prefix="job-",
    listed_under="items",
    jobs_path="/jobs/",
    body={"job_type": "inference", "image": "pytorch-inference:v1.0"},
    created_as="pending",
    logs_query="?timestamps=false",
)  # fmt: skip
COMPUTE = Spoke(
    name="compute",
    at="/api/v1/runtime/compute",
    words={
        Phase.READY: "queued", Phase.WAITING: "queued", Phase.PREEMPTED: "queued", Phase.STARTING: "running",
        Phase.RUNNING: "running", Phase.CANCELLING: "stopping", Phase.STOPPING: "stopping",
        Phase.COMPLETED: "succeeded", Phase.FAILED: "failed", Phase.CANCELLED: "stopped",
    },
    filtered_by="state",
    every_word=("queued", "running", "stopping", "succeeded", "failed", "stopped"),
    id_prefix="job_",
    listed_under="jobs",
    ids=("job_id", "job_id"),
    body={"image": "repo/transform:24", "cmd": ["/app/run"]},
    created_as="queued",
    logs_query="",
)  # fmt: skip
GPU = Spoke(
    name="gpu",
    at="/gpu/api/v1",
    words={**_JOBS_WORDS, Phase.PREEMPTED: "preempted", Phase.CANCELLING: "cancelled"},
    filtered_by="state",
    every_word=("pending", "running", "completed", "failed", "preempted", "cancelled"),
    id_prefix="job-",
    listed_under="jobs",
    ids=("id", "job_id"),
    body={"name": "training-job", "script": "python train.py"},
    created_as="submitted",
)
HPC = Spoke(
    name="hpc",
    at="/v1",
    words=_JOBS_WORDS,
    filtered_by="state",
    every_word=("pending", "running", "completed", "failed", "cancelled"),
    listed_under="jobs",
)
SPOKES = (JOBS, AI, COMPUTE, GPU, HPC)
SUBMITTING = (JOBS, AI, COMPUTE, GPU)
"""Those that give the fabric something to run; hpc tells of jobs that run elsewhere."""


@dataclass
class Client:
    """Someone's requests through one contract."""

    spoke: Spoke
    call: Caller

    def submit(self) -> UUID:
        """A new job; checks the literal word of the answer."""
        answer = self.call.post(self.spoke.jobs_path, json=dict(self.spoke.body))
        assert answer.status_code == 201, answer.text
        told = answer.json
        assert told.get("status", told.get("state")) == self.spoke.created_as
        return self.spoke.parsed(told.get("job_id", told.get("id")))

    def ask(self, job: UUID) -> TestResponse:
        """The answer to a look at one job."""
        return self.call.get(f"/jobs/{self.spoke.shown(job)}")

    def show(self, job: UUID) -> dict[str, Any]:
        """One job; checks its id."""
        answer = self.ask(job)
        assert answer.status_code == 200, (self.spoke.name, answer.text)
        told = dict(answer.json)
        assert told[self.spoke.ids[1]] == self.spoke.shown(job)
        return told

    def word(self, job: UUID) -> str:
        """The job's state in this contract's word."""
        told = self.show(job)
        return str(told["status"] if self.spoke.filtered_by == "status" else told["state"])

    def stop(self, job: UUID) -> TestResponse:
        """Asks for the job's end in the way that this contract has for jobs that may run."""
        path = f"/jobs/{self.spoke.shown(job)}"
        if self.spoke is HPC:
            return self.call("PATCH", path, json={"state": "cancelled"})
        return self.call.post(path + "/stop", json={}) if self.spoke in (JOBS, COMPUTE) else self.call.delete(path)

    def page(self, query: Mapping[str, Any]) -> tuple[list[dict[str, Any]], int]:
        """The items of a list, and the total that it tells."""
        answer = self.call.get(self.spoke.jobs_path, query_string={"limit": PAGE, **query})
        assert answer.status_code == 200, (self.spoke.name, answer.text)
        if self.spoke.listed_under is None:
            return list(answer.json), int(answer.headers["X-Total-Count"])
        return list(answer.json[self.spoke.listed_under]), int(answer.json["total"])

    def listed(self, word: str | None = None) -> dict[UUID, str]:
        """Jobs and their words, all or those of one word; the total must be their number."""
        name = self.spoke.filtered_by
        items, total = self.page({} if word is None else {name: word})
        found = {self.spoke.parsed(item[self.spoke.ids[0]]): str(item[name]) for item in items}
        assert len(found) == len(items) == total
        return found

    def log(self, job: UUID) -> list[str]:
        """The lines of the job's output."""
        answer = self.call.get(f"/jobs/{self.spoke.shown(job)}/logs{self.spoke.logs_query}")
        assert answer.status_code == 200, answer.text
        return list(answer.json["lines"]) if self.spoke is COMPUTE else answer.text.splitlines()


def clients(call: Caller) -> Iterator[Client]:
    """One client of each contract, for the same caller."""
    for spoke in SPOKES:
        one = Caller(call.client, spoke.at, None)
        one.headers = call.headers
        yield Client(spoke, one)
